"""Contestants that take turns: one process each, and only one of them works at a time.

A B A B ...: whatever else the machine does meets all of them. Those that wait sleep.
"""

import subprocess
import sys
import time
from collections.abc import Iterator

# OpenMP's threads go on spinning for a while after a turn (0.2 s in Intel's runtime), and would
# take a core of the next.
REST_SECONDS = 0.5


def serve(seconds: Iterator[float]) -> None:
    """The contestant's side: for each line of stdin, the seconds of its next turn on a line."""
    for _ in sys.stdin:
        print(next(seconds), flush=True)


class Worker:
    """A process of `serve`."""

    def __init__(self, *command: str):
        self.name = " ".join(command)
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def turn(self) -> float:
        """Seconds of the worker's next turn; SystemExit if it has died."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write("\n")
            self.process.stdin.flush()
            return float(self.process.stdout.readline())
        except (OSError, ValueError) as error:
            raise SystemExit(f"{self.name} ended; see above") from error

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.communicate()


def take_turns(workers: dict[str, Worker], warmup: int, turns: int) -> dict[str, list[float]]:
    """Seconds of each worker's turns after the first `warmup`; ends the workers."""
    seconds: dict[str, list[float]] = {side: [] for side in workers}
    try:
        for _ in range(warmup + turns):
            for side, worker in workers.items():
                seconds[side].append(worker.turn())
                time.sleep(REST_SECONDS)
    finally:
        for worker in workers.values():
            worker.close()
    return {side: taken[warmup:] for side, taken in seconds.items()}
