"""Reads and writes torch's .pth files, without torch and without unpickling.

Such a file is a ZIP archive, nothing compressed: `NAME/data.pkl` describes a dict of tensors, and
each storage `NAME/data/KEY` is raw numbers. A pickle is a program. Python's unpickler would run it,
and what it calls; this reader looks at its opcodes one at a time (`pickletools.genops`, which
executes nothing) and knows those that build dicts, lists, tuples, numbers and strings. The names
that a program may mention are three functions and three storage types, none of which is ever
looked up: they are handled here as values. Anything else is refused.
"""

import math
import os
import pickletools
import struct
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from llama_jax.config import InputError
from llama_jax.convert.source import map_file
from llama_jax.runtime.files import open_file, shown

STORAGES: dict[str, Any] = {
    "torch FloatStorage": np.dtype("<f4"),
    "torch HalfStorage": np.dtype("<f2"),
    "torch BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
}
_ORDERED_DICT, _TENSOR = "collections OrderedDict", "torch._utils _rebuild_tensor_v2"
_MAX_PICKLE = 4 << 20  # bytes; that of a 70B model has 0.1 MB
_MAX_OPERATIONS = 300_000  # of a pickle; a tensor takes some 30
_MAX_ENTRIES = 20_000
_MAX_DIRECTORY = 4 << 20  # bytes of the archive's list of members
_END_BYTES = (1 << 16) + 200  # where an archive ends: records, and a comment of 64 kB at most
_ALIGNMENT = 64  # of storages in a file, as torch aligns them


@dataclass(frozen=True)
class _Global:
    name: str


@dataclass(frozen=True)
class _Storage:
    dtype: Any
    key: str
    size: int


@dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Refused(ValueError):
    """What a sound file of weights would not hold."""


def map_tensors(file: Path) -> dict[str, np.ndarray]:
    """The tensors of a .pth file by name, as views of its memory map.

    Raises InputError unless the file is a plain dict of tensors whose numbers all lie in it.
    """
    try:
        entries = _entries(file)
        pickles = [name for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(pickles) != 1:
            raise _Refused(f"it has {len(pickles)} data.pkl")
        prefix = pickles[0].removesuffix("data.pkl")
        data = map_file(file)

        def content(name: str) -> np.ndarray:
            begin, end = entries[name]
            return data[begin:end]

        order = prefix + "byteorder"
        if order in entries and content(order)[:8].tobytes() != b"little":
            raise _Refused("its numbers are not little endian")
        if content(pickles[0]).size > _MAX_PICKLE:
            raise _Refused(f"its data.pkl has {content(pickles[0]).size} bytes")
        described = _interpret(content(pickles[0]).tobytes())
        if not isinstance(described, dict):
            raise _Refused(f"it holds {shown(described, 40)} and not a dict of tensors")
        tensors: dict[str, np.ndarray] = {}
        for name, value in described.items():
            if not isinstance(name, str) or not isinstance(value, _Tensor):
                raise _Refused(f"{shown(name)} is {shown(value)} and not a tensor")
            where = f"{prefix}data/{value.storage.key}"
            if where not in entries:
                raise _Refused(f"the storage of {shown(name)} is missing")
            tensors[name] = _view(name, value, content(where))
        return tensors
    except InputError:
        raise
    except (zipfile.BadZipFile, struct.error, NotImplementedError, OSError, ValueError) as error:
        raise InputError(f"{file} is not a valid file of torch tensors: {error!s:.200}") from error


def _view(name: str, tensor: _Tensor, raw: np.ndarray) -> np.ndarray:
    dtype, size = tensor.storage.dtype, tensor.storage.size
    if raw.size != size * dtype.itemsize:
        raise _Refused(f"the storage of {shown(name)} has {raw.size} bytes, not {size} numbers")
    if 0 in tensor.shape:
        return np.zeros(tensor.shape, dtype)
    if math.prod(tensor.shape) > size:  # strides of 0 would make much of little
        raise _Refused(f"{shown(name)} has more numbers than its storage, {size}")
    last = tensor.offset + sum(
        (n - 1) * s for n, s in zip(tensor.shape, tensor.strides, strict=True)
    )
    if last >= size:
        raise _Refused(f"{shown(name)} reaches number {last} of a storage of {size}")
    numbers = raw.view(dtype)[tensor.offset :]
    strides = [s * dtype.itemsize for s in tensor.strides]
    return np.lib.stride_tricks.as_strided(numbers, tensor.shape, strides, writeable=False)


def _entries(file: Path) -> dict[str, tuple[int, int]]:
    """Begin and end of each member's bytes, once none is compressed, hidden or shares bytes."""
    spans: dict[str, tuple[int, int]] = {}
    with open_file(file) as stream:
        size = _require_archive(stream)
        archive = zipfile.ZipFile(stream)
        members = archive.infolist()
        if len(members) > _MAX_ENTRIES:
            raise _Refused(f"it has {len(members)} members")
        for member in members:
            name = member.filename
            if name in spans:
                raise _Refused(f"{shown(name)} comes twice")
            if name.startswith("/") or "\\" in name or ".." in name.split("/"):
                raise _Refused(f"{shown(name)} is not a plain name")
            if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 0x1:
                raise _Refused(f"{shown(name)} is compressed or encrypted")
            if member.file_size != member.compress_size:
                raise _Refused(f"{shown(name)} has two sizes")
            stream.seek(member.header_offset)
            local = stream.read(30)
            if len(local) < 30 or local[:4] != b"PK\x03\x04":
                raise _Refused(f"{shown(name)} has no header of its own")
            lengths = struct.unpack("<HH", local[26:30])
            if stream.read(lengths[0]) != member.orig_filename.encode():
                raise _Refused(f"{shown(name)} has another name in its header")
            begin = member.header_offset + 30 + sum(lengths)
            spans[name] = (begin, begin + member.file_size)
            if spans[name][1] > size:
                raise _Refused(f"{shown(name)} runs past the end of the file")
    position = 0
    for name, (begin, end) in sorted(spans.items(), key=lambda item: item[1]):
        if begin < position:
            raise _Refused(f"{shown(name)} overlaps another member")
        position = end
    return spans


def _require_archive(stream: BinaryIO) -> int:
    """Size of the file, once it is an archive whose directory is short enough to be read."""
    size = stream.seek(0, os.SEEK_END)
    stream.seek(max(size - _END_BYTES, 0))
    tail = stream.read()
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) - at < 22:
        raise _Refused("it is not a zip file, as torch writes since 1.6, or it is cut short")
    length = struct.unpack_from("<I", tail, at + 12)[0]
    if length == 0xFFFFFFFF and (wide := tail.rfind(b"PK\x06\x06", 0, at)) >= 0:
        length = struct.unpack_from("<Q", tail.ljust(wide + 56, b"\0"), wide + 40)[0]
    if length > _MAX_DIRECTORY:
        raise _Refused(f"the list of its members has {length} bytes")
    stream.seek(0)
    return size


