"""Small files: whole or not at all, on this machine or behind a URL such as gs://."""

import os
from pathlib import Path
from typing import Any

from llama_jax.config import InputError

PathLike = str | os.PathLike[str]


def as_path(path: PathLike) -> Any:
    """A pathlib-like path: `~` expanded; URLs such as gs:// through etils.epath."""
    text = os.fspath(path)
    if "://" not in text:
        return Path(text).expanduser()
    from etils import epath  # 0.1 s that a local path need not spend

    return epath.Path(text)


def read_bytes(path: PathLike, what: str) -> bytes:
    """The content of a file; InputError with `what` it should have been when it cannot be read."""
    try:
        return as_path(path).read_bytes()
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"{what} {os.fspath(path)} cannot be read: {reason}") from error


def write_atomic(path: PathLike, content: bytes) -> None:
    """Write the file under a temporary name, flush it to the disk, then rename it.

    Makes missing parent folders. A reader sees the old file or the new one, never a part.
    """
    target = as_path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f".{target.name}.{os.getpid()}.tmp"
    try:
        if isinstance(target, Path):
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        else:
            temporary.write_bytes(content)
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
