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

from llama_jax.align.sft import Answers
from llama_jax.config import MeshConfig, TrainConfig
from llama_jax.config_align import PpoConfig
from llama_jax.experiment import load_experiment, override
from llama_jax.model.presets import TINY
from llama_jax.model.weights import parameter_count
from llama_jax.parallel.arrays import check_batch, shard_batch
from llama_jax.parallel.mesh import make_mesh
from llama_jax.tpu import topology
from llama_jax.tpu.chips import GiB
from llama_jax.tpu.command import EXPERIMENTS
from llama_jax.tpu.compile_step import local_bytes, lower_step
from llama_jax.tpu.plan import as_json, check_divides, plan
from llama_jax.tpu.ppo_plan import ppo_plan
from llama_jax.train.next_token import NextToken
from llama_jax.train.optimizer import make_optimizer
from llama_jax.train.state import abstract_state, saved_part, sharded_init, trained_table
from llama_jax.train.step import abstract_batch, jit_train_step

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "experiments" / "tpu").glob("*.py"))
STAGE = re.compile(r"_(sft|reward|ppo|lora)(_v5e\d+)?$")
STAGES = [path for path in FILES if STAGE.search(path.stem)]
"""Experiments of alignment, by the ends of their names; adapters are fine-tuned."""
PODS = [path for path in FILES if path not in STAGES]
"""Pretraining."""
PREDICTED = re.compile(
    r"Predicted (\S+ of \S+) GiB a chip and (\S+) s an? (?:step|iteration) or more:\n"
    r" +llama-jax plan experiments/tpu/(\S+)(?: --stage \S+)? --topology (\S+)"
)
FAST = {"llama2_7b_32k"}  # the ring, too
SHAPE = ("vocab_size", "d_model", "num_layers", "num_heads", "num_kv_heads", "head_dim", "d_ff")


def stage_of(path: Path) -> str:
    found = STAGE.search(path.stem)
    return {"lora": "sft"}.get(found[1], found[1]) if found else "train"


def load(path: Path) -> TrainConfig:
    return load_experiment([str(path)], kind=EXPERIMENTS[stage_of(path)])


