"""Paths on this machine: home and cache folders, with fallbacks."""

import contextlib
import functools
import hashlib
import logging
import os
import platform
import tempfile
from collections.abc import Iterator
from pathlib import Path

from llama_jax.config import InputError, require

logger = logging.getLogger(__name__)


def expand(path: str | os.PathLike[str]) -> str:
    """A path with a leading `~` expanded; URLs and all other paths unchanged.

    Raises InputError if the home folder is unknown: in containers that run as a user without an
    entry in /etc/passwd, say.
    """
    text = os.fspath(path)
    found = os.path.expanduser(text)
    require(
        not text.startswith("~") or found != text,
        f"{text}: the home folder is not known (HOME is not set); write the path out, or ./{text}",
    )
    return found


@contextlib.contextmanager
def naming(place: str | os.PathLike[str]) -> Iterator[None]:
    """Context that adds this place to an OSError that names no file, such as for a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, os.fspath(place)) from error


def cache_folder(path: str, setting: str) -> str:
    """A folder that caches may be written to: `path`, made if it is missing.

    A path in the home folder is replaced by one in the system's temporary folder for users who have
    no home folder or may not write there, which is logged. URLs are unchanged.

    Raises InputError, naming the setting, if it cannot be written.
    """
    if "://" in path:
        return path
    try:
        folder = expand(path)
        os.makedirs(folder, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(13, "Permission denied")
        return folder
    except (InputError, OSError) as error:
        if path.startswith("~/"):
            return os.path.join(_private(), path[2:])
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{setting} {path} cannot be written: {reason}") from error


@functools.cache
def _private() -> str:
    """A folder of this user alone in the system's temporary one: what others could write there
    would be run. Raises InputError if it belongs to somebody else."""
    folder = Path(tempfile.gettempdir()) / f"llama_jax-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    require(
        found.st_uid == os.getuid() and not found.st_mode & 0o022 and not folder.is_symlink(),
        f"the home folder cannot be written, and {folder} belongs to somebody else: set HOME, or "
        "data.cache_dir and compilation_cache",
    )
    logger.warning("no home folder to keep caches in: they are in %s", folder)
    return os.fspath(folder)


@functools.cache
def cpu_name() -> str:
    """One name for all machines that can run each other's compiled programs."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        said = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        said = platform.processor()
    return hashlib.sha256(f"{platform.machine()} {said}".encode()).hexdigest()[:12]
