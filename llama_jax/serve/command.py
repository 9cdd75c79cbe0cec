"""`llama-jax serve MODEL`: listens at once, loads the model meanwhile, and ends when it is told."""

import asyncio
import contextlib
import errno
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
from jax.sharding import Mesh

from llama_jax.adapters import OpenedAdapter, open_adapter
from llama_jax.config import InputError, require
from llama_jax.data.tokenizer import Tokenizer
from llama_jax.infer.engine.draft_model import DraftModel
from llama_jax.infer.engine.engine import Engine
from llama_jax.infer.engine.sizes import layout_of, tensor_mesh
from llama_jax.models import Opened, open_model
from llama_jax.serve.job import Served
from llama_jax.serve.service import Service
from llama_jax.serve.settings import Settings

logger = logging.getLogger(__name__)
_WATCH_SECONDS = 0.2


class Failed(OSError):
    """The device failed twice within a minute."""


def serve(path: str, settings: Settings) -> int:
    """Serve a model until SIGTERM or SIGINT; the exit status.

    Raises:
      InputError: the model cannot be served, the address is taken, or aiohttp is not installed.
    """
    opened = open_model(path)
    served = served_as(opened, settings)
    draft = None if settings.draft is None else _open_draft(settings.draft, served.tokenizer)
    adapters = [open_adapter(folder, opened) for _, folder in settings.adapters]
    mesh = None
    if settings.tensor != 1:
        models = [opened] if draft is None else [opened, draft]
        mesh = tensor_mesh(settings.tensor, [model.config for model in models])
    with listening(settings) as bound:
        make = partial(make_engine, opened, draft, adapters, settings, mesh)
        return asyncio.run(_serve(Service(settings, served), make, bound))


def served_as(opened: Opened, settings: Settings) -> Served:
    """The model as requests see it. Raises InputError as `serve` does, for the model."""
    tokenizer = opened.tokenizer
    if tokenizer is None:
        raise InputError("the model has no tokenizer: add one with `llama-jax convert --tokenizer`")
    require(
        opened.config.head == "language",
        "the model is a reward model: it scores answers and writes none; name a language model",
    )
    context, most = settings.context, opened.config.max_seq_len
    require(
        context is None or 0 < context <= most,
        f"context={context} is out of range: the model's own is {most} tokens",
    )
    return Served(
        name=settings.name,
        tokenizer=tokenizer,
        context=context or most,
        vocab_size=tokenizer.vocab_size,
        end_ids=tuple(dict.fromkeys((tokenizer.eos_id, *opened.usage.end_ids))),
        add_bos=opened.usage.add_bos,
        adapters=tuple(name for name, _ in settings.adapters),
    )


def _open_draft(path: str, tokenizer: Tokenizer) -> Opened:
    """The model that guesses. Raises InputError if its tokens are not the other's."""
    draft = open_model(path)
    require(draft.config.head == "language", f"the draft model {path} is a reward model")
    own = draft.tokenizer
    require(
        own is not None and own.vocabulary.pieces == tokenizer.vocabulary.pieces,
        f"the draft model {path} has another tokenizer than the model: use one with the same",
    )
    return draft


