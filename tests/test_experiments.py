"""Every experiment loads from the shell, fits its hardware's arithmetic, and trains when shrunk."""

import math
import re
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import jax
import numpy as np
import pytest

from llama_jax.config import MeshConfig, TrainConfig, load_experiment
from llama_jax.model.presets import TINY
from llama_jax.parallel.arrays import check_batch, shard_batch
from llama_jax.parallel.mesh import make_mesh
from llama_jax.tpu import topology
from llama_jax.tpu.chips import GiB
from llama_jax.tpu.plan import as_json, plan
from llama_jax.train.next_token import NextToken
from llama_jax.train.optimizer import make_optimizer
from llama_jax.train.state import abstract_state, sharded_init, trained_table
from llama_jax.train.step import abstract_batch, jit_train_step

ROOT = Path(__file__).parents[1]
PODS = sorted((ROOT / "experiments" / "tpu").glob("*.py"))
PREDICTED = re.compile(
    r"Predicted (\S+ of \S+) GiB a chip and (\S+) s a step or more:\n"
    r" +llama-jax plan experiments/tpu/(\S+) --topology (\S+)"
)
FAST = {"llama2_7b_32k"}  # the ring, too
SHAPE = ("vocab_size", "d_model", "num_layers", "num_heads", "num_kv_heads", "head_dim", "d_ff")


def shrink(config: TrainConfig) -> TrainConfig:
    """The same recipe for TINY and 8 devices: axes that are split stay split, over two devices."""
    model = replace(
        config.model,
        **{name: getattr(TINY, name) for name in SHAPE},
        max_seq_len=int(16 * config.model.rope_factor),
        dtype="float32",
    )
    axes = {a: size if size in (1, -1) else 2 for a, size in asdict(config.mesh).items()}
    return replace(
        config,
        steps=2,
        batch_size=8 * config.accumulate,
        seq_len=model.max_seq_len,
        model=model,
        mesh=MeshConfig(**axes),
    )


def rows(config: TrainConfig, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shape = (config.batch_size, config.seq_len)
    return {
        "tokens": rng.integers(0, config.model.vocab_size, shape, dtype=np.int32),
        "segment_ids": np.ones(shape, np.int32),
        "positions": np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape),
        "loss_mask": np.ones(shape, np.uint8),
    }


def prepared(config: TrainConfig):
    mesh = make_mesh(config.mesh)
    check_batch(config.batch_size, config.seq_len, config.accumulate, mesh)
    objective = NextToken(config.model)
    tx = make_optimizer(config.optimizer, trained_table(objective), config.steps)
    abstract = abstract_state(objective, tx, mesh)
    return mesh, tx, abstract, jit_train_step(config, objective, tx, abstract)


@pytest.mark.parametrize("path", PODS, ids=lambda p: p.stem)
def test_what_a_file_says_is_what_its_chips_can_split(path):
    """The batch divides over 256 chips (64 where the file says so) and is the paper's in tokens."""
    config = load_experiment([str(path)])
    chips = 64 if "64 chips" in path.read_text() else 256
    sizes = asdict(config.mesh)
    split = config.mesh.sequence * config.mesh.tensor
    chips *= config.mesh.slice
    assert [a for a, size in sizes.items() if size == -1] == ["fsdp"]
    assert config.batch_size // config.accumulate % (chips // split) == 0
    if "Pretrain" in path.read_text():
        assert config.batch_size * config.seq_len == 1 << 22
        assert config.steps * (1 << 22) == pytest.approx(2e12, rel=1e-5)


@pytest.mark.parametrize("path", PODS, ids=lambda p: p.stem)
def test_a_file_says_how_to_run_it(path):
    text = path.read_text()
    assert f"llama-jax train experiments/tpu/{path.name} " in text
    assert PREDICTED.search(text)[3] == path.name


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama2_7b", "llama2_70b_v5p"])
def test_a_file_predicts_what_the_planner_does(name):
    pytest.importorskip("libtpu")
    path = ROOT / "experiments" / "tpu" / f"{name}.py"
    memory, seconds, _, slice_name = PREDICTED.search(path.read_text()).groups()
    planned = as_json(plan(load_experiment([str(path)]), topology.parse(slice_name)))
    used, limit = planned["hbm_bytes_per_chip"]["total"], planned["hbm_limit_bytes"]
    assert f"{used / GiB:.1f} of {limit / GiB:.1f}" == memory
    assert f"{planned['predicted_step_seconds']:.2f}" == seconds


@pytest.mark.parametrize("path", PODS, ids=lambda p: p.stem)
def test_shrunk_it_lowers_for_eight_devices(path):
    config = shrink(load_experiment([str(path)]))
    mesh, _, abstract, step = prepared(config)
    with jax.set_mesh(mesh):
        assert step.lower(abstract, abstract_batch(config, NextToken(config.model), mesh)).as_text()
    assert math.prod(mesh.shape.values()) == 8


@pytest.mark.parametrize(
    "path",
    [pytest.param(p, id=p.stem, marks=() if p.stem in FAST else pytest.mark.slow) for p in PODS],
)
def test_shrunk_it_trains_two_steps(path):
    config = shrink(load_experiment([str(path)]))
    mesh, tx, abstract, step = prepared(config)
    with jax.set_mesh(mesh):
        state = sharded_init(config.seed, NextToken(config.model), tx, abstract)
        for seed in range(2):
            state, metrics = step(state, shard_batch(rows(config, seed), mesh))
            assert float(metrics.loss) == pytest.approx(math.log(config.model.vocab_size), rel=0.2)
    assert int(state.step) == 2
    assert int(metrics.skipped) == 0


def test_the_installed_program_finds_the_parents_of_an_experiment():
    program = Path(sys.executable).with_name("llama-jax")
    if not program.exists():
        program = Path(sys.executable)
    argv = [str(program), "train", "experiments/tpu/llama2_70b.py", "--help"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--process-id" in done.stdout
