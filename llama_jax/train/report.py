"""Console reporting of training: metric lines, the progress bar, skipped updates."""

import contextlib
import json
import logging
import sys
import time
import zlib
from collections.abc import Iterator, Mapping

import jax
import numpy as np
import optax
from etils import epath
from tqdm import tqdm

from llama_jax.config import TrainConfig
from llama_jax.runtime.watchdog import Watchdog
from llama_jax.train.metrics import Clock, MetricsWriter, throughput
from llama_jax.train.step import StepMetrics

logger = logging.getLogger(__name__)


class TrainingError(RuntimeError):
    """Training cannot continue. The command line prints one line and exits with status 1."""


class Reporter:
    """Reports each step one step late, when its metrics have arrived and the next one runs.

    Owns the metrics files, the progress bar and the watchdog; a context that closes them.
    """

    def __init__(
        self,
        config: TrainConfig,
        workdir: epath.Path,
        clock: Clock,
        schedule: optax.Schedule,
        start: int,
    ):
        self.config, self.workdir, self.clock, self.schedule = config, workdir, clock, schedule
        self.loss: float | None = None
        """Loss of the last step reported."""
        self._pending: tuple[int, StepMetrics, np.ndarray] | None = None
        self._refused: list[tuple[int, list[int]]] = []
        self._since = (start, time.perf_counter(), 0.0)
        self._stack = contextlib.ExitStack()
        self._start = start

    def __enter__(self):
        self._writer = MetricsWriter(self.workdir, self._start)
        self._stack.callback(self._writer.close)
        host = f"-{jax.process_index()}" if jax.process_index() else ""
        watchdog = Watchdog(self.config.watchdog_seconds, self.workdir / f"hang{host}.txt")
        self._watchdog = self._stack.enter_context(watchdog)
        shown = sys.stderr.isatty() and jax.process_index() == 0
        self._bar = tqdm(
            total=self.config.steps,
            initial=self._start,
            desc="train",
            unit="step",
            disable=not shown,
            dynamic_ncols=True,
        )
        self._stack.callback(self._bar.close)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def beat(self) -> None:
        """Tell the watchdog that the run is alive."""
        self._watchdog.beat()

    def write(self, step: int, values: Mapping[str, float | int | str]) -> None:
        """Write values of a step to the metrics files."""
        self._writer.write(step, values)

    def sync(self) -> None:
        """Report the step in flight and flush all lines to disk."""
        self.settle()
        self._writer.sync()

    @contextlib.contextmanager
    def aside(self, bucket: str) -> Iterator[None]:
        """Time outside the steps: counted in `bucket`, left out of step times."""
        self.settle()
        begin = time.perf_counter()
        with self.clock(bucket):
            yield
        step, at, waited = self._since
        self._since = (step, at + time.perf_counter() - begin, waited)
        self.beat()

    def take(self, step: int, metrics: StepMetrics, ids: np.ndarray) -> None:
        """Record a step that was dispatched, and report the one before, which is done by now."""
        before, self._pending = self._pending, (step, metrics, ids)
        if before is not None:
            self._report(*before)

    def settle(self) -> None:
        """Wait for the step in flight and report it."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            with self.clock("step"):
                self._report(*pending)

    def _report(self, step: int, metrics: StepMetrics, ids: np.ndarray) -> None:
        values = jax.device_get(metrics)
        self.loss = float(values.loss)
        self.beat()
        self._count_refused(step, int(values.skipped), ids)
        if step % self.config.log_every and step != self.config.steps:
            return
        since, at, waited = self._since
        now, wait = time.perf_counter(), self.clock.seconds["data_wait"]
        seconds = (now - at) / (step - since)
        tokens = self.config.batch_size * self.config.seq_len
        rate = throughput(self.config.model, self.config.seq_len, tokens, seconds)
        line = {
            "train/loss": self.loss,
            "train/grad_norm": float(values.grad_norm),
            "train/learning_rate": float(np.asarray(self.schedule(int(values.updates)))),
            "train/skipped": int(values.skipped),
            **{f"train/{name}": float(value) for name, value in values.means.items()},
            "data/batch": f"{zlib.crc32(ids.tobytes()):08x}",
            "perf/step_seconds": seconds,
            **rate,
            "perf/data_wait_seconds": (wait - waited) / (step - since),
            "goodput/share": self.clock.goodput(),
        }
        self._writer.write(step, line)
        self._since = (step, now, wait)
        self._show(step, tokens / seconds, seconds)

    def _show(self, step: int, speed: float, seconds: float) -> None:
        self._bar.set_postfix_str(f"loss {self.loss:.3f}, {speed:,.0f} tokens/s", refresh=False)
        self._bar.update(step - self._bar.n)
        if self._bar.disable:
            eta = tqdm.format_interval((self.config.steps - step) * seconds)
            text = "step %d/%d  loss %.3f  %s tokens/s  ETA %s"
            logger.info(text, step, self.config.steps, self.loss, f"{speed:,.0f}", eta)

    def _count_refused(self, step: int, in_a_row: int, ids: np.ndarray) -> None:
        """Remember the batches of non-finite updates; stop when there are too many in a row."""
        if not in_a_row:
            self._refused.clear()
            return
        self._refused.append((step, ids.tolist()))
        logger.warning("step %d: non-finite gradient, update skipped (%d in a row)", step, in_a_row)
        if in_a_row < self.config.max_skipped:
            return
        report = self.workdir / "nonfinite.json"
        if jax.process_index() == 0:
            steps = [{"step": s, "records": r} for s, r in self._refused]
            report.write_text(json.dumps(steps) + "\n")
        raise TrainingError(
            f"{in_a_row} non-finite updates in a row (max_skipped={self.config.max_skipped}), up "
            f"to step {step} with records {ids[:8].tolist()}...: all are in {report}; resume from "
            "the last checkpoint with a lower --optimizer.learning-rate, or look at those records"
        )
