"""Temporary folders: unique, removed, and nothing else ever is."""

import subprocess
import sys

import pytest

from llama_jax.config import InputError
from llama_jax.convert import api
from llama_jax.convert.staging import MARK, staged
from tests.convert.models import BASE, save

LEFT = "model.0123abcd.llama-jax.tmp"


def test_folders_that_are_not_ours_stay(tmp_path):
    """Whatever they are called: c36."""
    save(tmp_path / "a", BASE)
    names = ("b.tmp", "b.old.tmp", ".b.tmp", "b.0123abcd.llama-jax.tmp", "b.0123abcd.tmp")
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "notes.txt").write_text("three weeks of notes")
    api.convert(tmp_path / "a", tmp_path / "b")
    assert {p.name for p in tmp_path.iterdir()} == {"a", "b", *names}
    for name in names:
        assert (tmp_path / name / "notes.txt").read_text() == "three weeks of notes"


def test_an_empty_folder_becomes_the_result(tmp_path):
    (tmp_path / "model").mkdir()
    with staged(tmp_path / "model", is_file=False) as folder:
        (folder / "x").write_text("1")
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    assert [p.name for p in (tmp_path / "model").iterdir()] == ["x"]


def make(target, is_file, meanwhile=lambda: None, **files):
    """Stage a result of files, while something else happens."""
    with staged(target, is_file=is_file) as folder:
        for name, text in files.items():
            (folder / name).write_text(text)
        meanwhile()


def test_a_file_and_what_lies_beside_it(tmp_path):
    make(tmp_path / "model", True, model="1", tokenizer="2")
    make(tmp_path / "again", True, again="3", tokenizer="2")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again", "model", "tokenizer"]
    with pytest.raises(InputError, match="tokenizer already exists and belongs to a different"):
        make(tmp_path / "other", True, other="4", tokenizer="5")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again", "model", "tokenizer"]
    assert (tmp_path / "tokenizer").read_text() == "2"


@pytest.mark.parametrize("is_file", [False, True])
def test_what_another_program_made_meanwhile_is_not_replaced(tmp_path, is_file):
    target = tmp_path / "model"
    theirs = target if is_file else target / "x"

    def meanwhile():
        theirs.parent.mkdir(exist_ok=True)
        theirs.write_text("theirs")

    with pytest.raises(InputError, match=r"made by another program meanwhile|a different model"):
        make(target, is_file, meanwhile, model="ours")
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    assert theirs.read_text() == "theirs"


def test_what_a_killed_conversion_left_is_removed_and_what_lives_is_not(tmp_path):
    target = tmp_path / "model"
    (tmp_path / LEFT).mkdir()
    (tmp_path / LEFT / MARK).touch()
    with staged(target, is_file=False) as living:
        assert not (tmp_path / LEFT).exists()
        code = (
            "from llama_jax.convert.staging import staged; from pathlib import Path\n"
            f"with staged(Path({str(target)!r}), is_file=False) as folder: (folder / 'x').touch()"
        )
        subprocess.run([sys.executable, "-c", code], check=True)
        assert living.exists()
        assert [p.name for p in target.iterdir()] == ["x"]
        (target / "x").unlink()
        (living / "y").touch()
    assert [p.name for p in target.iterdir()] == ["y"]
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
