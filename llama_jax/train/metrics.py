"""Metrics of a run: JSON lines and TensorBoard."""

import io
import json
import logging
import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax
from etils import epath

from llama_jax.checkpoint.storage import can_rename
from llama_jax.config import InputError, ModelConfig
from llama_jax.model.weights import parameter_count
from llama_jax.parallel.devices import peak_flops
from llama_jax.runtime.files import open_file, parse_json
from llama_jax.runtime.places import naming
from llama_jax.train.uploads import Mirror

logger = logging.getLogger(__name__)
METRICS_FILE = "metrics.jsonl"
_MAX_LINE = 1 << 20  # bytes; ours have some hundred
_MAX_DAMAGE = 64 << 20  # bytes without a line's end, behind which nothing is looked for
UPLOAD_SECONDS = 60.0
"""Maximum delay of the metrics of a run in a bucket."""


def flops_per_token(c: ModelConfig, seq_len: int, *, causal: bool) -> float:
    """FLOPs of one token's forward and backward pass in a row of `seq_len` tokens.

    Six for each parameter that multiplies (all but the embedding rows and the norms, which are
    left out as is usual), and 12 T for each of the L*N*H attention columns, half of that if the
    products above the causal diagonal are not counted.
    """
    D = c.d_model
    norms = D * (2 * c.num_layers + 1)
    lookup = 0 if c.tie_embeddings else c.vocab_size * D
    attention = 12 * c.num_layers * c.num_heads * c.head_dim * seq_len
    return 6 * (parameter_count(c) - lookup - norms) + attention * (0.5 if causal else 1.0)


def throughput(c: ModelConfig, seq_len: int, tokens: int, seconds: float) -> dict[str, float]:
    """tokens/s of each device and, where its peak is known, MFU counted both ways."""
    rate = tokens / seconds / jax.device_count()
    values = {"perf/tokens_per_second_per_device": rate}
    peak = peak_flops(jax.devices()[0].device_kind)
    if peak is not None:
        for name, causal in (("causal", True), ("full", False)):
            flops = flops_per_token(c, seq_len, causal=causal)
            values[f"perf/mfu_{name}"] = rate * flops / peak
    return values


class Clock:
    """Wall time of a run by purpose; goodput is the share spent on training steps."""

    def __init__(self):
        self.start = time.perf_counter()
        self.seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, bucket: str) -> Iterator[None]:
        """Count the time of the block for `bucket`."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[bucket] += time.perf_counter() - begin

    def goodput(self) -> float:
        """Seconds in the bucket "step" over all seconds since the start."""
        return self.seconds["step"] / max(time.perf_counter() - self.start, 1e-9)


class MetricsWriter:
    """Appends to RUN/metrics.jsonl and RUN/tensorboard; lines after `step` are dropped first.

    The keys under perf/ and goodput/ depend on the machine; all others are the same for the same
    experiment, killed and resumed or not. On hosts other than 0 nothing is written.
    """

    def __init__(self, workdir: epath.Path, step: int):
        self._main = jax.process_index() == 0
        if not self._main:
            return
        self._mirror = Mirror(workdir)
        path = self._mirror.local / METRICS_FILE
        if path.parent != workdir and (workdir / METRICS_FILE).exists():
            path.write_bytes((workdir / METRICS_FILE).read_bytes())
        _drop_after(path, step)
        self._path, self._file = path, path.open("a")
        folder = self._mirror.local / "tensorboard"
        self._board = _summary_writer()(str(folder), purge_step=step + 1)

    def write(self, step: int, values: Mapping[str, float | int | str]) -> None:
        """One line of JSON; the numbers go to TensorBoard too."""
        if not self._main:
            return
        with naming(self._path):
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            self._file.flush()
        for name, value in values.items():
            if not isinstance(value, str):
                self._board.add_scalar(name, value, step)
        self._mirror.upload(every=UPLOAD_SECONDS)

    def sync(self) -> None:
        """Flush everything written so far to disk, before a checkpoint that relies on it."""
        if self._main:
            with naming(self._path):
                self._file.flush()
                os.fsync(self._file.fileno())
            self._board.flush()
            self._mirror.upload()

    def close(self) -> None:
        """Flush and close the files."""
        if self._main:
            self.sync()
            self._file.close()
            self._board.close()
            self._mirror.close()


def _summary_writer() -> type:
    """tensorboardX's SummaryWriter. It imports torch, for seconds, wherever torch is installed, and
    does as well without: while it is imported torch is as if it were not there."""
    loaded: dict[str, Any] = sys.modules
    theirs = loaded.get("torch")
    loaded["torch"] = theirs  # None stops an import
    try:
        from tensorboardX import SummaryWriter
    finally:
        if theirs is None:
            del loaded["torch"]
    return SummaryWriter


def read_metrics(path: epath.Path) -> list[dict]:
    """The valid lines of a metrics file. The last line may be cut by a kill; other damaged lines
    are skipped with a warning."""
    lines = list(_lines(path))
    if bad := sum(line is None for _, line in lines[:-1]):
        logger.warning("%s: %d damaged lines were left out", path, bad)
    return [line for _, line in lines if line is not None]


def _lines(path: epath.Path) -> Iterator[tuple[bytes, dict | None]]:
    """The bytes of each line, and what it says: None unless it is an object with a step."""
    if not path.exists():
        return
    with open_file(path) if can_rename(path) else path.open("rb") as found:
        # An object store's file knows no limit of a line.
        stored: Any = found
        file = stored if isinstance(stored, io.BufferedReader) else io.BufferedReader(stored)
        endless = 0
        while (raw := file.readline(_MAX_LINE)) and endless < _MAX_DAMAGE:
            endless = 0 if raw.endswith(b"\n") else endless + len(raw)
            try:
                values = parse_json(raw, METRICS_FILE) if raw.endswith(b"\n") else None
            except InputError:
                values = None
            sound = isinstance(values, dict) and type(values.get("step")) is int
            yield raw, values if sound else None


def _drop_after(path: epath.Path, step: int) -> None:
    """Rewrite the file without damaged lines and those of later steps, by rename, if there are
    any."""
    lines = list(_lines(path))
    kept = [raw for raw, line in lines if line is not None and line["step"] <= step]
    if len(kept) < len(lines):
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_bytes(b"".join(kept))
        temporary.replace(path)
