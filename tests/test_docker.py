"""The Dockerfile, read as Docker reads it: it is built by users, not here."""

import json
import re
import shlex
from pathlib import Path

import pytest

from llama_jax.experiment import find
from tests.test_wheel import SOURCES

ROOT = Path(__file__).parents[1]
KNOWN = {"FROM", "ARG", "COPY", "RUN", "WORKDIR", "ENV", "ENTRYPOINT", "CMD"}


def instructions():
    """(instruction, its words) of each line, continued lines joined."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    for line in text.replace("\\\n", " ").splitlines():
        if line.strip():
            name, _, rest = line.partition(" ")
            yield name, rest.strip()


def sent():
    """Top-level names that .dockerignore lets through."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in lines
    return {line[1:] for line in lines if line.startswith("!")}


def test_instructions_are_known_and_stages_stand_before_they_are_used():
    stages = set()
    for name, rest in instructions():
        assert name in KNOWN
        if name == "FROM":
            image, *named = rest.split(" AS ")
            assert ":" in image or image in stages  # an image has a tag
            stages |= set(named)
        if name == "COPY" and "--from=" in rest:
            assert re.search(r"--from=(\w+)", rest)[1] in stages
        if name in ("ENTRYPOINT", "CMD"):
            assert json.loads(rest)


@pytest.mark.parametrize("lock", ["cpu", "tpu"])
def test_what_is_copied_is_there_and_sent(lock):
    copied = [r.split()[:-1] for n, r in instructions() if n == "COPY" and "--from" not in r]
    for source in (path.replace("${LOCK}", lock) for paths in copied for path in paths):
        assert (ROOT / source).exists()
        assert source == "." or source.split("/")[0] in sent()
    assert all((ROOT / name).exists() for name in sent())
    # All that the wheel is built from, and setuptools to build it without the network.
    assert {*SOURCES, "llama_jax", "experiments"} <= sent()
    assert re.search(r"^setuptools==", (ROOT / f"requirements/{lock}.txt").read_text(), re.M)


def test_everything_installed_is_locked():
    installs = [rest for name, rest in instructions() if name == "RUN" and "pip install" in rest]
    assert len(installs) == 2
    assert all("--require-hashes" in line or "--no-index" in line for line in installs)


def suggested():
    """The words of each `docker run ...` of the comment."""
    comment = "\n".join(re.findall(r"^#(.*)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE))
    runs = re.findall(r"docker run (.+)", comment.replace("\\\n", " "))
    assert len(runs) == 3
    return [shlex.split(run) for run in runs]


def test_what_a_container_keeps_lies_in_the_folder_that_is_mounted():
    """Caches are in the home folder, runs in the working directory."""
    last = [rest for name, rest in instructions() if name in ("WORKDIR", "ENV")]
    assert last == ["/work", "HOME=/work"]
    assert all("$PWD:/work" in words for words in suggested())


def test_the_commands_that_it_suggests_exist():
    """`docker run ... IMAGE COMMAND ...` of the comment: experiments are found by name."""
    for words in suggested():
        image = next(i for i, word in enumerate(words) if word.startswith("llama-jax"))
        command, named = words[image + 1 : image + 3]
        assert command == "generate" or Path(find(named)).exists()
