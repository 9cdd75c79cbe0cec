"""What of a folder is data: each real file once, and the rest by name."""

import os

import pytest

from llama_jax.config import InputError
from llama_jax.data import folders
from llama_jax.data.textfiles import SUFFIXES, find_files


def make(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)


def names(root):
    return [str(path.relative_to(root)) for path in find_files(root)]


def test_a_link_to_the_folder_itself_is_followed_once(tmp_path):
    make(tmp_path, "a.jsonl", "deep/b.txt")
    (tmp_path / "latest").symlink_to(".")
    (tmp_path / "deep/up").symlink_to("..")
    assert names(tmp_path) == ["a.jsonl", "deep/b.txt"]


def test_what_links_reach_is_read_once_and_under_its_own_name(tmp_path):
    make(tmp_path, "data/v1/a.jsonl", "elsewhere/b.jsonl")
    (tmp_path / "data/latest").symlink_to("v1")
    (tmp_path / "data/again.jsonl").symlink_to("v1/a.jsonl")
    (tmp_path / "data/more").symlink_to("../elsewhere")
    (tmp_path / "data/gone.jsonl").symlink_to("nowhere")
    found = folders.search(tmp_path / "data", SUFFIXES)
    assert [path.name for path in found.files] == ["b.jsonl", "a.jsonl"]
    assert found.left == {"linked twice": ["again.jsonl", "latest/"], "broken link": ["gone.jsonl"]}


def test_what_is_no_data_is_left_out_and_said(tmp_path):
    make(
        tmp_path, "a.jsonl", "b.json.gz", "license.jsonl", "Reader.txt",
        ".hidden.jsonl", ".cache/c.txt", "__MACOSX/._a.jsonl", "Backup/a.jsonl",
        "LICENSE.txt", "licence-MIT.txt", "README.txt", "notes.md", "part-0.parquet", "SUCCESS",
    )  # fmt: skip
    os.mkfifo(tmp_path / "pipe.jsonl")
    found = folders.search(tmp_path, SUFFIXES)
    assert [p.name for p in found.files] == ["Reader.txt", "a.jsonl", "b.json.gz", "license.jsonl"]
    assert found.left == {
        "hidden": [".cache/", ".hidden.jsonl"],
        "backup or scraps": ["Backup/", "__MACOSX/"],
        "licence or readme": ["LICENSE.txt", "README.txt", "licence-MIT.txt"],
        ".md is not read": ["notes.md"],
        ".parquet is not read": ["part-0.parquet"],
        "no ending": ["SUCCESS"],
        "no file": ["pipe.jsonl"],
    }


def test_a_file_that_is_named_is_data_whatever_its_name(tmp_path):
    make(tmp_path, ".hidden.jsonl", "LICENSE.txt")
    assert find_files(tmp_path / ".hidden.jsonl") == [tmp_path / ".hidden.jsonl"]
    assert find_files(tmp_path / "LICENSE.txt") == [tmp_path / "LICENSE.txt"]
    with pytest.raises(
        InputError, match=r"left out: \.hidden\.jsonl \(hidden\); LICENSE\.txt \(li"
    ):
        find_files(tmp_path)


def test_many_names_are_counted():
    text = folders.describe({"hidden": [".a"], ".png is not read": [f"{i}.png" for i in range(9)]})
    assert text == ".a (hidden); 0.png, 1.png and 7 more (.png is not read)"
