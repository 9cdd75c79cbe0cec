"""Reads GGUF, the file format of llama.cpp (ggml's docs/gguf.md), and trusts nothing in the file.

    "GGUF", version, number of tensors, number of keys; the keys with their values; the tensors'
    names, shapes, types and offsets; padding; their data, each at a multiple of the alignment

All numbers are little-endian. Every count, length and offset is held against the bytes that are
left before anything is made of it, so a file can ask for no more memory than its own size.

A large model is often cut into files NAME-00001-of-00003.gguf and so on, each of this format: the
keys are in the first, and the tensors in any of them. Whichever is named, all are read as one.
"""

import math
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from llama_jax.config import InputError, require
from llama_jax.convert.gguf_quants import QUANTS, Dequantized
from llama_jax.convert.source import Lazy, map_file
from llama_jax.runtime.files import shown

MAGIC = b"GGUF"
_PLAIN = {
    "F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype(ml_dtypes.bfloat16),
}  # fmt: skip
_NUMBERS = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1",
    10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS",
    17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S",
    23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 30: "BF16",
    34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip
"""ggml's types by their numbers."""
_SCALARS = {
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "<u1", 10: "<u8",
    11: "<i8", 12: "<f8",
}  # fmt: skip
_BOOL, _STRING, _ARRAY = 7, 8, 9
_MAX_KEY, _MAX_NAME, _MAX_DIMS = 65_535, 64, 4
_MIN_KEY_BYTES, _MIN_TENSOR_BYTES = 8 + 4 + 1, 8 + 4 + 8 + 4 + 8
_PART = re.compile(r"(.*)-([0-9]{5})-of-([0-9]{5})\.gguf")
_MAX_PARTS, _MAX_KEYS, _MAX_TENSORS, _MAX_STRINGS = 1000, 10_000, 100_000, 1 << 19


class TensorInfo(NamedTuple):
    """One tensor: numbers in C order of `shape`, in NumPy's order of axes (GGUF's own is
    reversed)."""

    shape: tuple[int, ...]
    type: str
    start: int
    """Byte offset in the file."""
    size: int
    """Size in bytes."""
    content: np.ndarray
    """The whole file that it lies in, memory-mapped."""


class GgufFile(NamedTuple):
    """The contents of a model's file or files: metadata by key, and the tensors' locations."""

    path: Path
    """The first file."""
    values: Mapping[str, Any]
    """Numbers, booleans, strings, lists of strings, or NumPy arrays. A string that is no UTF-8 has
    U+FFFD, one in a list has lone surrogates in the places of its bytes."""
    tensors: dict[str, TensorInfo]
    notes: list[str]
    """Irregularities that were accepted."""

    def tensor(self, name: str) -> Lazy:
        """A memory map of a tensor; a quantised one is dequantised when it is indexed."""
        info = self.tensors[name]
        part = info.content[info.start : info.start + info.size]
        if (quant := QUANTS.get(info.type)) is not None:
            return Dequantized(part.view(quant.block).reshape(info.shape[0], -1), quant)
        return part.view(_PLAIN[info.type]).reshape(info.shape)


