"""File access: bounded reads of files that users bring, atomic writes of ours.

A path can lead to anything: a pipe that nobody writes to, an endless device, a file of a terabyte,
or a web page that was downloaded in place of the data. So every file is opened and every JSON is
parsed here, where each of these gives a one-line error that says what to do.
"""

import json
import math
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from llama_jax.config import InputError, require
from llama_jax.runtime.places import expand

PathLike = str | os.PathLike[str]
AnyPath = Any
"""A pathlib.Path, or an etils.epath.Path that behaves like one."""
MAX_BYTES = 32 << 20
"""Size limit of a file that is read whole: a tokenizer or a description takes 0.5 to 17 MB."""
_HEAD = 512  # bytes by which a file is told
_NAME_BYTES = 255  # of the name of a file, on every file system in use
_KINDS = {
    stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
}  # fmt: skip
_AGAIN = "accept the licence if the model is gated, log in, and download it again"
_INSTEAD = (
    (
        rb"version https://git-lfs\.github\.com/spec/",
        "a Git LFS pointer and not the file itself: run `git lfs pull` in its folder, or download "
        "it again",
    ),
    (rb"\s*<(!doctype html|html)", f"a web page and not the file itself: {_AGAIN}"),
    (rb"\s*(<\?xml[^>]*>\s*)?<Error>", f"a server's refusal and not the file: {_AGAIN}"),
    (
        rb'\s*(\{\s*"error"\s*:|(access to model .{1,200} is restricted|invalid username or '
        rb"password|unauthorized|forbidden|entry not found|repository not found|not found)\b)",
        f"a server's refusal and not the file: {_AGAIN}",
    ),
)


def as_path(path: PathLike) -> AnyPath:
    """A pathlib-like path: `~` expanded; URLs such as gs:// through etils.epath."""
    text = expand(path)
    if "://" not in text:
        return Path(text)
    from etils import epath  # 0.1 s that a local path need not spend

    return epath.Path(text)


def reason(error: OSError) -> str:
    """The system's text for an error; for object stores, the error's own text."""
    return error.strerror or str(error) or type(error).__name__


def is_file_name(text: str) -> bool:
    """Whether a name found in a file refers to a file beside it, and to no other place."""
    try:
        size = len(os.fsencode(text))
    except UnicodeEncodeError:
        return False
    return text not in ("", ".", "..") and not {"/", "\\", "\0"} & set(text) and size <= _NAME_BYTES


# ---- Reading


def open_file(path: PathLike, what: str = "") -> BinaryIO:
    """A regular local file, open for reading.

    Raises InputError, beginning with `what` it should have been, if it does not exist, is a folder,
    a pipe or a device (behind links too), or if it is a page or pointer that a download left
    instead.
    """
    where = f"{what} {os.fspath(path)}".lstrip()
    try:
        # A pipe that nobody has opened for writing would be waited for.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        said = reason(error) if isinstance(error, OSError) else str(error)
        raise InputError(f"{where} cannot be read: {said}") from error
    file = os.fdopen(descriptor, "rb", closefd=True) if _is_regular(descriptor) else None
    if file is None:
        kind = _KINDS.get(stat.S_IFMT(os.fstat(descriptor).st_mode), "no regular file")
        os.close(descriptor)
        raise InputError(f"{where} is {kind}, not a file")
    try:
        _require_itself(file.read(_HEAD), where)
        file.seek(0)
    except BaseException as error:
        file.close()
        if isinstance(error, OSError):
            raise InputError(f"{where} cannot be read: {reason(error)}") from error
        raise
    return file


def _is_regular(descriptor: int) -> bool:
    return stat.S_ISREG(os.fstat(descriptor).st_mode)


def head(path: PathLike, size: int) -> bytes:
    """The first bytes of a file; empty for anything that is not a readable file."""
    try:
        with open_file(path) as file:
            return file.read(size)
    except (InputError, OSError):
        return b""


def read_bytes(path: PathLike, what: str = "", limit: int = MAX_BYTES) -> bytes:
    """The content of a small file. Raises InputError as `open_file`, and for one above `limit`."""
    place, where = as_path(path), f"{what} {os.fspath(path)}".lstrip()
    try:
        if isinstance(place, Path):
            with open_file(place, what) as file:
                content = file.read(limit + 1)
        else:
            size = place.stat().length
            content = place.read_bytes() if size <= limit else bytes(0)
            require(size <= limit, f"{where} has {size:,} bytes; {limit:,} are read at most")
            _require_itself(content[:_HEAD], where)
    except OSError as error:
        raise InputError(f"{where} cannot be read: {reason(error)}") from error
    require(len(content) <= limit, f"{where} is too large: {limit:,} bytes are read at most")
    return content


