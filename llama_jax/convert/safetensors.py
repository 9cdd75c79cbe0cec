"""safetensors files, read through a validated memory map and written as a stream.

The `safetensors` library is not needed: NumPy views of a memory map read no more than what is
asked for, in bfloat16 too, and every byte of the header is checked here against the file and,
by the caller, against the model. A file is

    8 bytes   n, the length of the header, little endian
    n bytes   JSON: {name: {"dtype", "shape", "data_offsets": [begin, end]}, "__metadata__": {...}}
    the rest  the tensors, one after the other, without holes
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from llama_jax.config import InputError, require
from llama_jax.convert.blocks import BlockFile

MAX_HEADER = 16 << 20
"""Bytes; the header of a 70B model in one file takes 0.1 MB."""
DTYPES: dict[str, Any] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
"""Types of weights; others are refused by name when they are asked for."""
_SIZES = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "I16": 2, "U16": 2, "F16": 2,
          "BF16": 2, "I32": 4, "U32": 4, "F32": 4, "F64": 8, "I64": 8, "U64": 8}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """Where one tensor lies in a file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_header(file: Path) -> tuple[dict[str, Entry], int]:
    """Every tensor of a file by name, and where the data begins.

    Raises InputError unless the header is sound: its length within the file and MAX_HEADER, names
    once, shapes of the right sizes, and data that fills the rest of the file without a hole.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        require(
            size >= 8 and length <= min(MAX_HEADER, size - 8),
            f"{file} is no safetensors file: {size} bytes, and a header of {length}",
        )
        text = stream.read(length)
    try:
        values = json.loads(text, object_pairs_hook=_unique)
        require(isinstance(values, dict), "it is no object")
        values.pop("__metadata__", None)
        entries = {name: _entry(value) for name, value in values.items()}
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise InputError(f"{file}: its safetensors header is damaged: {error!s:.120}") from error
    position = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        require(
            entry.begin == position,
            f"{file}: {name!r:.80} begins at {entry.begin}, not {position}: a hole or an overlap",
        )
        position = entry.end
    require(
        position == size - 8 - length,
        f"{file} is {size} bytes and its header describes {8 + length + position}: cut short?",
    )
    return entries, 8 + length


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a name comes twice")
    return values


def _entry(value: Any) -> Entry:
    dtype, shape, (begin, end) = value["dtype"], value["shape"], value["data_offsets"]
    numbers = [*shape, begin, end]
    if not isinstance(shape, list) or not all(type(n) is int and 0 <= n < 2**63 for n in numbers):
        raise ValueError(f"shape {shape} or offsets {begin}, {end} are no sizes")
    if len(shape) > 8 or end - begin != math.prod(shape) * _SIZES[dtype]:
        raise ValueError(f"{end - begin} bytes are not {dtype}{shape}")
    return Entry(dtype, tuple(shape), begin, end)


def map_tensors(file: Path) -> dict[str, np.ndarray]:
    """Every tensor of a file as a view of its memory map. Raises InputError as `read_header`."""
    entries, start = read_header(file)
    for name, entry in entries.items():
        require(
            entry.dtype in DTYPES,
            f"{file}: {name!r:.80} is {entry.dtype}; weights in {', '.join(DTYPES)} can be read",
        )
    if not any(entry.end for entry in entries.values()):
        return {name: np.zeros(e.shape, DTYPES[e.dtype]) for name, e in entries.items()}
    data = np.memmap(file, np.uint8, mode="r")
    return {
        name: data[start + e.begin : start + e.end].view(DTYPES[e.dtype]).reshape(e.shape)
        for name, e in entries.items()
    }


class Writer:
    """One file whose tensors are known beforehand and come in that order."""

    def __init__(self, file: Path, tensors: Mapping[str, tuple[tuple[int, ...], str]]):
        """`tensors`: shape and name in DTYPES of each, in the order in which they will come."""
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        position = 0
        for name, (shape, dtype) in tensors.items():
            end = position + math.prod(shape) * _SIZES[dtype]
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [position, end]}
            position = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._expected: Iterator[str] = iter(tensors)
        self._stream = BlockFile(file)
        self._stream.write(len(text).to_bytes(8, "little") + text)

    def write(self, name: str, parts: Iterable[np.ndarray]) -> None:
        """The next tensor, cut along its first axis, in C order."""
        assert name == next(self._expected)
        for part in parts:
            self._stream.write(part)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *error: Any) -> None:
        self._stream.__exit__(*error)
