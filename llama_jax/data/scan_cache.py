"""Caches scans of text files, so that a restart need not read the whole corpus again.

A file counts as unchanged if its path, size and modification time are the same, as for make and
rsync. A file that changed a moment ago is not cached, since another change could have the same
time.
"""

import hashlib
import json
import time
from contextlib import suppress
from dataclasses import astuple
from typing import NamedTuple

from llama_jax.data import textfiles
from llama_jax.data.textfiles import Chunk, Scan
from llama_jax.runtime.files import AnyPath, PathLike, as_path, write_atomic

VERSION = 2
"""Increase it whenever a scan of the same file gives another result."""
SETTLED_SECONDS = 60.0
"""Longer than the clocks of file servers differ."""


class _State(NamedTuple):
    size: int
    seconds: float
    """When it was changed."""


def scan(path: AnyPath, cache_dir: PathLike) -> Scan:
    """`textfiles.scan`, or its cached result from `cache_dir`. Raises as it does."""
    state = _state(path)
    key = hashlib.sha256(repr((VERSION, str(path), *state)).encode()).hexdigest()
    kept = as_path(cache_dir) / "scans" / f"{key}.json"
    with suppress(OSError, ValueError, TypeError, KeyError):
        return _from_json(kept.read_bytes(), str(path))
    found = textfiles.scan(path)
    if time.time() - state.seconds > SETTLED_SECONDS and _state(path) == state:
        with suppress(OSError):  # the next run scans again
            write_atomic(kept, _to_json(found))
    return found


def _state(path: AnyPath) -> _State:
    said = path.stat()
    if hasattr(said, "st_mtime"):
        return _State(said.st_size, said.st_mtime)
    return _State(said.length, said.mtime)  # of an object store


def _to_json(found: Scan) -> bytes:
    chunks = [astuple(chunk)[1:] for chunk in found.chunks]
    return json.dumps({"digest": found.digest, "chunks": chunks}).encode()


def _from_json(text: bytes, path: str) -> Scan:
    values = json.loads(text)
    return Scan(values["digest"], tuple(Chunk(path, *chunk) for chunk in values["chunks"]))
