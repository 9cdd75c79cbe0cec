"""Ctrl-C and SIGTERM end a command in one line at any moment, even while libraries load."""

import contextlib
import os
import signal
import sys
from types import FrameType
from typing import NoReturn

_received: list[int] = []


def listen() -> None:
    """Make the first SIGINT or SIGTERM raise KeyboardInterrupt, so that files are closed and
    partial results removed; a second one ends the process at once.

    Signals that are ignored, as under nohup, stay so.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL):
            signal.signal(number, _interrupt)


def received() -> int | None:
    """The signal that was received; None if none was."""
    return _received[0] if _received else None


def ended() -> str:
    """The message and status of a program that a signal, or a KeyboardInterrupt, has ended."""
    return "terminated" if received() == signal.SIGTERM else "interrupted"


def leave(status: int) -> NoReturn:
    """End the process after a signal, without waiting for the threads of libraries."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # a full disk, or a reader that is gone
            stream.flush()
    os._exit(status)


def _interrupt(number: int, frame: FrameType | None) -> None:
    _received.append(number)
    if len(_received) > 1:
        os.write(2, b"llama-jax: error: ended at once by a second signal\n")
        os._exit(128 + number)
    raise KeyboardInterrupt
