"""Reading GGUF, the file format of llama.cpp (ggml's docs/gguf.md), trusting nothing in the file.

    "GGUF", version, number of tensors, number of keys; the keys with their values; the tensors'
    names, shapes, types and offsets; padding; their data, each at a multiple of the alignment

All numbers are little-endian. Every count, length and offset is held against the bytes that are
left before anything is made of it, so a file can ask for no more memory than its own size.
"""

import math
import struct
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from llama_jax.config import InputError, require
from llama_jax.convert.int8 import Dequantized
from llama_jax.convert.source import Lazy

MAGIC = b"GGUF"
BLOCK = 32
"""Numbers that share a scale in Q8_0."""
_Q8_0 = np.dtype([("scale", "<f2"), ("values", np.int8, (BLOCK,))])
_TYPES: dict[int, tuple[str, np.dtype]] = {
    0: ("F32", np.dtype("<f4")),
    1: ("F16", np.dtype("<f2")),
    8: ("Q8_0", _Q8_0),
    30: ("BF16", np.dtype(ml_dtypes.bfloat16)),
}
_OTHER_TYPES = {
    2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K",
    14: "Q6_K", 15: "Q8_K",
}  # fmt: skip
_SCALARS = {
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "<u1", 10: "<u8",
    11: "<i8", 12: "<f8",
}  # fmt: skip
_BOOL, _STRING, _ARRAY = 7, 8, 9
_MAX_KEY, _MAX_NAME, _MAX_DIMS = 65_535, 64, 4
_MIN_KEY_BYTES, _MIN_TENSOR_BYTES = 8 + 4 + 1, 8 + 4 + 8 + 4 + 8


class TensorInfo(NamedTuple):
    """One tensor: numbers in C order of `shape`, as NumPy has it (GGUF's own is reversed)."""

    shape: tuple[int, ...]
    type: str
    start: int
    """Byte of the file at which it begins."""
    size: int
    """Bytes."""


class GgufFile(NamedTuple):
    """What a file says: its values by key, and where its tensors lie."""

    path: Path
    values: dict[str, Any]
    """Numbers, booleans, strings, lists of strings, or NumPy arrays."""
    tensors: dict[str, TensorInfo]
    content: np.ndarray
    """The mapped bytes."""

    def tensor(self, name: str) -> Lazy:
        """A map of a tensor; Q8_0 is multiplied out when it is indexed."""
        info = self.tensors[name]
        part = self.content[info.start : info.start + info.size]
        if info.type == "Q8_0":
            blocks = part.view(_Q8_0)
            return Dequantized(blocks["values"], blocks["scale"], (info.shape[0], info.shape[1]))
        (dtype,) = (dtype for name, dtype in _TYPES.values() if name == info.type)
        return part.view(dtype).reshape(info.shape)


