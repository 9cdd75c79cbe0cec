"""Atomic results: made under a temporary name, then renamed.

It is made in a folder beside the target, under a name that nothing else has: the target's, eight
random digits, and `.llama-jax.tmp`. A file in it, locked while the conversion lives, tells later
conversions which of these folders was left by one that was killed. Nothing else is ever removed.
"""

import contextlib
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from etils import epath

from llama_jax.checkpoint import storage
from llama_jax.config import require

MARK = ".llama-jax-conversion"
_SUFFIX = "llama-jax.tmp"


@contextmanager
def staged(target: Path, *, is_file: bool) -> Iterator[Path]:
    """Context with a new folder beside the target. On success its content becomes the target, or,
    if that is a file, the target and the files beside it; on failure it is removed.

    Raises InputError if the folder of the target does not exist, or if a file that would go beside
    the result exists already and belongs to a different model.
    """
    require(target.parent.is_dir(), f"{target.parent} does not exist: make that folder first")
    _remove_left_over(target)
    folder = target.with_name(f"{target.name}.{secrets.token_hex(4)}.{_SUFFIX}")
    folder.mkdir()
    try:
        with _marked(folder):
            yield folder
            if is_file:
                _require_not_replaced(folder, target)
        storage.make_durable(epath.Path(folder))
        if not is_file:
            _rename(folder, target)
            return
        for file in sorted(folder.iterdir(), key=lambda f: f.name == target.name):
            if file.name == target.name or not target.with_name(file.name).exists():
                _rename(file, target.with_name(file.name))
        shutil.rmtree(folder)
    except BaseException:
        with suppress(OSError):
            shutil.rmtree(folder)
        raise


def _rename(made: Path, final: Path) -> None:
    """Give a file or a folder its name, unless something has it by now."""
    free = not final.exists() or (final.is_dir() and not any(final.iterdir()))
    require(free, f"{final} was made by another program meanwhile: name a new place")
    os.rename(made, final)
    storage.sync(os.fspath(final.parent))


@contextmanager
def _marked(folder: Path) -> Iterator[None]:
    """A folder is ours, and in use, while this lasts."""
    mark = folder / MARK
    with mark.open("w") as file:
        _lock(file.fileno())
        yield
        mark.unlink()


def _remove_left_over(target: Path) -> None:
    """Remove what killed conversions to the same target left."""
    name = re.escape(target.name) + rf"\.[0-9a-f]{{8}}\.{re.escape(_SUFFIX)}"
    for folder in target.parent.iterdir():
        if not re.fullmatch(name, folder.name) or not (folder / MARK).is_file():
            continue
        with contextlib.suppress(OSError), (folder / MARK).open() as file:
            if _lock(file.fileno()):
                shutil.rmtree(folder)


def _lock(descriptor: int) -> bool:
    """Whether the file is locked by this call: by none else, on a file system that has locks."""
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def _require_not_replaced(folder: Path, target: Path) -> None:
    """InputError if another model's file has the name of one that goes beside the result."""
    for file in folder.iterdir():
        beside = target.with_name(file.name)
        same = file.name == MARK or not beside.exists() or _same(beside, file)
        require(
            same, f"{beside} already exists and belongs to a different model: choose a new folder"
        )


def _same(a: Path, b: Path) -> bool:
    return (
        a.is_file()
        and os.stat(a).st_size == os.stat(b).st_size
        and a.read_bytes() == b.read_bytes()
    )
