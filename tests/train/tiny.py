"""A whole experiment that trains in seconds: its own corpus, tokenizer, data cache and file."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from llama_jax.config import TrainConfig
from llama_jax.data.corpora.tales import story
from llama_jax.experiment import load_experiment

EXPERIMENT = """\
from dataclasses import replace
from llama_jax.config import CheckpointConfig, DataConfig, OptimizerConfig, TrainConfig
from llama_jax.model.presets import TINY

CONFIG = TrainConfig(
    workdir={workdir!r},
    steps=12,
    batch_size=8,
    seq_len=64,
    log_every=1,
    eval_every=6,
    model=replace(TINY, vocab_size=400, d_model=16, d_ff=32),
    optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=2),
    data=DataConfig(dataset={corpus!r}, cache_dir={cache!r}, workers=1),
    checkpoint=CheckpointConfig(every=4, keep=2),
    compilation_cache={programs!r},
)
"""


class Tiny:
    """The experiment's files under one folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        corpus = folder / "stories.jsonl"
        if not corpus.exists():
            folder.mkdir(parents=True, exist_ok=True)
            lines = [json.dumps({"text": story(i)}) + "\n" for i in range(200)]
            corpus.write_text("".join(lines))
        self.file = folder / "experiment.py"
        self.file.write_text(
            EXPERIMENT.format(
                workdir=str(folder / "run"),
                corpus=str(corpus),
                cache=str(folder / "cache"),
                programs=os.environ["JAX_COMPILATION_CACHE_DIR"],  # all tests share it
            )
        )

    def config(self, *overrides: str) -> TrainConfig:
        """The experiment with command-line overrides."""
        return load_experiment([str(self.file), *overrides])

    def start(
        self, *overrides: str, devices: int = 1, program: Sequence[str] = ("-m", "llama_jax")
    ) -> subprocess.Popen:
        """`llama-jax train` in a process of its own."""
        env = dict(
            os.environ,
            JAX_PLATFORMS="cpu",
            PYTHONPATH=str(Path(__file__).parents[2]),
            XLA_FLAGS=f"--xla_force_host_platform_device_count={devices}",
        )
        command = [sys.executable, *program, "train", str(self.file), *overrides]
        return subprocess.Popen(
            command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def run(self, *overrides: str, devices: int = 1) -> tuple[int, str, str]:
        """Status, stdout and stderr of `llama-jax train`."""
        process = self.start(*overrides, devices=devices)
        out, err = process.communicate(timeout=300)
        return process.returncode, out, err


def facts(run: Path) -> list[dict]:
    """The metrics of a run without what depends on the machine."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [
        {k: v for k, v in json.loads(line).items() if not k.startswith(("perf/", "goodput/"))}
        for line in lines
    ]


def digests(run: Path, step: int) -> dict:
    """Digest of every array of a checkpoint, from its manifest."""
    manifest = json.loads((run / "checkpoints" / str(step) / "manifest.json").read_text())
    return manifest["arrays"]
