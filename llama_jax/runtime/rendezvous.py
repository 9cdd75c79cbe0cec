"""Says for whom a program waits while its hosts find each other, which takes five minutes to fail.

The coordination service tells nobody who has come. So every other host sends a datagram with its
number to host 0, to the port that the service has for TCP, until all have met.
"""

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator

logger = logging.getLogger(__name__)
PATIENCE_SECONDS = 30.0
"""After so long the missing hosts are named."""
_PULSE_SECONDS = 0.5
_MARK = b"llama_jax host "
# Who says how many hosts there are: the first of these that is set.
_COUNTS = ("JAX_NUM_PROCESSES", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")

Place = tuple[str, int, int]
"""Address HOST:PORT of host 0, this host's number, and how many there are."""


@contextlib.contextmanager
def announced(place: Callable[[], Place | None], given: int | None) -> Iterator[None]:
    """While the block waits, log for whom, at once and, if it lasts, once more with who is missing.

    place: None until it is known. given: the number of hosts if an option says it.
    """
    ended = threading.Event()
    thread = threading.Thread(target=_watch, args=(place, given, ended), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _watch(place: Callable[[], Place | None], given: int | None, ended: threading.Event) -> None:
    while (found := place()) is None:
        if ended.wait(0.05):
            return
    address, number, count = found
    if count < 2:
        return
    others = "1 other" if count == 2 else f"{count - 1} others"
    text = "host %d of %d (%s) waits for %s at %s; to run alone, add --num-processes 1"
    logger.warning(text, number, count, _said(given, count), others, address)
    host, _, port = address.rpartition(":")
    with contextlib.suppress(OSError):  # without datagrams nobody is missed by name
        roll = _Roll(host.strip("[]"), int(port), number)
        start = time.monotonic()
        while not ended.wait(_PULSE_SECONDS):
            roll.pulse()
            if time.monotonic() - start > PATIENCE_SECONDS:
                logger.warning("after %.0f s %s", PATIENCE_SECONDS, roll.missing(count))
                start = float("inf")
        roll.pulse()
        roll.close()


def _said(given: int | None, count: int) -> str:
    if given is not None:
        return "--num-processes"
    name = next((name for name in _COUNTS if os.environ.get(name) == str(count)), None)
    return f"{name}={count}" if name else "as the machine says"


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