# ---- The pickle, as data


def _interpret(program: bytes) -> Any:
    """What the opcodes build. Raises _Refused for any that do more than build plain data.

    Values are shared by the memo, so what a few opcodes build can have 2^1000 parts: nothing here
    looks into a value that is not known to be flat, and names alone are keys.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def pop_mark() -> list[Any]:
        start = marks.pop()
        taken = stack[start:]
        del stack[start:]
        return taken

    try:
        operations: Iterable[tuple[Any, Any, Any]] = pickletools.genops(program)
        for count, (opcode, argument, _) in enumerate(operations):
            name = opcode.name
            if count > _MAX_OPERATIONS:
                raise _Refused(f"its data.pkl has more than {_MAX_OPERATIONS} operations")
            if name == "STOP":
                return stack.pop()
            if name in ("PROTO", "FRAME"):
                pass
            elif name == "MARK":
                marks.append(len(stack))
            elif name in _CONSTANTS:
                stack.append(_CONSTANTS[name]())
            elif name in _ARGUMENTS:
                stack.append(argument)
            elif name in ("BINPUT", "LONG_BINPUT"):
                memo[argument] = stack[-1]
            elif name == "MEMOIZE":
                memo[len(memo)] = stack[-1]
            elif name in ("BINGET", "LONG_BINGET"):
                stack.append(memo[argument])
            elif name == "TUPLE":
                stack.append(tuple(pop_mark()))
            elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
                count = int(name[-1])
                if len(stack) < count:
                    raise _Refused("a tuple of more values than there are")
                stack[-count:] = [tuple(stack[-count:])]
            elif name == "APPEND":
                value = stack.pop()
                _of(list, stack[-1]).append(value)
            elif name == "APPENDS":
                values = pop_mark()
                _of(list, stack[-1]).extend(values)
            elif name == "SETITEM":
                value, key = stack.pop(), stack.pop()
                _of(dict, stack[-1])[_key(key)] = value
            elif name == "SETITEMS":
                values = pop_mark()
                keys = map(_key, values[::2])
                _of(dict, stack[-1]).update(zip(keys, values[1::2], strict=True))
            elif name == "GLOBAL":
                if argument not in {_ORDERED_DICT, _TENSOR, *STORAGES}:
                    raise _Refused(f"it asks for {shown(argument)}, which is not a tensor")
                stack.append(_Global(argument))
            elif name == "BINPERSID":
                stack.append(_storage(stack.pop()))
            elif name == "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                stack.append(_call(function, arguments))
            elif name == "BUILD":  # the attributes of an OrderedDict: versions of modules
                stack.pop()
                _of(dict, stack[-1])
            else:
                raise _Refused(f"its data.pkl uses {name}, which no dict of tensors needs")
    except _Refused:
        raise
    except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
        raise _Refused(f"its data.pkl is damaged ({type(error).__name__})") from error
    raise _Refused("its data.pkl has no end")


_CONSTANTS: dict[str, Callable[[], Any]] = {
    "EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple,
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False,
}  # fmt: skip
_ARGUMENTS = {
    "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE",
}  # fmt: skip


def _key(value: Any) -> Any:
    """A name, or a number: the hash of nested tuples can take for ever."""
    if type(value) not in (str, int):
        raise _Refused(f"it has the name {shown(value)}")
    return value


def _of[T](kind: type[T], value: Any) -> T:
    if type(value) is not kind:
        raise _Refused(f"it treats {shown(value)} as a {kind.__name__}")
    return value


def _storage(reference: Any) -> _Storage:
    """What a persistent id names: ("storage", type, key, device, number of elements)."""
    kind, storage, key, _, size = _of(tuple, reference)
    if kind != "storage" or not isinstance(storage, _Global) or storage.name not in STORAGES:
        raise _Refused(f"it refers to {shown(reference)}")
    return _Storage(STORAGES[storage.name], _of(str, key), _sizes((size,))[0])


def _call(function: Any, arguments: Any) -> Any:
    name = _of(_Global, function).name
    if name == _ORDERED_DICT:
        if not (type(arguments) is tuple and len(arguments) == 0):
            raise _Refused("it makes an OrderedDict of values")
        return {}
    if name == _TENSOR:
        if not 4 <= len(_of(tuple, arguments)) <= 8:
            raise _Refused(f"it makes a tensor of {len(arguments)} values")
        storage, offset, shape, strides = arguments[:4]
        if not len(_of(tuple, shape)) == len(_of(tuple, strides)) <= 8:
            raise _Refused(f"a tensor of shape {shown(shape)} has strides {shown(strides)}")
        first = _sizes((offset,))[0]
        return _Tensor(_of(_Storage, storage), first, _sizes(shape), _sizes(strides))
    raise _Refused(f"it calls {name}")


def _sizes(values: tuple[Any, ...]) -> tuple[int, ...]:
    if not all(type(n) is int and 0 <= n < 2**48 for n in values):
        raise _Refused(f"{shown(values)} are not sizes")
    return values


# ---- Writing


def write(
    file: Path, shapes: Mapping[str, tuple[int, ...]], dtype: Any, parts: Iterable[np.ndarray]
) -> None:
    """Write a file that `torch.load(weights_only=True)` reads, with tensors in the order of
    `shapes`.

    Each comes whole, or in consecutive parts along its first axis, in C order.
    """
    coming = iter(parts)
    with file.open("wb") as out, zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        # A ZipInfo has no time of its own; names alone would be stored with that of writing.
        archive.writestr(zipfile.ZipInfo("archive/data.pkl"), _program(shapes, np.dtype(dtype)))
        archive.writestr(zipfile.ZipInfo("archive/byteorder"), "little")
        for i, shape in enumerate(shapes.values()):
            member = zipfile.ZipInfo(f"archive/data/{i}")
            header = out.tell() + 30 + len(member.filename) + 20  # and 20 for large files
            padding = -(header + 4) % _ALIGNMENT
            member.extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding
            with archive.open(member, "w", force_zip64=True) as stream:
                left = math.prod(shape) * np.dtype(dtype).itemsize
                while left:
                    part = next(coming)
                    stream.write(part.reshape(-1).view(np.uint8))
                    left -= part.nbytes
        archive.writestr(zipfile.ZipInfo("archive/version"), "3\n")


def _program(shapes: Mapping[str, tuple[int, ...]], dtype: np.dtype) -> bytes:
    """data.pkl of a dict of contiguous tensors, each in a storage of its own, in protocol 2."""
    storage = next(name for name, kind in STORAGES.items() if kind == dtype)
    parts = [b"\x80\x02}("]  # protocol, empty dict, mark
    for i, (name, shape) in enumerate(shapes.items()):
        count, strides = 1, []
        for n in reversed(shape):
            strides.insert(0, count)
            count *= n
        parts += [
            _text(name),
            _global(_TENSOR),
            b"((",  # the arguments; the storage's reference
            _text("storage"), _global(storage), _text(str(i)), _text("cpu"), _number(count),
            b"tQ",
            _number(0), _tuple(shape), _tuple(strides),
            b"\x89", _global(_ORDERED_DICT), b")R",  # no gradient, no hooks
            b"tR",
        ]  # fmt: skip
    return b"".join([*parts, b"u."])


def _text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def _global(name: str) -> bytes:
    return b"c" + name.replace(" ", "\n").encode() + b"\n"


def _number(value: int) -> bytes:
    if value < 2**31:
        return b"J" + struct.pack("<i", value)
    return b"\x8a\x08" + struct.pack("<q", value)


def _tuple(values: Iterable[int]) -> bytes:
    return b"(" + b"".join(map(_number, values)) + b"t"
