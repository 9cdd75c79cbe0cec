"""Console output: results to stdout, everything else to stderr."""

import contextlib
import glob
import importlib.util
import io
import itertools
import logging
import os
import shlex
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from llama_jax.config import require
from llama_jax.runtime.places import expand

PATIENCE_SECONDS = 0.5
"""Longer waits show that something happens."""
LOG_SECONDS = 10.0
"""Interval between progress lines of a command without a terminal."""
_FRAMES = "|/-\\"
_CLEAR = "\r\x1b[K"
_waits: list["_Wait"] = []


def quiet_start() -> None:
    """Set up logging to stderr and output of any text to stdout; keep jax from looking for a
    missing TPU."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[_Handler()])
    if isinstance(sys.stdout, io.TextIOWrapper):
        # What a terminal's encoding cannot say is written as its code, as stderr does.
        sys.stdout.reconfigure(errors="backslashreplace")
    for name in ("jax", "grain", "tensorboardX", "gguf"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Orbax (through absl), the threads that it writes with, and gcsfs print the stacks of failures
    # that reach us as exceptions too, which are told in one line.
    for name in ("absl", "asyncio", "concurrent.futures", "gcsfs", "fsspec"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if "JAX_PLATFORMS" not in os.environ and importlib.util.find_spec("libtpu"):
        chips = glob.glob("/dev/accel*") + glob.glob("/dev/vfio/*")
        gpus = any(importlib.util.find_spec(f"jax_cuda{v}_plugin") for v in (12, 13))
        if not chips and not gpus:
            os.environ["JAX_PLATFORMS"] = "cpu"


@contextlib.contextmanager
def stdout_for_results() -> Iterator[None]:
    """Redirect what libraries write to standard output to stderr: Gloo, which connects hosts
    without accelerators, reports its peers there."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


@contextlib.contextmanager
def waiting(what: str) -> Iterator[Callable[[], None]]:
    """While the block runs, show on a terminal's stderr that something happens, after 0.5 s.

    The block can call the function that it is given to end that: before it prints, or shows
    progress of its own.
    """
    wait = _Wait(what)
    try:
        yield wait.end
    finally:
        wait.end()


@contextlib.contextmanager
def at_work(what: str, *models: str) -> Iterator[Callable[[], None]]:
    """`waiting` for a command that computes with models: missing models raise InputError at once,
    and compiled programs are cached."""
    for model in models:
        there = "://" in model or os.path.exists(expand(model))
        require(there, f"{model} does not exist")
    with waiting(what) as end:
        from llama_jax.runtime.compilation_cache import keep_programs  # which imports jax

        keep_programs()
        yield end


def own_command() -> str:
    """The way to call `llama-jax` from here: by its name if the shell finds it, else by its
    path."""
    if shutil.which("llama-jax"):
        return "llama-jax"
    installed = os.path.join(os.path.dirname(sys.executable), "llama-jax")
    if not os.path.exists(installed):
        return f"{shlex.quote(sys.executable)} -m llama_jax"
    near = os.path.relpath(installed)
    if near.startswith(".."):
        return shlex.quote(installed)
    return shlex.quote(near if os.sep in near else os.path.join(".", near))


class Progress:
    """A bar on a terminal, else a log line every ten seconds; a context whose value is called with
    the amount done and the total.

    begin: called before the first update is shown. unit: what is counted.
    """

    def __init__(self, what: str, begin: Callable[[], None], unit: str = "batches"):
        self._what, self._begin, self._unit, self._said = what, begin, unit, time.monotonic()
        self._bar: Any = None

    def __enter__(self) -> Callable[[int, int], None]:
        return self._take

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def _take(self, done: int, total: int) -> None:
        if self._bar is None:
            from tqdm import tqdm

            self._begin()
            self._bar = tqdm(total=total, desc=self._what, disable=None, leave=False)
            self._first, self._began = done, time.monotonic()
        self._bar.update(done - self._bar.n)
        if self._bar.disable and time.monotonic() - self._said > LOG_SECONDS:
            self._said = time.monotonic()
            line = f"{self._what}: {done} of {total} {self._unit}"
            logging.getLogger(__name__).info("%s%s", line, self._left(done, total))

    def _left(self, done: int, total: int) -> str:
        """How long the rest will take, if it is like what was done since the beginning."""
        if done == self._first:
            return ""
        rate = (time.monotonic() - self._began) / (done - self._first)
        return f", {_duration(rate * (total - done))} left"


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    minutes, seconds = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class _Handler(logging.StreamHandler):
    """Log lines to stderr, above what waits."""

    def emit(self, record: logging.LogRecord) -> None:
        for wait in _waits:
            wait.clear()
        super().emit(record)


class _Wait:
    """A line on stderr that moves; nothing where stderr is no terminal."""

    def __init__(self, what: str):
        self._what, self._ended, self._shown = what, threading.Event(), False
        self._thread = threading.Thread(target=self._run, name="waiting", daemon=True)
        if sys.stderr.isatty():
            _waits.append(self)
            self._thread.start()

    def _run(self) -> None:
        pause = PATIENCE_SECONDS
        for frame in itertools.cycle(_FRAMES):
            if self._ended.wait(pause):
                return
            pause, self._shown = 0.15, True
            sys.stderr.write(f"{_CLEAR}{frame} {self._what}")
            sys.stderr.flush()

    def clear(self) -> None:
        """Free the line for something else; it comes back below."""
        if self._shown:
            sys.stderr.write(_CLEAR)

    def end(self) -> None:
        """Take the line away, for good."""
        self._ended.set()
        if self in _waits:
            self._thread.join()
            _waits.remove(self)
            self.clear()
            sys.stderr.flush()