@contextlib.contextmanager
def listening(settings: Settings):
    """A socket that is bound to the server's address. Raises InputError if it cannot be."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as bound:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind((settings.host, settings.port))
            bound.listen(128)
        except OSError as error:
            where = f"{settings.host} port {settings.port}"
            if error.errno == errno.EADDRINUSE:
                said = f"{where} is in use: end the program that has it, or choose another --port"
                raise InputError(said) from error
            raise InputError(f"cannot listen on {where}: {error.strerror or error}") from error
        yield bound


def make_engine(
    opened: Opened,
    draft: Opened | None,
    adapters: Sequence[OpenedAdapter],
    settings: Settings,
    mesh: Mesh | None = None,
) -> Engine:
    """The engine of a model, warmed up, with guesses of a `draft` model, and adapters."""
    with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
        return _warm_engine(opened, draft, adapters, settings)


def _warm_engine(
    opened: Opened,
    draft: Opened | None,
    adapters: Sequence[OpenedAdapter],
    settings: Settings,
) -> Engine:
    layout = layout_of(
        opened.config,
        rows=settings.rows,
        context=settings.context,
        cache_gib=settings.cache_gib,
        draft=None if draft is None else draft.config,
        kv=settings.kv or ("model" if opened.config.quant is None else opened.config.quant.kv),
    )
    assert opened.tokenizer is not None
    limit = opened.tokenizer.vocab_size
    guesses = None
    if draft is not None:
        guesses = DraftModel(
            _prepared(draft), config=draft.config, layout=layout, vocab_limit=limit
        )
    engine = Engine(
        _prepared(opened),
        config=opened.config,
        layout=layout,
        vocab_limit=limit,
        queue=settings.queue,
        drafts=settings.drafts,
        draft_model=guesses,
        adapters=[adapter.read() for adapter in adapters],
    )

    def tell(number: int, total: int, what: str) -> None:
        logger.info("compiling %d of %d: %s", number, total, what)

    begun = time.monotonic()
    engine.warm_up(tell)
    logger.info(
        "ready after %.1f s; %d rows, %d pages of %d tokens, context %d",
        time.monotonic() - begun, layout.rows,
        engine.scheduler.pool.size, layout.page, layout.max_len,
    )  # fmt: skip
    return engine


def _prepared(opened: Opened) -> dict[str, Any]:
    """The weights as generation reads them, and nothing else: the parameters are freed."""
    return opened.generator().prepared


async def _serve(service: Service, make: Callable[[], Engine], bound: socket.socket) -> int:
    try:
        from aiohttp import web

        from llama_jax.serve.app import runner as make_runner
    except ModuleNotFoundError as error:
        raise InputError(f"serving needs {error.name}: pip install aiohttp") from error
    host, port = bound.getsockname()[:2]
    runner = make_runner(service)
    await runner.setup()
    await web.SockSite(runner, bound, backlog=128).start()
    ending = _on_signals()
    loading = asyncio.ensure_future(_in_thread(make))
    try:
        await asyncio.wait((loading, ending), return_when=asyncio.FIRST_COMPLETED)
        if not ending.done():
            engine = loading.result()
            engine.start()
            service.engine = engine
            url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
            logger.info("serving %s; the page to talk to it is %s/", service.settings.name, url)
            with contextlib.suppress(OSError):  # a full disk keeps nobody from being answered
                print(url, flush=True)
            while not (ending.done() or engine.broken):
                await asyncio.wait((ending,), timeout=_WATCH_SECONDS)
            await _drain(service)
            if engine.broken:
                raise Failed("the device failed twice within a minute")
            engine.stop()
    finally:
        await runner.cleanup()
    return 0


async def _drain(service: Service) -> None:
    """Take nothing new, and let what runs come to its end, or end it when the time is over."""
    service.draining = True
    if service.open:
        logger.info("ending: %d requests are being answered", len(service.open))
    until = time.monotonic() + service.settings.drain_seconds
    while service.open and time.monotonic() < until:
        await asyncio.sleep(0.02)
    service.end_all()


def _on_signals() -> asyncio.Future[None]:
    """Done when the first SIGTERM or SIGINT comes; the second ends the process at once."""
    loop = asyncio.get_running_loop()
    ending = loop.create_future()

    def end(number: int) -> None:
        if ending.done():
            os._exit(128 + number)
        ending.set_result(None)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end, number)
    return ending


async def _in_thread[T](work: Callable[[], T]) -> T:
    """Like asyncio.to_thread, in a thread that does not keep the process from ending."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if not done.cancelled():
            if error is None:
                done.set_result(result)  # pyrefly: ignore
            else:
                done.set_exception(error)

    def run() -> None:
        try:
            settled = work(), None
        except BaseException as error:
            settled = None, error
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(settle, *settled)

    threading.Thread(target=run, name="loading", daemon=True).start()
    return await done