def read_model(path: Path) -> GgufFile:
    """Read the headers of a model's file, or of all its files, and map the rest.

    Raises InputError if one is damaged or missing, if tensors overlap or run past the end, or if
    one has an unsupported type.
    """
    found = read_file(path)
    count, number = found.values.get("split.count", 1), found.values.get("split.no", 0)
    if count == 1:
        return found
    named = _PART.fullmatch(path.name)
    sound = type(count) is int and 1 < count <= _MAX_PARTS and type(number) is int
    require(
        sound, f"{path}: split.count={shown(count)} or split.no={shown(number)} is not a number"
    )
    if named is None or (int(named[2]), int(named[3])) != (number + 1, count):
        raise InputError(
            f"{path} is part {number + 1} of {count} of a model under another name: give the parts "
            f"their names back, such as MODEL-{number + 1:05}-of-{count:05}.gguf, or join them "
            "with llama.cpp's `llama-gguf-split --merge`"
        )
    files = [path.with_name(f"{named[1]}-{i + 1:05}-of-{count:05}.gguf") for i in range(count)]
    missing = [file.name for file in files if not file.is_file()]
    require(
        not missing,
        f"{path} is part {number + 1} of {count}, and {', '.join(missing[:4])} of the others "
        f"{'is' if len(missing) == 1 else 'are'} missing in its folder: download all of them",
    )
    parts = [found if file == path else read_file(file) for file in files]
    tensors: dict[str, TensorInfo] = {}
    for i, part in enumerate(parts):
        said = part.values.get("split.no"), part.values.get("split.count")
        require(
            said == (i, count),
            f"{part.path} belongs to a different model: its split is {shown(said)}",
        )
        twice = next((name for name in part.tensors if name in tensors), None)
        require(twice is None, f"{part.path}: {shown(twice)} is in another part as well")
        tensors |= part.tensors
    total = parts[0].values.get("split.tensors.count", len(tensors))
    require(
        total == len(tensors),
        f"{files[0]}: its {count} parts have {len(tensors)} tensors, not {shown(total)}",
    )
    notes = [note for part in parts for note in part.notes]
    return GgufFile(files[0], parts[0].values, tensors, notes)


