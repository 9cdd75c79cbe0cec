"""`plan --save`: what it writes, and that training takes its step from there."""

import argparse
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

import llama_jax
from llama_jax import cli
from llama_jax.config import InputError
from llama_jax.parallel.mesh import make_mesh
from llama_jax.pretrain import pretrain as train
from llama_jax.tpu import compile_step
from llama_jax.tpu.command import preset_experiment, run
from llama_jax.tpu.topology import parse
from llama_jax.train.next_token import NextToken
from llama_jax.train.optimizer import make_optimizer
from llama_jax.train.state import trained_table
from llama_jax.train.step import jit_train_step
from tests.tpu.test_plan import FACTS
from tests.train.tiny import Tiny

MODEL = ("--model", "llama2-7b", "--topology", "v5e-256")


@pytest.fixture
def compiler(monkeypatch):
    """Stands for the process that compiles: makes of a step what jax would, and of nothing else."""

    def compiled(command, env, **_):
        cache = Path(env["JAX_COMPILATION_CACHE_DIR"])
        assert not list(cache.iterdir())
        (cache / "jit_step-0a-cache").write_bytes(b"program")
        (cache / "jit_zeros-0b-cache").write_bytes(b"another")
        return subprocess.CompletedProcess(command, 0, json.dumps(compiler.facts))

    compiler.facts = dict(FACTS)
    monkeypatch.setattr(compile_step, "check_libtpu", lambda: None)
    monkeypatch.setattr(compile_step.subprocess, "run", compiled)
    return compiler


def test_the_step_is_added_to_a_folder_and_training_told_where(compiler, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("steps").mkdir()
    Path("steps/jit_step-00-cache").write_bytes(b"of yesterday")
    said = run([*MODEL, "--batch-size", "512", "--save", "steps"], argparse.ArgumentParser)
    folder = tmp_path / "steps"
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {
        "jit_step-00-cache": b"of yesterday",
        "jit_step-0a-cache": b"program",
    }
    assert said.splitlines()[-2:] == [
        f"Saved {folder}/jit_step-0a-cache, 0.0 MB. To train with it, all settings of the step the "
        "same:",
        f"  llama-jax train EXPERIMENT.py --batch-size 512 --compilation-cache {folder}",
    ]
    answer = json.loads(run([*MODEL, "--save", "new/er", "--json"], argparse.ArgumentParser))
    assert answer["saved"] == {"path": f"{tmp_path}/new/er/jit_step-0a-cache", "bytes": 7}


def test_a_step_of_several_slices_is_trained_on_as_many(compiler, tmp_path):
    arguments = ["--model", "llama2-7b", "--topology", "v5e-256x2", "--save", str(tmp_path)]
    assert " --mesh.slice 2 --compilation-cache " in run(arguments, argparse.ArgumentParser)


def test_a_program_that_the_compiler_refuses_is_not_saved(compiler, tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "glob", lambda *_: iter(()))
    kept = ("arguments", "mesh", "versions")
    compiler.facts = {k: FACTS[k] for k in kept} | {"refused": 1 << 40}
    said = run([*MODEL, "--save", str(tmp_path)], argparse.ArgumentParser)
    assert said.endswith("\nNothing was saved: there is no program.")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("option", ["--search", "--decode"])
def test_only_one_training_step_is_saved(option):
    with pytest.raises(InputError, match="drop --search or --decode"):
        run([*MODEL, "--save", "steps", option], argparse.ArgumentParser)


def test_a_folder_that_cannot_be_written_is_refused_first(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(compile_step, "check_libtpu", lambda: None)
    monkeypatch.setattr(compile_step.subprocess, "run", pytest.fail)
    (tmp_path / "file").write_text("")
    assert cli.main(["plan", *MODEL, "--save", str(tmp_path / "file")]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == (
        f"llama-jax: error: --save {tmp_path}/file cannot be written: File exists\n"
    )


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A folder that jax caches every program in; as before afterwards."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    compilation_cache.reset_cache()  # jax looks at the folder's name once
    for name, value in zip(names, (str(tmp_path / "steps"), 0.0), strict=True):
        jax.config.update(name, value)
    yield tmp_path / "steps"
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.mark.slow
def test_training_finds_the_step_that_the_planner_compiled(tmp_path, cache):
    """The same lowering for devices that are here: 8 of a CPU."""
    # An evaluation is a jit_step of its own.
    config = Tiny(tmp_path / "tiny").config("--steps", "4", "--eval-every", "0")
    config = replace(config, compilation_cache=str(cache))
    compile_step.lower_step(config, make_mesh(config.mesh))[0].compile()
    (planned,) = cache.glob("jit_step-*")
    # Settings that are none of the step's.
    other = replace(config, workdir=str(tmp_path / "run"), log_every=2, seed=7)
    train(replace(other, checkpoint=replace(config.checkpoint, every=1)))
    assert list(cache.glob("jit_step-*")) == [planned]
    train(replace(config, workdir=str(tmp_path / "longer"), steps=5))
    assert len(list(cache.glob("jit_step-*"))) == 2, "the learning rate follows `steps`"


@pytest.mark.slow
def test_for_a_tpu_training_lowers_the_same_program():
    """Traced and lowered as `train` does it, but for devices that are not here."""
    pytest.importorskip("libtpu", reason="libtpu is only made for x86-64 Linux")
    place = parse("v5e-4")
    config = replace(preset_experiment("llama2-7b", place), seq_len=512)
    mesh = compile_step.topology_mesh(config, place)
    planned, state, batch = compile_step.lower_step(config, mesh)
    objective = NextToken(config.model)
    tx = make_optimizer(config.optimizer, trained_table(objective), config.steps)
    with jax.set_mesh(mesh):
        trained = jit_train_step(config, objective, tx, state).trace(state, batch).lower()
    assert planned.as_text() == trained.as_text()
    assert "tpu_custom_call" in planned.as_text()


SMALL = (
    "--model", "llama2-7b", "--topology", "v5e-4", "--model.num-layers", "1", "--model.d-model",
    "256", "--model.num-heads", "2", "--model.num-kv-heads", "2", "--model.d-ff", "512",
    "--model.vocab-size", "512", "--seq-len", "512",
)  # fmt: skip


@pytest.mark.slow
def test_for_a_tpu_the_entry_has_one_name_wherever_we_are_installed(tmp_path):
    """Paths are in the program's debug information, and in that of the kernels inside of it."""
    pytest.importorskip("libtpu", reason="libtpu is only made for x86-64 Linux")
    ours = Path(llama_jax.__file__).parent
    names = []
    for folder in ("one", "another/deeper"):
        home = tmp_path / folder
        shutil.copytree(ours, home / "llama_jax", ignore=shutil.ignore_patterns("__pycache__"))
        done = subprocess.run(
            [sys.executable, "-m", "llama_jax", "plan", *SMALL, "--json", "--save", "steps"],
            cwd=home,
            env=os.environ | {"PYTHONPATH": str(home)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        answer = json.loads(done.stdout)
        assert answer["pallas_kernels"] == 3
        path = Path(answer["saved"]["path"])
        assert path.parent == home / "steps"
        assert path.stat().st_size == answer["saved"]["bytes"] > 100_000
        names.append(path.name)
    assert names[0] == names[1]