def shrink(config: TrainConfig) -> TrainConfig:
    """The same recipe for TINY and 8 devices: axes that are split stay split, over two devices."""
    model = replace(
        config.model,
        **{name: getattr(TINY, name) for name in SHAPE},
        max_seq_len=int(16 * config.model.rope_factor),
        dtype="float32",
    )
    axes = {a: size if size in (1, -1) else 2 for a, size in asdict(config.mesh).items()}
    few: dict[str, int] = {"batch_size": 8 * config.accumulate}
    if isinstance(config, PpoConfig):
        few |= {"minibatch": 8, "max_new_tokens": 8}
    return replace(
        config,
        **few,
        steps=2,
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
    """The batch divides over 256 chips (64 or 16 where the file says so) and is the paper's in
    tokens."""
    config = load_experiment([str(path)])
    chips = next((n for n in (64, 16) if f" {n} chips" in path.read_text()), 256)
    sizes = asdict(config.mesh)
    split = config.mesh.sequence * config.mesh.tensor
    chips *= config.mesh.slice
    assert [a for a, size in sizes.items() if size == -1] == ["fsdp"]
    assert config.batch_size // config.accumulate % (chips // split) == 0
    if path.read_text().startswith('"""Pretrain '):
        assert config.batch_size * config.seq_len == 1 << 22
        assert config.steps * (1 << 22) == pytest.approx(2e12, rel=1e-5)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_a_file_says_how_to_run_it(path):
    text = path.read_text()
    assert f"llama-jax {stage_of(path)} experiments/tpu/{path.name} " in text
    _, _, name, slice_name = PREDICTED.search(text).groups()
    assert name == path.name
    assert ("--stage" in PREDICTED.search(text)[0]) == (path in STAGES)
    check_divides(load(path), topology.parse(slice_name))


@pytest.mark.parametrize("path", STAGES, ids=lambda p: p.stem)
def test_the_options_of_a_stages_command_are_settings(path):
    """What the command of a docstring says, the stage takes; nothing else has to be given."""
    command = re.search(r"Command   llama-jax \S+ (.*?)\nHardware", path.read_text(), re.DOTALL)[1]
    _, *options = command.replace("\\", " ").split()
    config = override(load(path), options, "llama-jax")
    assert config.workdir.startswith("gs://")
    assert re.fullmatch(r"gs://my-(models/llama2-\d+b|runs/[\w-]+)", config.init_from), "ours alone"
    if config.lora.rank:
        assert (config.lora.rank, config.model.param_dtype) == (16, "bfloat16")
        return
    assert config.seq_len == config.model.max_seq_len == 4096
    rows = 8 if "eight rows" in path.read_text() else 64
    assert config.batch_size == {"sft": rows, "reward": 512, "ppo": 512}[stage_of(path)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama2_70b_v5p", "llama2_7b_reward", "llama2_7b_sft_v5e8"])
def test_a_file_predicts_what_the_planner_does(name):
    pytest.importorskip("libtpu")
    path = ROOT / "experiments" / "tpu" / f"{name}.py"
    memory, seconds, _, slice_name = PREDICTED.search(path.read_text()).groups()
    planned = as_json(plan(load(path), topology.parse(slice_name)))
    used, limit = planned["hbm_bytes_per_chip"]["total"], planned["hbm_limit_bytes"]
    assert f"{used / GiB:.1f} of {limit / GiB:.1f}" == memory
    assert f"{planned['predicted_step_seconds']:.2f}" == seconds


def test_full_fine_tuning_of_a_7b_on_eight_chips_keeps_12_bytes_of_a_parameter_and_saves_2():
    """Parameters and both moments in float32, an eighth to each chip but for the norms, which each
    has whole; weights alone on the disk."""
    config = load(ROOT / "experiments" / "tpu" / "llama2_7b_sft_v5e8.py")
    objective, mesh = Answers(config.model), make_mesh(config.mesh)
    tx = make_optimizer(config.optimizer, trained_table(objective), config.steps)
    state = abstract_state(objective, tx, mesh)
    count, norms = parameter_count(config.model), (2 * 32 + 1) * 4096
    assert count == 6_738_415_616
    numbers = [leaf for leaf in jax.tree.leaves(state) if leaf.dtype == np.float32]
    assert local_bytes(numbers) == 12 * ((count - norms) // 8 + norms)
    saved = saved_part(state, objective, weights_only=config.checkpoint.weights_only)
    assert (
        sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(saved.params)) == 2 * count
    )
    assert len(jax.tree.leaves(saved)) == len(jax.tree.leaves(state.params)) + 3, "three counters"


@pytest.mark.slow
def test_the_ppo_of_a_7b_is_as_its_file_predicts():
    pytest.importorskip("libtpu")
    path = ROOT / "experiments" / "tpu" / "llama2_7b_ppo.py"
    memory, seconds, _, slice_name = PREDICTED.search(path.read_text()).groups()
    config = load(path)
    p = ppo_plan(config, topology.parse(slice_name))
    assert f"{max(p.moments.values()) / GiB:.1f} of {p.limit / GiB:.1f}" == memory
    assert f"{sum(p.seconds.values()):.2f}" == seconds
    assert config.wave_rows <= p.wave_rows


@pytest.mark.parametrize("path", STAGES, ids=lambda p: p.stem)
def test_the_steps_of_a_stage_lower_for_eight_devices(path):
    config = shrink(load(path))
    mesh = make_mesh(config.mesh)
    for part in ("policy", "value") if stage_of(path) == "ppo" else ("",):
        lowered, _, _ = lower_step(config, mesh, part)
        assert "sharding" in lowered.as_text()
    assert math.prod(mesh.shape.values()) == 8


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
