"""Small files: whole or not at all, on this machine or behind a URL such as gs://."""

import os
from pathlib import Path
from typing import Any

from llama_jax.config import InputError

PathLike = str | os.PathLike[str]
AnyPath = Any
"""A pathlib.Path, or an etils.epath.Path that behaves like one."""


def as_path(path: PathLike) -> AnyPath:
    """A pathlib-like path: `~` expanded; URLs such as gs:// through etils.epath."""
    text = os.fspath(path)
    if "://" not in text:
        return Path(text).expanduser()
    from etils import epath  # 0.1 s that a local path need not spend

    return epath.Path(text)


def reason(error: OSError) -> str:
    """What the system says of an error; object stores say it in the error's own words."""
    return error.strerror or str(error) or type(error).__name__


def read_bytes(path: PathLike, what: str) -> bytes:
    """The content of a file; InputError with `what` it should have been when it cannot be read."""
    try:
        return as_path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{what} {os.fspath(path)} cannot be read: {reason(error)}") from error


def write_atomic(path: PathLike, content: bytes) -> None:
    """Write a file so that a reader sees the old one or the new one, never a part.

    On this machine: under a temporary name, flushed to the disk, renamed; missing parent folders
    are made. An object behind a URL appears whole anyhow.
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