def read_file(path: Path) -> GgufFile:
    """One file by itself. Raises InputError as `read_model`."""
    content = map_file(path)
    require(len(content) > 24, f"{path} is too short for a GGUF file")
    cursor = _Cursor(content, str(path))
    require(cursor.take(4) == MAGIC, f"{path} is not a GGUF file")
    version = cursor.number("<I")
    require(
        version in (2, 3), f"{path} is GGUF version {version}; 2 and 3 (little-endian) are read"
    )
    num_tensors = cursor.count(_MIN_TENSOR_BYTES, "tensors", _MAX_TENSORS)
    num_keys = cursor.count(_MIN_KEY_BYTES, "keys", _MAX_KEYS)
    values: dict[str, Any] = {}
    for _ in range(num_keys):
        key = cursor.string(_MAX_KEY, "a key")
        require(key not in values, f"{path} has the key {shown(key)} twice")
        values[key] = cursor.value(cursor.number("<I"), key)
    heads: dict[str, tuple[tuple[int, ...], int, int]] = {}
    for _ in range(num_tensors):
        name = cursor.string(_MAX_NAME, "the name of a tensor")
        require(name not in heads, f"{path} has the tensor {name!r} twice")
        dims = cursor.number("<I")
        require(1 <= dims <= _MAX_DIMS, f"{path}: {name!r} has {dims} dimensions")
        shape = tuple(reversed([cursor.number("<Q") for _ in range(dims)]))
        heads[name] = shape, cursor.number("<I"), cursor.number("<Q")
    alignment = values.get("general.alignment", 32)
    require(
        type(alignment) is int and alignment >= 8 and alignment & (alignment - 1) == 0,
        f"{path}: general.alignment={shown(alignment)} is not a power of two from 8 on",
    )
    data = -(-cursor.offset // alignment) * alignment
    tensors = {
        name: _info(name, *head, data, alignment, content, str(path))
        for name, head in heads.items()
    }
    _require_apart(tensors, str(path))
    notes = [
        f"{shown(k)} of {path.name} is not valid UTF-8: invalid bytes became U+FFFD."
        for k in cursor.odd
    ]
    return GgufFile(path, values, tensors, notes[:4])


def _info(
    name: str, shape: tuple[int, ...], kind: int, offset: int, data: int, alignment: int,
    content: np.ndarray, where: str,
) -> TensorInfo:  # fmt: skip
    title, end = _NUMBERS.get(kind, "a type that is unknown"), len(content)
    quant = QUANTS.get(title)
    if quant is None and title not in _PLAIN:
        raise InputError(
            f"{where}: {name!r} is of type {title} ({kind}), which is not supported: take the "
            f"model's F16 or Q8_0 file, or another of {', '.join([*_PLAIN, *QUANTS])}"
        )
    count = math.prod(shape)  # a Python integer: no product of dimensions overflows
    require(count > 0, f"{where}: {name!r} has the shape {list(shape)}")
    if quant is not None:
        whole = len(shape) == 2 and shape[-1] % quant.size == 0
        require(
            whole,
            f"{where}: {name!r} is of type {title} and has the shape {list(shape)}, which are no "
            f"rows of blocks of {quant.size}: damaged; copy it again",
        )
        size = count // quant.size * quant.block.itemsize
    else:
        size = count * _PLAIN[title].itemsize
    require(offset % alignment == 0, f"{where}: {name!r} begins at {offset}, which is not aligned")
    require(
        data + offset + size <= end,
        f"{where}: {name!r} takes bytes {data + offset} to {data + offset + size} of a file of "
        f"{end}: it is cut short or damaged; copy it again",
    )
    return TensorInfo(shape, title, data + offset, size, content)


def _require_apart(tensors: dict[str, TensorInfo], where: str) -> None:
    last, end = "", 0
    for name, info in sorted(tensors.items(), key=lambda item: item[1].start):
        require(info.start >= end, f"{where}: the tensors {last!r} and {name!r} overlap")
        last, end = name, info.start + info.size


class _Cursor:
    """Reads forward; every step is held against the end first."""

    def __init__(self, content: np.ndarray, where: str):
        self._content = memoryview(content)
        self._where = where
        self.offset = 0
        self.odd: list[str] = []
        """Keys with values that are no UTF-8."""

    def take(self, size: int) -> bytes:
        """The next bytes."""
        self._require_left(size)
        self.offset += size
        return bytes(self._content[self.offset - size : self.offset])

    def number(self, form: str) -> int:
        """The next integer, in the notation of struct."""
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def count(self, least: int, what: str, most: int | None = None) -> int:
        """The next integer, as a number of things that take `least` bytes each."""
        count = self.number("<Q")
        left = len(self._content) - self.offset
        require(
            count * least <= left, f"{self._where} states {count} {what} in {left} bytes: damaged"
        )
        sane = most is None or count <= most
        require(sane, f"{self._where} states {count} {what}; {most} are read at most")
        return count

    def string(self, longest: int, what: str) -> str:
        """The next string of at most so many bytes. Raises InputError if it is no UTF-8."""
        raw = self._text(longest, what)
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise InputError(f"{self._where}: {what} is not valid UTF-8: {shown(raw)}") from error

    def _text(self, longest: int, what: str) -> bytes:
        length = self.number("<Q")
        require(length <= longest, f"{self._where}: {what} has {length} bytes; {longest} at most")
        return self.take(length)

    def value(self, kind: int, key: str) -> Any:
        """The next value, of a type by its number."""
        if kind == _STRING:
            raw = self._text(len(self._content), f"the value of {shown(key)}")
            text = raw.decode(errors="replace")
            if text.encode() != raw:
                self.odd.append(key)
            return text
        if kind == _ARRAY:
            return self._array(key)
        if kind not in _SCALARS:
            raise InputError(f"{self._where}: {shown(key)} has the unknown type {kind}")
        dtype = np.dtype(_SCALARS[kind])
        value = np.frombuffer(self.take(dtype.itemsize), dtype)[0].item()
        return bool(value) if kind == _BOOL else value

    def _array(self, key: str) -> Any:
        kind = self.number("<I")
        if kind == _STRING:
            count = self.count(8, f"strings of {shown(key)}", _MAX_STRINGS)
            what = f"a string of {shown(key)}"
            longest = len(self._content)
            return [
                self._text(longest, what).decode(errors="surrogateescape") for _ in range(count)
            ]
        if kind not in _SCALARS:
            raise InputError(
                f"{self._where}: {shown(key)} is a list of type {kind}, not of numbers"
            )
        dtype = np.dtype(_SCALARS[kind])
        count = self.count(dtype.itemsize, f"numbers of {shown(key)}")
        return np.frombuffer(self.take(count * dtype.itemsize), dtype)

    def _require_left(self, size: int) -> None:
        left = len(self._content) - self.offset
        require(size <= left, f"{self._where} is cut short: {size} bytes wanted, {left} are left")
