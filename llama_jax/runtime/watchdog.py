"""Watchdog: dumps stack traces and exits when no step finishes in time."""

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType

from etils import epath

HANG_STATUS = 75
"""Exit status of a hang: EX_TEMPFAIL, try again."""


class Watchdog:
    """Context that dumps all stacks and exits with 75 when `beat` is not called for `seconds`.

    The stacks go to stderr and, if it can be written, to the file `report`. 0 seconds: never.
    """

    def __init__(self, seconds: float, report: epath.Path, leave: Callable[[int], None] = os._exit):
        self._seconds, self._report, self._leave = seconds, report, leave
        self._last = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def beat(self) -> None:
        """Report that the run is alive."""
        self._last = time.monotonic()

    def __enter__(self) -> "Watchdog":
        self.beat()
        if self._seconds:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(min(self._seconds / 4, 5.0)):
            silent = time.monotonic() - self._last
            if silent > self._seconds:
                self._dump(silent)
                self._leave(HANG_STATUS)
                return

    def _dump(self, silent: float) -> None:
        text = (
            f"no step ended for {silent:.0f} s (watchdog_seconds={self._seconds:g}): the stacks of "
            f"all threads follow and are kept in {self._report}; exit status {HANG_STATUS}"
        )
        print(text, file=sys.stderr, flush=True)
        faulthandler.dump_traceback(sys.stderr, all_threads=True)
        try:
            with open(self._report, "w") as file:
                file.write(text + "\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
        except OSError:
            pass  # stderr has them; a full disk must not keep a hung run alive
