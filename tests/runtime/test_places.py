"""Users without a home folder, or with one that they may not write to; disks that are full."""

import errno
import os
import pwd
import tempfile

import pytest

from llama_jax.config import InputError
from llama_jax.runtime import places
from llama_jax.runtime.files import as_path


@pytest.fixture
def homeless(monkeypatch, tmp_path):
    """No HOME, an unknown user id, and a temporary folder of their own."""

    def nobody(uid):
        raise KeyError(uid)

    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    places._private.cache_clear()
    return tmp_path / f"llama_jax-{os.getuid()}"


def test_caches_of_a_user_without_a_home_folder_are_in_a_folder_of_theirs(homeless, caplog):
    for _ in range(2):
        folder = places.cache_folder("~/.cache/llama_jax", "data.cache_dir")
        assert folder == str(homeless / ".cache/llama_jax")
    assert homeless.stat().st_mode & 0o777 == 0o700
    assert caplog.messages == [f"no home folder to keep caches in: they are in {homeless}"]
    assert os.listdir(".") == [homeless.name]  # and none called ~


def test_a_home_folder_that_cannot_be_made(homeless, monkeypatch):
    (homeless.parent / "file").write_text("")
    monkeypatch.setenv("HOME", str(homeless.parent / "file/home"))
    assert places.cache_folder("~/c", "data.cache_dir") == str(homeless / "c")


@pytest.mark.parametrize("mode", [0o777, 0o720])
def test_a_temporary_folder_that_others_write_to_is_not_used(homeless, mode):
    homeless.mkdir()
    homeless.chmod(mode)
    with pytest.raises(InputError, match=r"set HOME, or data\.cache_dir and compilation"):
        places.cache_folder("~/c", "data.cache_dir")


def test_a_path_in_an_unknown_home_folder_is_named(homeless):
    for path in ("~/text.jsonl", "~"):
        with pytest.raises(InputError, match=f"^{path}: the home folder is not known"):
            as_path(path)


def test_other_paths_stay(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/home/me")
    assert places.expand("~/a") == "/home/me/a"
    assert [places.expand(p) for p in ("a~", "./~", "gs://b/~")] == ["a~", "./~", "gs://b/~"]
    assert places.cache_folder("gs://b/xla", "compilation_cache") == "gs://b/xla"
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"^data\.cache_dir .*file/x cannot be written: Not a dir"):
        places.cache_folder(str(tmp_path / "file/x"), "data.cache_dir")


def test_an_error_without_a_file_gets_the_place_to_name(tmp_path):
    """As of a write to a full disk; what names a file, or is none of the system's, stays."""
    with pytest.raises(OSError, match="No space left") as full, places.naming(tmp_path / "run"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert (full.value.errno, full.value.filename) == (errno.ENOSPC, str(tmp_path / "run"))
    with pytest.raises(FileNotFoundError) as gone, places.naming(tmp_path / "run"):
        (tmp_path / "other").read_text()
    assert gone.value.filename == str(tmp_path / "other")
    with pytest.raises(OSError, match="a library's") as bare, places.naming(tmp_path / "run"):
        raise OSError("a library's")
    assert bare.value.filename is None
