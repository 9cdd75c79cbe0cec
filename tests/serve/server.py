"""A server of a random model in this process, and requests to it over real sockets."""

import asyncio
import contextlib
import http.client
import json
import socket
import threading
import time
from dataclasses import replace

import jax
import numpy as np
from aiohttp import web

import llama_jax
from llama_jax.config import AdaptedModel
from llama_jax.data.corpora import tales
from llama_jax.data.tokenizer import train_tokenizer
from llama_jax.infer.engine.engine import Engine
from llama_jax.infer.engine.scheduler import Layout
from llama_jax.model.llama import init_params
from llama_jax.model.presets import TINY
from llama_jax.model.weights import adapter_weights, layer_weights
from llama_jax.serve.app import runner
from llama_jax.serve.job import Served
from llama_jax.serve.service import Service
from llama_jax.serve.settings import Settings, read_keys

CONTEXT = 64
KEYS = {"first": "a-key-of-the-first-user", "second": "a-key-of-the-second-user"}


def random_model(context=CONTEXT):
    """Wide logits: a choice must not hang on the last bit."""
    tokenizer = train_tokenizer([tales.story(i) for i in range(50)], 320)
    config = replace(TINY, vocab_size=320, max_seq_len=context)
    params = jax.tree.map(lambda p: 3 * p, init_params(jax.random.key(0), config))
    return llama_jax.Model(config, params, tokenizer)


def served_by(model):
    """The model as requests see it."""
    tokenizer = model.tokenizer
    context = model.config.max_seq_len
    return Served("tiny", tokenizer, context, tokenizer.vocab_size, (tokenizer.eos_id,), True)


def random_factors(config, lora, seed):
    """Those of an adapter that changes what the model says."""
    rows = adapter_weights(AdaptedModel.of(config, lora), layer_weights(config))
    rng = np.random.default_rng(seed)
    shapes = {key: (config.num_layers, *w.shape) for key, w in rows.items()}
    return {key: rng.normal(size=s).astype(np.float32) / 3 for key, s in shapes.items()}


def engine_of(model, adapters=(), *, num_pages=40):
    """An engine for it, warmed up."""
    layout = Layout(
        rows=3,
        num_pages=num_pages,
        page=8,
        chunks=(8, 16),
        budget=16,
        max_len=model.config.max_seq_len,
    )
    engine = Engine(
        model.prepared,
        config=model.config,
        layout=layout,
        vocab_limit=320,
        queue=8,
        adapters=adapters,
    )
    engine.warm_up()
    return engine


def keys_in(folder):
    """Digests of KEYS, read from a file in this folder."""
    path = folder / "keys"
    path.write_text("\n".join(KEYS.values()))
    path.chmod(0o600)
    return read_keys(str(path))


class Server:
    """Address and inner parts of a server that runs in a thread."""

    def __init__(self, service, loop, runner, port):
        self.service, self.loop, self.runner, self.port = service, loop, runner, port
        self.url = f"http://127.0.0.1:{port}/"

    def cut(self):
        """Drop all connections, as a server that is killed does."""
        connections = self.runner.server.connections
        for connection in connections:
            self.loop.call_soon_threadsafe(connection.transport.abort)

    def connect(self):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)

    def ask(self, method, path, body=None, *, headers=(), raw=None):
        """Status, headers and body of one request; a body that is JSON as its value."""
        connection = self.connect()
        headers = dict(headers)
        if body is not None or raw is not None:
            headers.setdefault("Content-Type", "application/json")
            raw = json.dumps(body) if raw is None else raw
        connection.request(method, path, raw, headers)
        response = connection.getresponse()
        content = response.read()
        connection.close()
        if response.headers.get_content_type() == "application/json":
            content = json.loads(content)
        return response.status, response.headers, content

    def post(self, path, **body):
        """A request that must succeed."""
        status, _, content = self.ask("POST", path, {**settled(path), **body})
        assert status == 200, content
        return content

    def events(self, path, **body):
        """The events of a stream, parsed; the last one must be [DONE]."""
        body = {**settled(path), "stream": True, **body}
        status, headers, content = self.ask("POST", path, body)
        assert (status, headers.get_content_type()) == (200, "text/event-stream"), content
        lines = content.decode().split("\n\n")
        assert lines[-2:] == ["data: [DONE]", ""]
        return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


def settled(path):
    """The model, and where answers are drawn a seed: a test is the same every time."""
    return {"model": "tiny"} | ({"seed": 0} if path.endswith("completions") else {})


@contextlib.contextmanager
def running(engine, served, *, port=0, send_buffer=None, **settings):
    """A server with this engine, None for one that loads; its sockets hold so many bytes."""
    service = Service(Settings(name="tiny", **settings), served)
    service.engine = engine
    loop, started, bound = asyncio.new_event_loop(), threading.Event(), socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if send_buffer is not None:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    bound.bind(("127.0.0.1", port))
    runners = []

    async def start():
        runners.append(runner(service))
        await runners[0].setup()
        await web.SockSite(runners[0], bound).start()
        started.set()

    def run():
        loop.run_until_complete(start())
        loop.run_forever()
        loop.run_until_complete(runners[0].cleanup())
        loop.close()

    thread = threading.Thread(target=run)
    thread.start()
    assert started.wait(30)
    try:
        yield Server(service, loop, runners[0], bound.getsockname()[1])
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


def wait_until(true, seconds=20):
    """Return as soon as it is; fail if that does not come."""
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until
        time.sleep(0.01)


def raw_request(server, **body):
    """A request for a completion as the bytes that a client sends."""
    content = json.dumps({"model": "tiny", "prompt": "a", **body}).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: localhost:{server.port}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


class Gate:
    """Holds the device up before each token until the test lets it go on."""

    def __init__(self, real):
        self.real, self.free, self.tokens = real, False, threading.Semaphore(0)

    def draw(self, drawing, steps):
        while not (self.free or self.tokens.acquire(timeout=0.02)):
            pass
        return self.real(drawing, steps if self.free else 1)

    def let(self, tokens):
        self.tokens.release(tokens)
