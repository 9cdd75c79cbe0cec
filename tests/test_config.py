import dataclasses
import re
import subprocess
import sys
from dataclasses import replace

import pytest

from llama_jax.config import (
    CheckpointConfig,
    DataConfig,
    InputError,
    MeshConfig,
    OptimizerConfig,
    TrainConfig,
)
from llama_jax.experiment import load_experiment
from llama_jax.model.presets import TINY

CONFIG = TrainConfig(
    workdir="runs/x",
    steps=10,
    batch_size=8,
    seq_len=32,
    sample_prompts=("Once", "The"),
    profile_steps=(3, 5),
    model=TINY,
    optimizer=OptimizerConfig(learning_rate=1e-3),
    data=DataConfig(dataset="tales"),
)
EXPERIMENT = """
from llama_jax.config import *
from llama_jax.model.presets import TINY

CONFIG = TrainConfig(
    workdir="runs/x", steps=10, batch_size=8, seq_len=32, model=TINY,
    sample_prompts=("Once", "The"), profile_steps=(3, 5),
    optimizer=OptimizerConfig(learning_rate=1e-3), data=DataConfig(dataset="tales"),
)
"""


@pytest.fixture
def experiment(tmp_path):
    path = tmp_path / "experiment.py"
    path.write_text(EXPERIMENT)
    return str(path)


def refusal(argv):
    """The one line that an impossible command line gets."""
    with pytest.raises(InputError) as error:
        load_experiment(argv)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_an_experiment_is_its_values(experiment):
    assert load_experiment([experiment]) == CONFIG


def test_overrides_reach_every_level(experiment):
    options = (
        "--steps 20 --workdir elsewhere --model.remat full --model.dtype bfloat16 --mesh.fsdp 4 "
        "--optimizer.learning-rate 0.01 --data.dataset a.jsonl --data.tokenizer None "
        "--checkpoint.every 5 --model.tie-embeddings True --sample-prompts A --seed 3"
    )
    loaded = load_experiment([experiment, *options.split()])
    assert loaded == replace(
        CONFIG,
        steps=20,
        workdir="elsewhere",
        seed=3,
        sample_prompts=("A",),
        model=replace(TINY, remat="full", dtype="bfloat16", tie_embeddings=True),
        mesh=MeshConfig(fsdp=4),
        optimizer=replace(CONFIG.optimizer, learning_rate=0.01),
        data=replace(CONFIG.data, dataset="a.jsonl"),
        checkpoint=CheckpointConfig(every=5),
    )


@pytest.mark.parametrize(
    ("option", "nearest"),
    [
        ("--stepz", "--steps"),
        ("--model.rematt", "--model.remat"),
        ("--optimizer.lerning-rate", "--optimizer.learning-rate"),
        ("--checkpoint.evry", "--checkpoint.every"),
    ],
)
def test_an_unknown_option_names_the_nearest(experiment, option, nearest):
    message = refusal([experiment, option, "5"])
    assert option in message
    assert f"did you mean {nearest}?" in message


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--steps many", ["--steps", "many"]),
        ("--steps", ["--steps"]),
        ("--steps 9999999999", ["steps=9999999999 must be below 2147483648"]),
        ("--seq-len 1", ["seq_len=1 must be 2 or more"]),
        ("--optimizer.eps inf", ["optimizer.eps=inf must be 0 or more, and finite"]),
        ("--model.remat some", ["--model.remat", "some", "qkvo"]),
        ("--seq-len 65", ["seq_len=65 exceeds model.max_seq_len=64"]),
        ("--batch-size 9 --accumulate 2", ["batch_size=9 must be divisible by accumulate=2"]),
        ("--model.num-kv-heads 3", ["num_heads=4 must be divisible by model.num_kv_heads=3"]),
        ("--seed 4294967296", ["seed=4294967296 must be less than 4294967296"]),
        ("--profile-steps 5 3", ["profile_steps=5 3 must be the first and the last step"]),
        ("--profile-steps 0 3", ["profile_steps=0 3 must be the first and the last step"]),
        ("--mesh.data -1 --mesh.fsdp -1", ["only one mesh axis may be -1, not data and fsdp"]),
    ],
)
def test_an_impossible_override_is_named(experiment, options, words):
    message = refusal([experiment, *options.split()])
    assert "TrainConfig" not in message
    for word in words:
        assert word in message


