"""Every stage, killed with SIGKILL at random moments of its life and started again."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.align.test_bad_input import EXPERIMENT
from tests.train.tiny import digests, facts

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
ROOT = Path(__file__).parents[2]
KILLS = 4
STAGES = {
    "sft": ("checkpoints/6/manifest.json", ["--eval-every", "3"]),
    "reward": ("checkpoints/6/manifest.json", ["--steps", "6", "--eval-every", "3"]),
    "rejection": ("metrics.jsonl", ["--temperatures", "0.8", "1.2"]),
    "ppo": ("checkpoints/4/manifest.json", ["--steps", "4", "--checkpoint.every", "2"]),
    "grpo": ("checkpoints/4/manifest.json", ["--steps", "4", "--checkpoint.every", "2"]),
    "gatt": ("checkpoints/6/manifest.json", ["--steps", "6"]),
    "distill": ("checkpoints/6/manifest.json", ["--steps", "6"]),
}
"""The file that says that a run is complete, and its options."""


def start(folder, stage, workdir, *options, devices=1):
    """The command in a process of its own."""
    file = folder / f"{stage}_experiment.py"
    file.write_text(EXPERIMENT.format(folder=str(folder), stage=stage))
    env = os.environ | {
        "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }  # fmt: skip
    command = {"distill": "distill-context"}.get(stage, stage)
    argv = [sys.executable, "-m", "llama_jax", command, str(file), "--workdir", str(workdir)]
    return subprocess.Popen(
        [*argv, *options], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process):
    out, err = process.communicate(timeout=900)
    assert process.returncode == 0, err
    return out


def what_is_left(run):
    """Everything of a run that does not depend on the machine or on when it was killed."""
    found = {"facts": facts(run)}
    for checkpoint in run.glob("**/checkpoints/*/manifest.json"):
        step = int(checkpoint.parent.name)
        found[str(checkpoint.relative_to(run))] = digests(checkpoint.parents[2], step)
    for pattern in ("completions/*", "samples/*", "round_*/*.json*"):
        for path in run.glob(pattern):
            found[str(path.relative_to(run))] = path.read_bytes()
    return found


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_killed_at_random_moments_leaves_the_same_bytes(chat, tmp_path, stage):
    done, options = STAGES[stage]
    caches = ["--data.cache-dir", str(tmp_path / "cache")]
    begin = time.monotonic()
    finish(start(chat.folder, stage, tmp_path / "reference", *options, *caches))
    seconds = time.monotonic() - begin
    draw, kills, lives = random.Random(stage), 0, 0
    run = tmp_path / "run"
    own = ["--data.cache-dir", str(tmp_path / "own_cache")]
    while kills < KILLS and not (run / done).exists():
        process = start(chat.folder, stage, run, *options, *own)
        time.sleep(draw.uniform(0.1, 1.0) * seconds)
        kills += process.poll() is None
        process.kill()
        process.communicate()
        lives += 1
    finish(start(chat.folder, stage, run, *options, *own))
    assert kills > 0, "no process was alive when it was to be killed"
    found, expected = what_is_left(run), what_is_left(tmp_path / "reference")
    assert {k: v for k, v in found.items() if k in expected} == expected
    assert json.loads((run / "config.json").read_text())["model"]["vocab_size"] == 400
