"""Reports which hosts are missing at start-up, where a program would wait five minutes to fail.

The coordination service does not report who has joined. So every other host sends a datagram with
its number to host 0, to the port that the service has for TCP, until all have joined.
"""

import contextlib
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator

from llama_jax.runtime import interrupts

logger = logging.getLogger(__name__)
PATIENCE_SECONDS = 30.0
"""Time after which the missing hosts are named."""
MEETING_SECONDS = 300.0
"""Time after which the hosts that have joined give up."""
_PULSE_SECONDS = 0.5
_MARK = b"llama_jax host "
# Who says how many hosts there are: the first of these that is set.
_COUNTS = ("JAX_NUM_PROCESSES", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")

Place = tuple[str, int, int]
"""Address HOST:PORT of host 0, this host's number, and how many there are."""


@contextlib.contextmanager
def announced(place: Callable[[], Place | None], given: int | None) -> Iterator[None]:
    """While the block waits, log which hosts it waits for: at once and, if it lasts, again with
    those missing.

    The block is a library call that ignores signals and ends the process, with its stack, when the
    hosts do not meet. So this context ends it in one line, after a signal or then.

    place: None until it is known. given: the number of hosts if an option sets it.
    """
    ended = threading.Event()
    with _signals() as signals:
        watch = (place, given, ended, signals)
        thread = threading.Thread(target=_watch, args=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


@contextlib.contextmanager
def _signals() -> Iterator[socket.socket]:
    """What gets a byte, its number, for each signal, whatever the main thread does."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.setblocking(False)
        if threading.current_thread() is not threading.main_thread():
            yield ours  # only the main thread may ask for it
            return
        before = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
        try:
            yield ours
        finally:
            signal.set_wakeup_fd(before)


def _end_if_asked(signals: socket.socket, ended: threading.Event) -> None:
    """End the process in a line if a signal came that the main thread has no ear for."""
    try:
        numbers = set(signals.recv(64)) & {signal.SIGINT, signal.SIGTERM}
    except BlockingIOError:
        return
    if numbers and not ended.wait(_PULSE_SECONDS):
        number = min(numbers)
        said = "terminated" if number == signal.SIGTERM else "interrupted"
        _end(f"{said} while the hosts find each other", 128 + number)


def _end(line: str, status: int) -> None:
    os.write(2, f"llama-jax: error: {line}\n".encode())
    interrupts.leave(status)


def _watch(
    place: Callable[[], Place | None],
    given: int | None,
    ended: threading.Event,
    signals: socket.socket,
) -> None:
    while (found := place()) is None:
        if ended.wait(0.05):
            return
        _end_if_asked(signals, ended)
    address, number, count = found
    if count < 2:
        return
    others = "1 other" if count == 2 else f"{count - 1} others"
    text = "host %d of %d (%s) waits for %s at %s; to run alone, add --num-processes 1"
    logger.warning(text, number, count, _said(given, count), others, address)
    host, _, port = address.rpartition(":")
    roll: _Roll | None = None
    with contextlib.suppress(OSError):  # without datagrams nobody is missed by name
        roll = _Roll(host.strip("[]"), int(port), number)
    start, said = time.monotonic(), False
    while not ended.wait(_PULSE_SECONDS):
        _end_if_asked(signals, ended)
        waited = time.monotonic() - start
        if roll:
            roll.pulse()
        if waited > PATIENCE_SECONDS and not said:
            logger.warning("after %.0f s %s", PATIENCE_SECONDS, _missing(roll, count))
            said = True
        if waited > MEETING_SECONDS:
            _end(f"the hosts did not meet in {waited:.0f} s: {_missing(roll, count)}", 1)
    if roll:
        roll.pulse()
        roll.close()


def _said(given: int | None, count: int) -> str:
    if given is not None:
        return "--num-processes"
    name = next((name for name in _COUNTS if os.environ.get(name) == str(count)), None)
    return f"{name}={count}" if name else "as the machine says"


def _missing(roll: "_Roll | None", count: int) -> str:
    return roll.missing(count) if roll else "which are missing cannot be told on this machine"


class _Roll:
    """Who has come: host 0 listens, the others call."""

    def __init__(self, host: str, port: int, number: int):
        self._host, self._port, self._number = host, port, number
        family = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0][0]
        self._socket = socket.socket(family, socket.SOCK_DGRAM)
        self._here = {number}
        if number == 0:
            self._socket.setblocking(False)
            self._socket.bind(("", port))

    def pulse(self) -> None:
        """Call, or listen."""
        if self._number:
            with contextlib.suppress(OSError):
                self._socket.sendto(_MARK + b"%d" % self._number, (self._host, self._port))
            return
        with contextlib.suppress(BlockingIOError):
            while True:
                said = self._socket.recv(64)
                if said.startswith(_MARK) and said.removeprefix(_MARK).isdigit():
                    self._here.add(int(said.removeprefix(_MARK)))

    def missing(self, count: int) -> str:
        """Who is, in words."""
        if self._number == 0:
            absent = [str(i) for i in range(count) if i not in self._here]
            shown = ", ".join(absent[:8]) + (", ..." if len(absent) > 8 else "")
            return f"host 0 has not heard of: {shown}" if absent else "all hosts have called"
        try:
            socket.create_connection((self._host, self._port), timeout=5).close()
        except OSError as error:
            return f"host 0 does not answer at {self._host}:{self._port}: {error}"
        return "host 0 is there and waits for others; its log names them"

    def close(self) -> None:
        """Free the port."""
        self._socket.close()