def read_file(path: Path) -> GgufFile:
    """Read the head of a file and map the rest.

    Raises InputError if it is damaged, if tensors overlap or run past the end, or if one is of a
    type other than F32, F16, BF16 and Q8_0.
    """
    require(path.stat().st_size > 24, f"{path} is too short for a GGUF file")
    content = np.memmap(path, np.uint8, "r")
    cursor = _Cursor(content, str(path))
    require(cursor.take(4) == MAGIC, f"{path} is no GGUF file")
    version = cursor.number("<I")
    require(
        version in (2, 3), f"{path} is GGUF version {version}; 2 and 3 (little-endian) are read"
    )
    num_tensors = cursor.count("<Q", _MIN_TENSOR_BYTES, "tensors")
    num_keys = cursor.count("<Q", _MIN_KEY_BYTES, "keys")
    values: dict[str, Any] = {}
    for _ in range(num_keys):
        key = cursor.string(_MAX_KEY, "a key")
        require(key not in values, f"{path} has the key {key!r:.80} twice")
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
        isinstance(alignment, int) and alignment >= 8 and alignment & (alignment - 1) == 0,
        f"{path}: general.alignment={alignment!r:.40} is no power of two from 8 on",
    )
    data = -(-cursor.offset // alignment) * alignment
    tensors = {
        name: _info(name, *head, data, alignment, len(content), str(path))
        for name, head in heads.items()
    }
    _require_apart(tensors, str(path))
    return GgufFile(path, values, tensors, content)


def _info(
    name: str, shape: tuple[int, ...], kind: int, offset: int, data: int, alignment: int,
    end: int, where: str,
) -> TensorInfo:  # fmt: skip
    if kind not in _TYPES:
        raise InputError(
            f"{where}: {name!r} is of type {_OTHER_TYPES.get(kind, kind)}; only "
            f"{', '.join(title for title, _ in _TYPES.values())} are read"
        )
    title, dtype = _TYPES[kind]
    count = math.prod(shape)  # a Python integer: no product of dimensions overflows
    require(count > 0, f"{where}: {name!r} has the shape {list(shape)}")
    if title == "Q8_0":
        whole = len(shape) == 2 and shape[-1] % BLOCK == 0
        require(whole, f"{where}: {name!r} is {list(shape)}, which are no rows of Q8_0 blocks")
        count //= BLOCK
    size = count * dtype.itemsize
    require(offset % alignment == 0, f"{where}: {name!r} begins at {offset}, which is not aligned")
    require(
        data + offset + size <= end,
        f"{where}: {name!r} takes bytes {data + offset} to {data + offset + size} of a file of "
        f"{end}: it is cut short or damaged; copy it again",
    )
    return TensorInfo(shape, title, data + offset, size)


def _require_apart(tensors: dict[str, TensorInfo], where: str) -> None:
    last, end = "", 0
    for name, info in sorted(tensors.items(), key=lambda item: item[1].start):
        require(info.start >= end, f"{where}: the tensors {last!r} and {name!r} overlap")
        last, end = name, info.start + info.size


class _Cursor:
    """Reads forward; every step is held against the end first."""

    def __init__(self, content: np.ndarray, where: str):
        self._content = content
        self._where = where
        self.offset = 0

    def take(self, size: int) -> bytes:
        """The next bytes."""
        self._require_left(size)
        self.offset += size
        return self._content[self.offset - size : self.offset].tobytes()

    def number(self, form: str) -> int:
        """The next integer, in the notation of struct."""
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def count(self, form: str, least: int, what: str) -> int:
        """The next integer, as a number of things that take `least` bytes each."""
        count = self.number(form)
        left = len(self._content) - self.offset
        require(
            count * least <= left, f"{self._where} states {count} {what} in {left} bytes: damaged"
        )
        return count

    def string(self, longest: int, what: str) -> str:
        """The next string of at most so many bytes."""
        length = self.number("<Q")
        require(length <= longest, f"{self._where}: {what} has {length} bytes; {longest} at most")
        raw = self.take(length)
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise InputError(f"{self._where}: {what} is no UTF-8: {raw!r:.60}") from error

    def value(self, kind: int, key: str) -> Any:
        """The next value, of a type by its number."""
        if kind == _STRING:
            return self.string(len(self._content), f"the value of {key!r:.80}")
        if kind == _ARRAY:
            return self._array(key)
        if kind not in _SCALARS:
            raise InputError(f"{self._where}: {key!r:.80} has the unknown type {kind}")
        dtype = np.dtype(_SCALARS[kind])
        value = np.frombuffer(self.take(dtype.itemsize), dtype)[0].item()
        return bool(value) if kind == _BOOL else value

    def _array(self, key: str) -> Any:
        kind = self.number("<I")
        if kind == _STRING:
            count = self.count("<Q", 8, f"strings of {key!r:.80}")
            what = f"a string of {key!r:.80}"
            return [self.string(len(self._content), what) for _ in range(count)]
        if kind not in _SCALARS:
            raise InputError(f"{self._where}: {key!r:.80} is a list of type {kind}, not of numbers")
        dtype = np.dtype(_SCALARS[kind])
        count = self.count("<Q", dtype.itemsize, f"numbers of {key!r:.80}")
        return np.frombuffer(self.take(count * dtype.itemsize), dtype)

    def _require_left(self, size: int) -> None:
        left = len(self._content) - self.offset
        require(size <= left, f"{self._where} is cut short: {size} bytes wanted, {left} are left")
