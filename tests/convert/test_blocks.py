"""Files written in blocks: every byte in its place, whatever the sizes and the file system."""

import errno
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_jax.convert import blocks
from llama_jax.convert.blocks import BlockFile


@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.integers(0, 20_000), max_size=12))
def test_the_file_is_what_was_written(tmp_path_factory, sizes):
    rng = np.random.default_rng(len(sizes))
    parts = [rng.integers(0, 256, size, np.uint8) for size in sizes]
    file = tmp_path_factory.mktemp("blocks") / "file"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK", 8192)
        with BlockFile(file) as out:
            for part in parts:
                sent = part.copy()
                out.write(sent)
                sent[:] = 7  # the writer has taken its own copy
    assert file.read_bytes() == b"".join(part.tobytes() for part in parts)


@pytest.mark.parametrize("refused", ["open", "pwrite"])
def test_without_direct_access_the_file_is_the_same(tmp_path, monkeypatch, refused):
    """File systems refuse direct access when a file is opened, or when it is written."""
    works = getattr(os, refused)
    refusals = []

    def picky(*args):
        flags = args[1] if refused == "open" else 0
        if (flags & os.O_DIRECT) if refused == "open" else not refusals:
            refusals.append(args)
            raise OSError(errno.EINVAL, "Invalid argument")
        return works(*args)

    monkeypatch.setattr(os, refused, picky)
    monkeypatch.setattr(blocks, "BLOCK", 4096)
    content = np.arange(5000, dtype=np.uint32)
    with BlockFile(tmp_path / "file") as out:
        out.write(content)
    assert refusals
    assert (tmp_path / "file").read_bytes() == content.tobytes()


def test_a_full_disk_is_an_error(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    monkeypatch.setattr(blocks, "BLOCK", 4096)
    for size in (100, 5000, 50_000):  # less than a block, one that is in flight, many
        with pytest.raises(OSError, match="No space"), BlockFile(tmp_path / "file") as out:
            out.write(bytes(size))
