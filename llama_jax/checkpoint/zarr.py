"""Reads uncompressed Zarr arrays without copying them.

Orbax restores its folders through several copies, and a chunk at a time, which for a stacked array
is all its layers. Where chunks are not compressed (ours never are), the bytes go from the file
straight into the memory that jax uses for the array on CPUs, or are mapped. Chunks are files of
their own, one a layer, in what conversions write; what training saves has them in a database
(OCDBT), whose offsets tensorstore reports. Arrays stored in another way are left to orbax.
"""

import itertools
import math
import mmap
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from llama_jax.runtime.files import parse_json, read_json

_DESCRIPTION_BYTES = 64 << 10  # ours have 0.5 kB
_MAX_CHUNKS = 1 << 20
_WHOLE = {"manifest.ocdbt", ".zarray", "_METADATA", "_sharding"}
_WHOLE_BYTES = 32 << 20  # ours have some kilobytes


@dataclass(frozen=True)
class _Span:
    """Where the bytes of a chunk are."""

    file: Path
    offset: int
    size: int


@dataclass(frozen=True)
class PlainArray:
    """One array, as a grid of chunks in C order."""

    name: str
    shape: tuple[int, ...]
    dtype: Any
    chunks: tuple[int, ...]
    """Shape of every chunk; the last ones along an axis may reach beyond the array."""
    locate: Callable[[str], _Span | bytes | None]
    """Returns a chunk, or its location, by the array's and the chunk's name; None if it is
    missing."""

    def view(self, index: Any) -> np.ndarray:
        """A part of the array: of a memory map if one chunk holds all of it, else a copy.

        index: slices of step 1, one for each axis.

        Raises ValueError if a chunk is missing or has another size.
        """
        pieces = list(self._pieces(index))
        if len(pieces) != 1:
            return self.read(index)
        ((place, inside, _),) = pieces
        return self._chunk(self._found(place))[inside]

    def read(self, index: Any) -> np.ndarray:
        """A part in memory that jax can take over on CPUs without a copy; otherwise as `view`."""
        cuts = self._cuts(index)
        part = _aligned([cut.stop - cut.start for cut in cuts], self.dtype)
        for place, inside, outside in self._pieces(index):
            found, out = self._found(place), part[outside]
            whole = out.shape == self.chunks and out.flags.c_contiguous
            if whole and isinstance(found, _Span):
                self._fill(out, found)
            else:
                out[...] = self._chunk(found)[inside]
        return part

    def _cuts(self, index: Any) -> list[slice]:
        return [slice(*i.indices(n)[:2]) for i, n in zip(index, self.shape, strict=True)]

    def _pieces(self, index: Any) -> Iterator[tuple[tuple[int, ...], Any, Any]]:
        """Place in the grid of each chunk that a part takes from, what of it, and to where."""
        along = []
        for cut, size in zip(self._cuts(index), self.chunks, strict=True):
            found = []
            for place in range(cut.start // size, -(-cut.stop // size)):
                start, stop = max(cut.start, place * size), min(cut.stop, (place + 1) * size)
                inside = slice(start - place * size, stop - place * size)
                found.append((place, inside, slice(start - cut.start, stop - cut.start)))
            along.append(found)
        for chosen in itertools.product(*along):
            yield tuple(zip(*chosen, strict=True))  # pyrefly: ignore[invalid-yield]

    def _fill(self, out: np.ndarray, span: _Span) -> None:
        with span.file.open("rb", buffering=0) as stream:
            stream.seek(span.offset)
            left = memoryview(out.reshape(-1).view(np.uint8))
            while left:
                count = stream.readinto(left)
                if not count:
                    raise ValueError(f"{self.name} is cut short")
                left = left[count:]

    def _chunk(self, found: _Span | bytes) -> np.ndarray:
        """A chunk, mapped where it is in a file of its own."""
        if isinstance(found, bytes):
            return np.frombuffer(found, self.dtype).reshape(self.chunks)
        return np.memmap(found.file, self.dtype, "r", found.offset, self.chunks)

    def _found(self, place: tuple[int, ...]) -> _Span | bytes:
        name = chunk_name(place)
        found = self.locate(f"{self.name}/{name}")
        if found is None:
            raise ValueError(f"{self.name}/{name} is missing")
        size = math.prod(self.chunks) * self.dtype.itemsize
        if (len(found) if isinstance(found, bytes) else found.size) != size:
            raise ValueError(f"{self.name}/{name} is not {size} bytes")
        return found


class PlainArrays:
    """The arrays of one orbax folder that can be read without copying."""

    def __init__(self, folder: Path):
        """Raises ValueError for a pipe or a device in the folder."""
        _require_files(folder)
        self._folder = folder
        self._stored = _database(folder) if (folder / "manifest.ocdbt").exists() else None

    def find(self, name: str, shape: tuple[int, ...], dtype: Any) -> PlainArray | None:
        """The array `name` (parts joined with `/`), if it is plain and of that shape and type."""
        name, dtype = name.replace("/", "."), jnp.dtype(dtype)
        said = self._description(name)
        chunks = said.get("chunks") if isinstance(said, dict) else None
        if not shape or not isinstance(chunks, list) or len(chunks) != len(shape):
            return None
        if not all(type(n) is int and n > 0 for n in chunks):
            return None
        if said != description(said, shape, dtype, chunks):
            return None
        if math.prod(-(-n // size) for n, size in zip(shape, chunks, strict=True)) > _MAX_CHUNKS:
            return None
        return PlainArray(name, tuple(shape), dtype, tuple(chunks), self._locate)

    def _description(self, name: str) -> Any:
        try:
            if self._stored is None:
                return read_json(self._folder / name / ".zarray", limit=_DESCRIPTION_BYTES)
            found = self._stored.get(f"{name}/.zarray")
            return parse_json(found, name) if isinstance(found, bytes) else None
        except (OSError, ValueError):
            return None

    def _locate(self, chunk: str) -> _Span | bytes | None:
        if self._stored is None:
            file = self._folder / chunk
            return _Span(file, 0, file.stat().st_size) if file.is_file() else None
        return self._stored.get(chunk)


def _require_files(folder: Path) -> None:
    """ValueError for a pipe or a device, links followed, and for a description that is too large:
    tensorstore waits for somebody to write into a pipe, and reads a description whole."""
    for parent, _, names in os.walk(folder):
        for name in names:
            file = Path(parent, name)
            if not file.exists():  # a link to nothing, which whoever reads it names
                continue
            if not file.is_file():
                raise ValueError(f"{file} is a pipe or a device, not a file")
            if name in _WHOLE and (size := file.stat().st_size) > _WHOLE_BYTES:
                raise ValueError(f"{file} is damaged: it has {size:,} bytes")


def _database(folder: Path) -> dict[str, bytes | _Span]:
    """The newest version of an OCDBT database: its small values, and the places of others.

    Empty for one that is damaged, points out of its folder, or is so large that its index has
    several levels: orbax reads it, and says what is wrong.
    """
    import tensorstore as ts

    try:
        store = ts.KvStore.open(f"file://{folder.absolute()}/").result()
        root = ts.ocdbt.dump(store).result()["versions"][-1]["root"]
        node = ts.ocdbt.dump(store, root["location"]).result()
        if node["height"]:
            return {}
        values: dict[str, bytes | _Span] = {}
        for entry in node["entries"]:
            key = entry["key"].decode()
            if "inline_value" in entry:
                values[key] = entry["inline_value"]
                continue
            place, offset, size = entry["indirect_value"].rsplit(":", 2)
            file = folder.joinpath(*place.split(":")[1:])
            inside = file.resolve().is_relative_to(folder.resolve())
            if not inside or int(offset) + int(size) > file.stat().st_size:
                return {}
            values[key] = _Span(file, int(offset), int(size))
        return values
    except (ValueError, LookupError, TypeError, AttributeError, OSError, RuntimeError):
        return {}


def description(
    zarray: Mapping[str, Any], shape: Sequence[int], dtype: Any, chunks: Sequence[int]
) -> dict[str, Any]:
    """`.zarray` of an array in plain chunks, derived from the one that orbax writes."""
    known = {"bfloat16": "bfloat16", "float16": "<f2", "float32": "<f4"}
    return {
        **zarray,
        "shape": list(shape),
        "chunks": list(chunks),
        "dtype": known.get(str(dtype)),
        "compressor": None,
        "filters": None,
        "order": "C",
        "dimension_separator": ".",
        "zarr_format": 2,
    }


def chunk_name(place: Sequence[int]) -> str:
    """Name of the chunk at an index of the grid of chunks."""
    return ".".join(map(str, place))


def _aligned(shape: list[int], dtype: Any) -> np.ndarray:
    """An array that starts at a page, in large pages where the system has them.

    jax uses memory from 64-byte boundaries as it is, and the first touch of small pages takes
    longer than reading a file does.
    """
    size = math.prod(shape)
    memory = mmap.mmap(-1, max(size * dtype.itemsize, 1))
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, np.uint8, size * dtype.itemsize).view(dtype).reshape(shape)
