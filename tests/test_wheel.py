"""The sdist and the wheel, installed where nothing else of the project is: every command works, no
torch or TensorFlow is imported and nothing asks the network.

The new environment borrows the requirements of the one that runs the tests, by a .pth file, so that
nothing is downloaded. An audit hook writes down whom its processes call.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = ("setup.py", "setup.cfg", "pyproject.toml", "README.md", "LICENSE")
BUILD = "import sys; from setuptools import build_meta as b; print(getattr(b, sys.argv[1])('dist'))"
# Hosts that are looked up and addresses outside this machine that are called or listened on.
HOOK = """
import sys
def listen(event, args):
    if event == "socket.getaddrinfo":
        what = args[0]
    elif event in ("socket.connect", "socket.sendto", "socket.bind") and type(args[1]) is tuple:
        what = args[1][0]
    else:
        return
    if what not in ("::1", "127.0.0.1"):
        with open({heard!r}, "a") as file:
            print(event, what, *sys.argv[:3], file=file)
sys.addaudithook(listen)
"""
# What stands in for a library that must not be imported where it is installed.
UNWANTED = """
import sys
with open({heard!r}, "a") as file:
    print("import", __name__, *sys.argv[:3], file=file)
raise ImportError("unwanted")
"""
TINY = (
    *("--steps", "2", "--batch-size", "2", "--seq-len", "32"),
    *("--eval-every", "2", "--eval-batches", "1"),
    *("--data.dataset", "tales:60", "--data.workers", "0", "--data.cache-dir", "cache"),
    *("--compilation-cache", "cache/jax"),
    *("--model.vocab-size", "320", "--model.d-model", "16", "--model.num-layers", "1"),
    *("--model.num-heads", "2", "--model.num-kv-heads", "2", "--model.head-dim", "8"),
    *("--model.d-ff", "32", "--model.max-seq-len", "64"),
)
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def call(*argv, cwd, **env):
    """stdout of a program that knows nothing of this repository."""
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "XLA_FLAGS")}
    done = subprocess.run(
        [*map(str, argv)], cwd=cwd, env=kept | env, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{argv}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The sdist of a clean copy, and the wheel that is built from what is in the sdist."""
    folder = tmp_path_factory.mktemp("built")
    source = folder / "source"
    skip = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("llama_jax", "experiments"):
        shutil.copytree(ROOT / name, source / name, ignore=skip)
    for name in SOURCES:
        shutil.copy(ROOT / name, source)
    call(sys.executable, "-c", BUILD, "build_sdist", cwd=source)
    (sdist,) = (source / "dist").iterdir()
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    unpacked = folder / sdist.name.removesuffix(".tar.gz")
    call(sys.executable, "-c", BUILD, "build_wheel", cwd=unpacked)
    (wheel,) = (unpacked / "dist").iterdir()
    return wheel


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """installed(command, *args): stdout of `llama-jax command` in a folder without anything."""
    folder = tmp_path_factory.mktemp("elsewhere")
    call(sys.executable, "-m", "venv", "--without-pip", "venv", cwd=folder)
    python = folder / "venv/bin/python"
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python)
    call(*pip, "install", "--no-deps", "--no-index", built, cwd=folder)
    (site,) = (folder / "venv/lib").glob("python*/site-packages")
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\nimport hook\n")
    heard = folder / "heard"
    (site / "hook.py").write_text(HOOK.format(heard=str(heard)))
    for name in ("torch", "tensorflow", "transformers"):
        (site / f"{name}.py").write_text(UNWANTED.format(heard=str(heard)))

    def run(*args, program="venv/bin/llama-jax"):
        return call(program, *args, cwd=folder, HOME=str(folder))

    run.folder, run.heard, run.site = folder, heard, site
    return run


def test_the_wheel_has_what_a_program_reads_and_nothing_at_the_top_level(built):
    names = zipfile.ZipFile(built).namelist()
    inside = "llama_jax/_project/experiments/"
    shipped = {n.removeprefix(inside) for n in names if n.startswith(inside)}
    files = [p for p in (ROOT / "experiments").rglob("*") if p.is_file() and p.suffix != ".pyc"]
    assert shipped == {p.relative_to(ROOT / "experiments").as_posix() for p in files}
    own = {p for p in (ROOT / "llama_jax").rglob("*") if p.suffix in (".py", ".toml", ".html")}
    assert {p.relative_to(ROOT).as_posix() for p in own} <= set(names)
    assert {name.split("/")[0] for name in names} == {"llama_jax", "llama_jax-0.1.0.dist-info"}


def test_installed_alone_it_runs_every_kind_of_command(installed):
    code = "import llama_jax; print(llama_jax.__file__)"
    where = installed("-c", code, program="venv/bin/python")
    assert where.startswith(str(installed.site))
    listed = json.loads(installed("experiments", "--json"))["experiments"]
    assert all(e["path"].startswith(str(installed.site)) for e in listed)
    installed("new", "mine")
    assert "step 2 of 2: complete" in installed("train", "mine/experiment.py", *TINY)
    options = [*TINY, "--sample-prompts", "Once", "--checkpoint.every", "2"]
    assert "step 2 of 2: complete" in installed("train", "quickstart", *options)
    run = "runs/quickstart"
    text = installed("generate", run, "--prompt", "One", "--max-new-tokens", "4")
    assert text.startswith("One")
    assert "report.html" in installed("report", run)
    assert "perplexity" in installed("eval", run)
    assert "all digests agree" in installed("verify", run)
    assert json.loads(installed("convert", run, "hf", "--to", "hf", "--json"))
    for command in ("sft", "reward", "dpo", "rejection", "ppo", "gatt"):
        name = next(e["name"] for e in listed if e["command"] == command)
        assert "--workdir" in installed(command, name, "--help")
    for command in ("chat", "serve", "kernels", "plan", "data", "tokenizer", "distill-context"):
        assert "usage" in installed(command, "--help")
    unwanted = installed.heard.read_text() if installed.heard.exists() else ""
    assert unwanted == ""


def test_what_is_heard_would_be_told(installed):
    """The hook of the test above sees a name that is looked up and a library that is imported."""
    before = installed.heard.read_text() if installed.heard.exists() else ""
    code = (
        "import contextlib, socket\n"
        "with contextlib.suppress(ImportError): import torch\n"
        "socket.getaddrinfo('localhost', 1)\n"
        "socket.socket().bind(('127.0.0.1', 0))\n"
    )
    installed("-c", code, program="venv/bin/python")
    lines = installed.heard.read_text().removeprefix(before).splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["import", "torch"], ["socket.getaddrinfo", "localhost"],
    ]  # fmt: skip
    installed.heard.write_text(before)
