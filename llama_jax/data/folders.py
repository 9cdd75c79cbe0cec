"""Selects the data files of a folder, each real file once; names what is left out, and why."""

import functools
import logging
import os
import re
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from llama_jax.config import InputError, require
from llama_jax.runtime.files import AnyPath, reason

log = logging.getLogger(__name__)
# Folders of copies and scraps, as editors, archivers, Hadoop and Python leave them.
_SCRAPS = {"backup", "backups", "bak", "__macosx", "__pycache__", "_temporary", "lost+found"}
_PAPERS = re.compile(
    r"(licen[cs]e|copying|copyright|readme|notice|changelog|contributing|citation|requirements)"
    r"([-_. ].*)?\.txt",
    re.IGNORECASE,
)
_SHOWN = 3
"""Names that are given for each reason."""


class Found(NamedTuple):
    """The data files of a folder, sorted by path, and the excluded files by reason."""

    files: list[AnyPath]
    left: Mapping[str, Sequence[str]]
    """Paths inside the folder by reason, such as "hidden"."""


def search(path: AnyPath, suffixes: tuple[str, ...]) -> Found:
    """The file itself, or those below a folder that end in one of the suffixes.

    Links are followed, but each file is taken once. Hidden files, backups and licences are left
    out, except for a file that is named itself.

    Raises InputError if the path does not exist, cannot be listed or holds no such file.
    """
    known = ", ".join(suffixes)
    if not path.is_dir():
        require(path.exists(), f"data {path} does not exist")
        require(
            path.name.endswith(suffixes),
            f"data {path} is of no known kind; files must end in {known}",
        )
        return Found([path], {})
    files, left = _walk(path, suffixes)
    others = f"; left out: {describe(left)}" if left else ""
    require(files, f"folder {path} holds no {known} file{others}")
    return Found(sorted(files), left)


def describe(left: Mapping[str, Sequence[str]]) -> str:
    """The excluded files on one line: "LICENSE.txt (licence or readme); 9 .png such as a.png"."""
    return "; ".join(f"{_some(names)} ({why})" for why, names in left.items())


def say(folder: AnyPath, files: int, left: Mapping[str, Sequence[str]]) -> None:
    """Log what was left out of a folder, once per process."""
    if left:
        counted = f"{files} file{'s' if files != 1 else ''}"
        _say_once(f"data {folder}: {counted} read; left out: {describe(left)}")


@functools.cache
def _say_once(message: str) -> None:
    log.info(message)


def _some(names: Sequence[str]) -> str:
    if len(names) <= _SHOWN:
        return ", ".join(names)
    return f"{', '.join(names[: _SHOWN - 1])} and {len(names) - _SHOWN + 1} more"


def _walk(root: AnyPath, suffixes: tuple[str, ...]) -> tuple[list[AnyPath], dict[str, list[str]]]:
    files: list[AnyPath] = []
    left: defaultdict[str, list[str]] = defaultdict(list)
    seen = {_real(root)}
    # What lies here is taken first, and what links lead to only if nothing else did.
    here, links = deque(_entries(root)), deque[AnyPath]()
    while here or links:
        direct = bool(here)
        path = here.popleft() if direct else links.popleft()
        if direct and isinstance(path, Path) and path.is_symlink():
            links.append(path)
            continue
        is_folder = path.is_dir()
        why = _why_not(path, is_folder, suffixes) or (_real(path) in seen and "linked twice")
        if why:
            left[why].append(str(path)[len(str(root)) :].strip("/") + "/" * is_folder)
            continue
        seen.add(_real(path))
        if is_folder:
            here.extend(_entries(path))
        else:
            files.append(path)
    return files, {why: sorted(names) for why, names in left.items()}


def _why_not(path: AnyPath, is_folder: bool, suffixes: tuple[str, ...]) -> str:
    """The reason to leave a file or folder out; empty if there is none."""
    if path.name.startswith("."):
        return "hidden"
    if is_folder:
        return "backup or scraps" if path.name.lower() in _SCRAPS else ""
    if not path.is_file():
        return "no file" if path.exists() else "broken link"
    if not path.name.endswith(suffixes):
        return f"{path.suffix} is not read" if path.suffix else "no ending"
    return "licence or readme" if _PAPERS.fullmatch(path.name) else ""


def _entries(folder: AnyPath) -> Iterable[AnyPath]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise InputError(f"folder {folder} cannot be read: {reason(error)}") from error


def _real(path: AnyPath) -> str:
    """One name for each file: links resolved, where there can be any."""
    return os.path.realpath(path) if isinstance(path, Path) else str(path)
