"""`llama-jax serve` as a process: its one line for bad input, and how it ends."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from functools import partial

import jax
import pytest

from llama_jax import cli
from llama_jax.checkpoint import save_model
from llama_jax.config_file import model_json
from llama_jax.convert.usage import Usage
from llama_jax.data.tokenizer import train_tokenizer
from llama_jax.infer.engine.sizes import tensor_mesh
from llama_jax.model.llama import init_params
from llama_jax.models import open_model
from llama_jax.serve.command import make_engine, served_as
from llama_jax.serve.fields import Fields
from llama_jax.serve.job import completion
from llama_jax.serve.settings import Settings
from tests.infer.engine.tiny import Heard, request
from tests.serve.server import wait_until


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("served") / "tiny"
    tokenizer = model.tokenizer.model_bytes
    save_model(path, model.params, model_json(model.config), tokenizer, {})
    return path


def test_a_model_is_served_as_its_files_say(folder, model):
    """Further ends of text end every answer, and prompts begin as the model's own do."""
    said = replace(open_model(folder), usage=Usage(end_ids=(7, 9), add_bos=False))
    served = served_as(said, Settings(name="m"))
    eos = model.tokenizer.eos_id
    assert (served.end_ids, served.add_bos) == ((eos, 7, 9), False)
    request = completion(Fields({"model": "m", "prompt": "a dog"}), served, b"").requests[0][0]
    assert request.sampling.stop_ids == (eos, 7, 9)
    assert list(request.prompt) == model.tokenizer.encode("a dog", bos=False)


def test_a_model_is_split_over_devices_as_it_is_read(folder):
    """Weights and pages; and the server answers in the engine's own thread."""
    opened, settings = open_model(folder), Settings(name="m", rows=2)
    mesh = tensor_mesh(2, [opened.config])
    answers = []
    for place in (None, mesh):
        engine = make_engine(opened, None, [], settings, place)
        engine.start()
        heard = Heard()
        tickets = engine.submit([request([5, 6, 7], 8)], heard)
        wait_until(partial(heard.all_ended, tickets))
        answers.append(heard.result(tickets[0])[0])
        engine.stop()
        devices = {len(a.sharding.device_set) for a in jax.tree.leaves(engine._device.state)}
        assert devices == {1 if place is None else 2}
        assert engine.compiled.count == 0
    assert answers[0] == answers[1]
    assert len(answers[0]) == 8


def refused(capsys, *arguments):
    assert cli.main(["serve", *map(str, arguments)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


def test_bad_input_is_one_line(capsys, folder, model, tmp_path):
    assert "no-model does not exist" in refused(capsys, tmp_path / "no-model")
    assert "--api-key-file" in refused(capsys, folder, "--host", "0.0.0.0")
    assert "did you mean --port" in refused(capsys, folder, "--prot", "1")
    keys = tmp_path / "keys"
    assert "cannot be read" in refused(capsys, folder, "--api-key-file", keys)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = refused(capsys, folder, "--port", port)
        assert f"127.0.0.1 port {port} is in use" in said
    assert "context=65 is out of range" in refused(capsys, folder, "--context", 65)
    assert "tensor=0 is out of range" in refused(capsys, folder, "--tensor", 0)
    assert "needs 9 devices, and this machine has 8" in refused(capsys, folder, "--tensor", 9)
    assert "is not divisible by 8 (mesh tensor=8)" in refused(capsys, folder, "--tensor", -1)
    assert "rows=0 is out of range" in refused(capsys, folder, "--rows", 0)
    assert "guesses nothing" in refused(capsys, folder, "--draft", folder, "--speculate", 0)
    assert "no-model does not exist" in refused(capsys, folder, "--draft", tmp_path / "no-model")
    other = tmp_path / "other"
    tokens = train_tokenizer(["others say other things"] * 20, 300).model_bytes
    save_model(other, model.params, model_json(model.config), tokens, {})
    assert "has another tokenizer than the model" in refused(capsys, folder, "--draft", other)
    assert f"is not a model but a folder with tiny: name one of them, such as {folder}" in refused(
        capsys, folder.parent
    )
    assert "has no tokenizer" in refused(capsys, untold(folder, tmp_path / "dumb"))
    config = replace(model.config, head="score")
    reward = tmp_path / "reward"
    params = init_params(jax.random.key(0), config)
    save_model(reward, params, model_json(config), model.tokenizer.model_bytes, {})
    assert "is a reward model" in refused(capsys, reward)


def untold(folder, copy):
    """A model without its tokenizer."""
    copy.symlink_to(folder)
    bare = copy.with_name("bare")
    bare.mkdir()
    for entry in folder.iterdir():
        if entry.name != "tokenizer.model":
            (bare / entry.name).symlink_to(entry)
    return bare


@pytest.mark.slow
@pytest.mark.parametrize(("drain", "tensor"), [("60", "1"), ("0", "2")])
def test_sigterm_ends_streams_with_their_last_event_and_exits_0(folder, drain, tensor):
    command = [sys.executable, "-m", "llama_jax", "serve", str(folder), "--port", "0",
               "--drain", drain, "--rows", "2", "--tensor", tensor]  # fmt: skip
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        url = process.stdout.readline().strip()
        host, port = url.removeprefix("http://").split(":")
        connections = []
        for _ in range(4):
            connection = http.client.HTTPConnection(host, int(port), timeout=120)
            body = {"model": "tiny", "prompt": "a", "max_tokens": 60, "stream": True,
                    "ignore_eos": True}  # fmt: skip
            connection.request(
                "POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"}
            )
            connections.append((connection, connection.getresponse()))
        os.kill(process.pid, signal.SIGTERM)
        for connection, response in connections:
            events = response.read().decode().strip().split("\n\n")
            last = json.loads(events[-1][6:]) if drain == "0" and "error" in events[-1] else None
            assert events[-1] == "data: [DONE]" or last["error"]["code"] == "draining"
            connection.close()
        assert process.wait(60) == 0
        assert "Traceback" not in process.stderr.read()


@pytest.mark.slow
def test_a_full_disk_for_logs_keeps_nobody_from_being_answered(folder):
    """Neither the line with the address nor any log line can be written."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "llama_jax", "serve", str(folder), "--port", str(port)]
    with contextlib.ExitStack() as ending:
        full = ending.enter_context(open("/dev/full", "w"))
        process = ending.enter_context(subprocess.Popen(command, stdout=full, stderr=full))
        ending.callback(process.kill)

        def asked(method, path, body=None):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
            headers = {"Content-Type": "application/json"} if body else {}
            connection.request(method, path, json.dumps(body) if body else None, headers)
            response = connection.getresponse()
            response.read()
            connection.close()
            return response.status

        def ready():
            assert process.poll() is None
            try:
                return asked("GET", "/ready") == 200
            except ConnectionRefusedError:
                return False

        wait_until(ready, 300)
        body = {"model": "tiny", "prompt": "a", "max_tokens": 2}
        for _ in range(200):
            assert asked("POST", "/v1/completions", body) == 200
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(60) == 0
