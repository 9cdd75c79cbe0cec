"""Common wrong inputs are called by their name, with the way out."""

import json
import os
import zipfile

import pytest

from llama_jax.config import InputError
from llama_jax.convert import api

LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 499723\n"
FILES = {
    "stub.gguf": (LFS, r"stub\.gguf is a Git LFS pointer .*git lfs pull"),
    "page.bin": ("<!doctype html>", "a web page and not the file itself"),
    "empty.gguf": ("", "is empty: download it again"),
    "model.safetensors": ("x" * 99, "is one file of a model: name the folder"),
    "config.json": ("{}", "is one file of a model: name its folder"),
    "consolidated.00.pth": (b"PK\3\4" + bytes(99), "is a pickle of torch: of Meta's models name"),
    "model.tar.gz": ("x" * 99, "is an archive: unpack it"),
    "notes.txt": ("x" * 99, "is in no known format: a model folder or run folder, a Hug"),
}


@pytest.mark.parametrize("name", FILES)
def test_files(tmp_path, name):
    content, message = FILES[name]
    raw = content if isinstance(content, bytes) else content.encode()
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(InputError, match=message) as caught:
        api.open_source(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)


FOLDERS = {
    "an adapter": ({"adapter_config.json": {"base_model_name_or_path": "a/b"}}, "PEFT.* of 'a/b'"),
    "a file inside": ({"m.gguf": "GGUF"}, r"is a folder with m\.gguf: name the file itself"),
    "no configuration": ({"model.safetensors": "x"}, r"has weights and no config\.json"),
    "no parameters": ({"consolidated.00.pth": "x"}, r"has weights and no params\.json"),
    "no weights": ({"params.json": {}}, r"params\.json and no consolidated"),
    "a stub": ({"config.json": LFS}, r"config\.json is a Git LFS pointer"),
    "no JSON": ({"config.json": "{"}, r"config\.json is not valid JSON"),
    "another's": (
        {"config.json": {"a": 1}},
        r"names no model_type and is none of ours \(\['a'\]\)",
    ),
    "nothing": ({}, "is in no known format"),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_folders(tmp_path, case):
    files, message = FOLDERS[case]
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        api.open_source(tmp_path)


def test_a_folder_of_runs(tmp_path):
    """As `make chat` leaves one: a tokenizer, runs, and other folders."""
    (tmp_path / "tokenizer.model").write_text("x")
    for n, inside in enumerate(("base/checkpoints", "rejection/round_1", "gatt/params", "data/a")):
        (tmp_path / inside).mkdir(parents=True)
        os.utime(tmp_path / inside.partition("/")[0], (n, n))
    with pytest.raises(InputError) as caught:
        api.open_source(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path} is not a model but a folder with base, gatt, rejection: name one of them, "
        f"such as {tmp_path / 'gatt'}"
    )
    for n in range(20):
        (tmp_path / f"run{n:02}" / "params").mkdir(parents=True)
    with pytest.raises(InputError, match=r"run08 and 11 more: name one of them, such as"):
        api.open_source(tmp_path)


def test_any_archive_by_its_content(tmp_path):
    with zipfile.ZipFile(tmp_path / "model", "w") as archive:
        archive.writestr("a", "b")
    with pytest.raises(InputError, match="is an archive"):
        api.open_source(tmp_path / "model")


@pytest.mark.timeout(20)
def test_pipes_and_devices_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name, message in (("pipe", "is a pipe, not a file"), ("zero", "is a device, not a file")):
        with pytest.raises(InputError, match=message):
            api.open_source(tmp_path / name)
        folder = tmp_path / f"folder of {name}"
        folder.mkdir()
        (folder / "config.json").symlink_to(tmp_path / name)
        with pytest.raises(InputError, match=message):
            api.open_source(folder)