def _require_itself(begin: bytes, where: str) -> None:
    """InputError for what downloads leave in the place of a file."""
    for pattern, said in _INSTEAD:
        if re.match(pattern, begin, re.IGNORECASE):
            raise InputError(f"{where} is {said}")


def read_json(path: PathLike, what: str = "", limit: int = MAX_BYTES // 2) -> dict[str, Any]:
    """A JSON object from a file. Raises InputError as `read_bytes`, and if it is none."""
    where = f"{what} {os.fspath(path)}".lstrip()
    values = parse_json(read_bytes(path, what, limit), where)
    require(isinstance(values, dict), f"{where} must hold a JSON object, not {shown(values)}")
    return values


def parse_json(text: bytes | str, where: str, *, unique: bool = False) -> Any:
    """A JSON value. Raises InputError if it is invalid, is nested too deep, has numbers of more
    than 20 digits or text that is not valid Unicode, or, with `unique`, an object with a duplicate
    name."""
    raw = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    # Nothing that is described has so large a number, and arithmetic with one can fail anywhere.
    whole = _integer if re.search(rb"\d{20}", raw) else None
    try:
        values = json.loads(text, parse_int=whole, object_pairs_hook=_once if unique else None)
        if re.search(rb"\\u[dD][89a-fA-F]", raw):  # only an escape brings in a lone surrogate
            json.dumps(values, ensure_ascii=False).encode()
    except RecursionError:
        raise InputError(f"{where} is nested too deep for JSON of this kind") from None
    except ValueError as error:
        raise InputError(f"{where} is not valid JSON: {error!s:.120}") from error
    return values


def _integer(digits: str) -> int:
    if len(digits) > 20:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a name comes twice")
    return values


# ---- What files say, in messages


def shown(value: Any, limit: int = 60) -> str:
    """A value as text for a message: like its repr, but at most `limit` characters and fast for a
    value of any size or depth. Every message about a file's content uses it."""
    parts, length = [], 0
    for part in _repr_parts(value, limit):
        parts.append(part)
        length += len(part)
        if length > limit:
            return "".join(parts)[: limit - 3] + "..."
    return "".join(parts)


def _repr_parts(value: Any, limit: int) -> Iterator[str]:
    """The repr of plain data from left to right, so that its reader can stop."""
    if isinstance(value, str | bytes):
        yield repr(value[: limit + 1])
    elif isinstance(value, int) and value.bit_length() > 4 * limit:  # its digits take long to find
        yield f"{'-' * (value < 0)}2^{value.bit_length() - 1} and more"
    elif isinstance(value, dict):
        for i, (key, item) in enumerate(value.items()):
            yield ", " if i else "{"
            yield from _repr_parts(key, limit)
            yield ": "
            yield from _repr_parts(item, limit)
        yield "}" if value else "{}"
    elif isinstance(value, list | tuple):
        yield "[" if isinstance(value, list) else "("
        for i, item in enumerate(value):
            yield ", " if i else ""
            yield from _repr_parts(item, limit)
        single = isinstance(value, tuple) and len(value) == 1
        yield "]" if isinstance(value, list) else ",)" if single else ")"
    elif isinstance(value, int | float | None):
        yield repr(value)
    else:
        yield f"<{type(value).__name__}>"


# ---- Writing


def json_text(values: Any, indent: int | None = None) -> str:
    """JSON that every parser accepts: numbers that are not finite, which JSON lacks, become
    null."""
    return json.dumps(_finite(values), indent=indent, allow_nan=False)


def _finite(values: Any) -> Any:
    if isinstance(values, dict):
        return {key: _finite(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [_finite(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values


def write_atomic(path: PathLike, content: bytes) -> None:
    """Write a file so that a reader sees the old one or the new one, never a part.

    A local file is written under a temporary name, flushed to the disk and renamed; missing parent
    folders are made. An object behind a URL appears as a whole anyway.
    """
    target = as_path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    if not isinstance(target, Path):
        target.write_bytes(content)
        return
    temporary = target.parent / f".{target.name}.{os.getpid()}.tmp"
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