def test_an_experiment_that_cannot_be_read_is_named(tmp_path):
    assert "needs an experiment file" in refusal([])
    assert "experiment file first, then its options; got --steps" in refusal(["--steps", "5"])
    assert "experiment absent.py does not exist" in refusal(["absent.py"])
    assert f"experiment {tmp_path} is not a file" in refusal([str(tmp_path)])
    path = tmp_path / "broken.py"
    for text, words in {
        "CONFIG = 1": "needs CONFIG = TrainConfig(...): CONFIG is a int",
        "": "needs CONFIG = TrainConfig(...): it has no CONFIG",
        "CONFIG = 1 / 0": "does not run: ZeroDivisionError",
        "def f(:": "does not run: SyntaxError",
        "from llama_jax.config import *\nMeshConfig(data=0)": "must be positive or -1, not {'data'",
    }.items():
        path.write_text(text)
        assert words in refusal([str(path)])


def test_the_command_line_exits_2_with_one_line(experiment):
    done = subprocess.run(
        [sys.executable, "-m", "llama_jax", "train", experiment, "--stepz", "5"],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert "--steps" in done.stderr


def test_help_shows_the_experiments_values(experiment, capsys):
    with pytest.raises(SystemExit) as end:
        load_experiment([experiment, "--help"])
    assert end.value.code == 0
    said = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    assert "--optimizer.learning-rate" in said
    assert "0.001" in said


IMPOSSIBLE = [
    (TINY, {"d_model": 0}, "model.d_model=0 must be positive"),
    (TINY, {"num_layers": -1}, "model.num_layers=-1 must be positive"),
    (TINY, {"num_kv_heads": 3}, "num_heads=4 must be divisible by model.num_kv_heads=3"),
    (TINY, {"head_dim": 7}, "model.head_dim=7 must be even"),
    (TINY, {"norm_eps": 0.0}, "model.norm_eps=0.0 must be positive"),
    (TINY, {"rope_theta": 1.0}, "model.rope_theta=1.0 must exceed 1"),
    (TINY, {"rope_factor": 0.5}, "model.rope_factor=0.5 must be at least 1"),
    (TINY, {"rope_factor": 2.0}, "rope_scaling=none does not go with model.rope_factor=2.0"),
    (TINY, {"rope_scaling": "yarn"}, "rope_scaling=yarn does not go with model.rope_factor=1.0"),
    (CONFIG.optimizer, {"learning_rate": 0.0}, "learning_rate=0.0 must be positive"),
    (CONFIG.optimizer, {"learning_rate": float("nan")}, "learning_rate=nan must be positive"),
    (CONFIG.optimizer, {"b2": 1.0}, "b2=1.0 must be < 1"),
    (CONFIG.optimizer, {"b1": -0.1}, "optimizer.b1=-0.1 must lie between 0 and 1"),
    (CONFIG.optimizer, {"clip_norm": 0.0}, "clip_norm=0.0 must be positive"),
    (CONFIG.optimizer, {"weight_decay": -1.0}, "weight_decay=-1.0 must be 0 or more, and finite"),
    (CONFIG.data, {"dataset": " "}, "data.dataset is empty"),
    (CONFIG.data, {"workers": -1}, "data.workers=-1 must not be negative"),
    (CONFIG.mesh, {"tensor": 0}, "must be positive or -1, not {'tensor': 0}"),
    (CONFIG.checkpoint, {"every": 0}, "checkpoint.every=0 must be positive"),
    (CONFIG.checkpoint, {"keep": 0}, "checkpoint.keep=0 must be positive"),
    (CONFIG.checkpoint, {"keep_every": -1}, "checkpoint.keep_every=-1 is negative"),
    (CONFIG, {"steps": 0}, "steps=0 must be positive"),
    (CONFIG, {"seed": -1}, "seed=-1 must not be negative"),
    (CONFIG, {"workdir": ""}, "workdir is empty"),
    (CONFIG, {"seq_len": 100}, "seq_len=100 exceeds model.max_seq_len=64"),
]


@pytest.mark.parametrize(("config", "change", "message"), IMPOSSIBLE)
def test_impossible_values_are_refused(config, change, message):
    with pytest.raises(InputError, match=re.escape(message)):
        replace(config, **change)


def test_there_are_under_80_settings():
    def count(cls):
        return sum(
            count(f.type) if dataclasses.is_dataclass(f.type) else 1
            for f in dataclasses.fields(cls)
        )

    assert 50 < count(TrainConfig) < 80


def test_a_config_is_frozen_and_hashable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TINY.d_model = 3
    assert hash(CONFIG) == hash(replace(CONFIG))
