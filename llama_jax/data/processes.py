"""Worker processes that do not re-run the main script.

`multiprocessing` starts its processes by running the main script again. One without a main guard
would train once more in each of them, and one from standard input cannot be run again at all. So
these are plain interpreters that import what a job names, get jobs on their standard input and
answer on their standard output. They end with this process, however that ends.
"""

import contextlib
import json
import os
import pickle
import queue
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

_CODE = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from llama_jax.data.processes import serve
serve()
"""


class Processes:
    """A pool of processes; a context that ends them."""

    def __init__(self, count: int):
        """Raises OSError if they cannot be started."""
        self._workers: list[_Worker] = []
        try:
            for _ in range(count):
                self._workers.append(_Worker())
        except OSError:
            self._close()
            raise

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def map[J, R](self, function: Callable[[J], R], jobs: Sequence[J]) -> Iterator[R]:
        """`function(job)` of every job, in order of completion. The function must belong to a
        module.

        Raises what a job raises, and ChildProcessError if a process dies.
        """
        idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        for worker in self._workers:
            idle.put(worker)

        def run(job: J) -> R:
            worker = idle.get()
            try:
                return worker(function, job)
            finally:
                idle.put(worker)

        with ThreadPoolExecutor(len(self._workers)) as threads:
            futures = [threads.submit(run, job) for job in jobs]
            try:
                yield from (future.result() for future in as_completed(futures))
            except BaseException:
                for future in futures:
                    future.cancel()
                self._close()  # so that the threads, which wait for answers, end
                raise

    def _close(self) -> None:
        for worker in self._workers:
            worker.close()


class _Worker:
    """One process, and the pipes to it."""

    def __init__(self):
        command = [sys.executable, "-c", _CODE, json.dumps(sys.path)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __call__(self, function: Callable, job: Any) -> Any:
        try:
            pickle.dump((function, job), self._process.stdin)  # type: ignore[arg-type]
            self._process.stdin.flush()  # type: ignore[union-attr]
            done, answer = pickle.load(self._process.stdout)  # type: ignore[arg-type]
        except (EOFError, BrokenPipeError, pickle.UnpicklingError) as error:
            raise ChildProcessError(
                f"a process that prepares data ended with status {self._process.wait()}, as when "
                "memory runs out: use fewer of them, such as --data.workers 1"
            ) from error
        if not done:
            raise answer
        return answer

    def close(self) -> None:
        """End the process, at once."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(BrokenPipeError):  # of a job that was cut off
                pipe.close()  # type: ignore[union-attr]


def serve() -> None:
    """Main loop of a worker process: reads jobs and writes answers until there are no more."""
    # Ctrl-C reaches all processes of a terminal; the one that started these ends them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is no answer
    try:
        while True:
            function, job = pickle.load(sys.stdin.buffer)
            pickle.dump(_answer(function, job), answers)
            answers.flush()
    except (EOFError, BrokenPipeError):
        os._exit(0)  # the other process has ended


def _answer(function: Callable, job: Any) -> tuple[bool, Any]:
    try:
        return True, function(job)
    except Exception as error:
        error.add_note(traceback.format_exc())
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:
            error = RuntimeError(traceback.format_exc())
        return False, error
