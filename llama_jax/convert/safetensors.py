"""Reads safetensors files through a validated memory map, and writes them as a stream.

The `safetensors` library is not needed: NumPy views of a memory map read no more than what is
asked for, in bfloat16 too, and every byte of the header is checked here against the file and,
by the caller, against the model. A file is

    8 bytes   n, the length of the header, little endian
    n bytes   JSON: {name: {"dtype", "shape", "data_offsets": [begin, end]}, "__metadata__": {...}}
    the rest  the tensors, one after the other, without holes
"""

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from llama_jax.config import require
from llama_jax.convert.blocks import BlockFile
from llama_jax.convert.source import map_file
from llama_jax.runtime.files import open_file, parse_json, shown

MAX_HEADER = 16 << 20
"""In bytes; the header of a 70B model in one file takes 0.1 MB."""
MAX_TENSORS = 100_000
DTYPES: dict[str, Any] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
"""Dtypes of weights; others are rejected by name when they are requested."""
_SIZES = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "I16": 2, "U16": 2, "F16": 2,
          "BF16": 2, "I32": 4, "U32": 4, "F32": 4, "F64": 8, "I64": 8, "U64": 8}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """The location of one tensor in a file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_header(file: Path) -> tuple[dict[str, Entry], int]:
    """Every tensor of a file by name, and the offset of the data.

    Raises InputError unless the header is sound: its length within the file and MAX_HEADER, unique
    names, shapes of the right sizes, and data that fills the rest of the file without a hole.
    """
    with open_file(file) as stream:
        size = os.fstat(stream.fileno()).st_size
        length = int.from_bytes(stream.read(8), "little")
        require(
            size >= 8 and length <= min(MAX_HEADER, size - 8),
            f"{file} is not a safetensors file: {size} bytes, and a header of {length}",
        )
        text = stream.read(length)
    values = parse_json(text, f"{file}: its safetensors header", unique=True)
    require(isinstance(values, dict), f"{file}: its safetensors header is not an object")
    values.pop("__metadata__", None)
    require(len(values) <= MAX_TENSORS, f"{file} states {len(values)} tensors")
    entries = {name: _entry(value, f"{file}: {shown(name)}") for name, value in values.items()}
    position = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        require(
            entry.begin == position,
            f"{file}: {shown(name)} begins at {entry.begin}, not {position}: a hole or an overlap",
        )
        position = entry.end
    require(
        position == size - 8 - length,
        f"{file} is {size} bytes and its header describes {8 + length + position}: cut short?",
    )
    return entries, 8 + length


def _entry(value: Any, where: str) -> Entry:
    """One tensor's place. Raises InputError if the entry is none or its sizes disagree."""
    fields: dict[str, Any] = value if isinstance(value, dict) else {}
    dtype: Any = fields.get("dtype")
    shape: Any = fields.get("shape")
    offsets: Any = fields.get("data_offsets")
    require(isinstance(dtype, str) and dtype in _SIZES, f"{where} is of type {shown(dtype)}")
    sound = isinstance(shape, list) and len(shape) <= 8
    sound = sound and isinstance(offsets, list) and len(offsets) == 2
    numbers = [*shape, *offsets] if sound else []
    require(
        sound and all(type(n) is int and 0 <= n < 2**63 for n in numbers),
        f"{where} has the shape {shown(shape)} and offsets {shown(offsets)}, which are not sizes",
    )
    begin, end = offsets
    require(
        end - begin == math.prod(shape) * _SIZES[dtype],
        f"{where}: {end - begin} bytes are not {dtype}{shown(shape)}",
    )
    return Entry(dtype, tuple(shape), begin, end)


def map_tensors(file: Path) -> dict[str, np.ndarray]:
    """Every tensor of a file as a view of its memory map. Raises InputError as `read_header`."""
    entries, start = read_header(file)
    for name, entry in entries.items():
        require(
            entry.dtype in DTYPES,
            f"{file}: {shown(name)} is {entry.dtype}; weights in {', '.join(DTYPES)} can be read "
            "(dequantise others with the program that made them)",
        )
    if not any(entry.end for entry in entries.values()):
        return {name: np.zeros(e.shape, DTYPES[e.dtype]) for name, e in entries.items()}
    data = map_file(file)
    return {
        name: data[start + e.begin : start + e.end].view(DTYPES[e.dtype]).reshape(e.shape)
        for name, e in entries.items()
    }


class Writer:
    """One file whose tensors are known beforehand and arrive in that order."""

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
        """Append the next tensor, split along its first axis, in C order."""
        assert name == next(self._expected)
        for part in parts:
            self._stream.write(part)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *error: Any) -> None:
        self._stream.__exit__(*error)
