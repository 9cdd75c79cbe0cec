"""Metrics, progress output and watchdog of the stages that have their own loop."""

import contextlib
import logging
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
from etils import epath
from tqdm import tqdm

from llama_jax.config import TrainConfig
from llama_jax.runtime.watchdog import Watchdog
from llama_jax.train.metrics import Clock, MetricsWriter

logger = logging.getLogger(__name__)


def counted[T](items: Iterable[T], total: int, what: str) -> Iterator[T]:
    """The items as they come, with a bar on a terminal or a line in the log for each tenth."""
    begin = time.perf_counter()
    shown = sys.stderr.isatty() and jax.process_index() == 0
    with tqdm(total=total, desc=what, disable=not shown, dynamic_ncols=True) as bar:
        for done, item in enumerate(items, 1):
            yield item
            bar.update()
            if bar.disable and done * 10 // total > (done - 1) * 10 // total:
                left = (time.perf_counter() - begin) / done * (total - done)
                logger.info("%s: %d of %d  ETA %s", what, done, total, tqdm.format_interval(left))


class Progress:
    """Metrics files, progress bar and watchdog of a run that counts iterations; a context."""

    def __init__(
        self, config: TrainConfig, workdir: epath.Path, clock: Clock, start: int, unit: str
    ):
        self.config, self.workdir, self.clock, self.start = config, workdir, clock, start
        self.unit = unit
        self._reported: dict[str, float] = {}
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "Progress":
        self._writer = MetricsWriter(self.workdir, self.start)
        self._stack.callback(self._writer.close)
        host = f"-{jax.process_index()}" if jax.process_index() else ""
        watchdog = Watchdog(self.config.watchdog_seconds, self.workdir / f"hang{host}.txt")
        self._watchdog = self._stack.enter_context(watchdog)
        self._bar = tqdm(
            total=self.config.steps,
            initial=self.start,
            desc=self.config.stage,
            unit=self.unit,
            disable=not (sys.stderr.isatty() and jax.process_index() == 0),
            dynamic_ncols=True,
        )
        self._stack.callback(self._bar.close)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time of the block, and tell the watchdog that the run is alive."""
        with self.clock(name):
            yield
        self._watchdog.beat()

    def report(self, iteration: int, metrics: Mapping[str, Any], said: str) -> None:
        """One line of metrics, and `said` beside the bar or in the log, with the time left.

        The line holds the seconds of each phase since the one before.
        """
        spent = dict(self.clock.seconds)
        seconds = {f"perf/{k}_seconds": v - self._reported.get(k, 0.0) for k, v in spent.items()}
        self._reported = spent
        self._writer.write(iteration, {**metrics, **seconds})
        self._bar.set_postfix_str(said, refresh=False)
        self._bar.update(iteration - self._bar.n)
        if self._bar.disable:
            done = iteration - self.start
            left = sum(self.clock.seconds.values()) / max(done, 1) * (self.config.steps - iteration)
            logger.info(
                "%s %d/%d  %s  ETA %s",
                self.unit,
                iteration,
                self.config.steps,
                said,
                tqdm.format_interval(left),
            )

    def sync(self) -> None:
        """Flush everything written so far to disk, before a checkpoint that relies on it."""
        self._writer.sync()
