"""One folder of arrays: written by orbax in the background, committed whole, verified on read."""

import functools
import itertools
import logging
import operator
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from llama_jax.checkpoint import manifest as mf
from llama_jax.checkpoint.manifest import ArrayRecord, Manifest
from llama_jax.checkpoint.zarr import PlainArray, PlainArrays
from llama_jax.config import InputError
from llama_jax.runtime.files import parse_json, read_bytes

logger = logging.getLogger(__name__)
# Arrays that are read at once: a core each while they come from the page cache. More than there
# are cores wait for each other's new pages.
_READERS = min(os.cpu_count() or 1, 4)
_CLOSED = "Event loop is closed"


def _is_news(record: logging.LogRecord) -> bool:
    """Drop the tracebacks that orbax logs for what it also raises: we tell it once, in a line. And
    that a folder in plain Zarr, as conversions write it, has no databases to merge."""
    of_orbax = "orbax" in record.pathname
    return not (of_orbax and (record.exc_info or "Skipping merge of OCDBT" in str(record.msg)))


def _orbax() -> Any:
    """The module: a third of a second, which reading plain arrays spares."""
    import orbax.checkpoint

    # Not before: records of the logger that absl makes then name the files of their callers.
    logging.getLogger("absl").addFilter(_is_news)
    return orbax.checkpoint


_meetings = itertools.count()


class CheckpointError(OSError):
    """A checkpoint could not be written, or none could be read: one line that names the path."""


class Writer:
    """Writes one folder at a time with orbax, in the background."""

    def __init__(self):
        _hush_abandoned()
        ocp = _orbax()
        # Directories made in the background would leave threads behind when making them fails,
        # and compressing float32 weights costs more than the tenth of the bytes that it saves.
        self._orbax = ocp.AsyncCheckpointer(
            ocp.PyTreeCheckpointHandler(use_compression=False),
            async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
        )
        self.close = self._orbax.close
        self._request = ocp.args.PyTreeSave
        self._barrier = ocp.multihost.get_barrier_sync_fn

    def start(
        self,
        final: epath.Path,
        temporary: str,
        tree: Any,
        manifest: Manifest,
        files: Mapping[str, bytes],
    ) -> Callable[[], None]:
        """Copy the arrays to the host and start to write; the result waits and commits.

        temporary: the folder's name until then, where folders can be renamed.
        """
        leaves = mf.flatten(tree)
        manifest.to_json()  # values that JSON has not are refused before anything is written
        digests = {name: mf.digest(leaf) for name, leaf in leaves.items()}
        arrays = {
            name: ArrayRecord(shape=tuple(leaf.shape), dtype=str(leaf.dtype), digest="")
            for name, leaf in leaves.items()
        }
        stored = _nest({name: leaf for name, leaf in leaves.items() if leaf.size})
        folder = final.with_name(temporary) if can_rename(final) else final
        with _all_or_nothing(folder):
            if folder == final and jax.process_index() == 0:
                (final / mf.FILENAME).unlink(missing_ok=True)
            request = self._request(stored)
            self._orbax.save(folder / manifest.folder, args=request, force=True)

        def commit() -> None:
            with _all_or_nothing(folder):
                self._orbax.wait_until_finished()
                if jax.process_index() == 0:
                    done = replace(
                        manifest,
                        arrays={
                            name: replace(array, digest=mf.as_text(digests[name]))
                            for name, array in arrays.items()
                        },
                        files={name: mf.sha256(data) for name, data in files.items()},
                    )
                    for name, data in files.items():
                        (folder / name).write_bytes(data)
                    (folder / mf.FILENAME).write_text(done.to_json())
                    if folder != final:
                        rename_durably(folder, final)

        return commit

    def meet(self) -> None:
        """Wait for the other hosts, so that none continues before host 0 has committed."""
        # Not a device collective: those must come from the main thread, in one order.
        self._barrier()(key=f"llama_jax_checkpoint_{next(_meetings)}", timeout_ms=600_000)


@contextmanager
def _all_or_nothing(folder: epath.Path) -> Iterator[None]:
    """Remove what was written if writing fails: a full disk must not stay full."""
    try:
        yield
    except BaseException:
        if jax.process_index() == 0:
            with suppress(OSError):
                folder.rmtree(missing_ok=True)
        raise


def make_durable(path: epath.Path) -> None:
    """Return when a file, or all of a folder, is on the disk."""
    if not path.is_dir():
        sync(os.fspath(path))
    for folder, _, names in os.walk(path):
        for name in (*names, "."):
            sync(os.path.join(folder, name))


def rename_durably(folder: epath.Path, final: epath.Path) -> None:
    """Make a folder appear as `final` once all of it is on the disk, replacing an existing one."""
    make_durable(folder)
    old = final.with_name(final.name + ".old.tmp")
    filled = final.is_dir() and any(final.iterdir())  # an empty folder gives way, as a file does
    if filled:
        final.rename(old)
    os.replace(folder, final)
    sync(os.fspath(final.parent))
    if filled:
        old.rmtree(missing_ok=True)


def sync(path: str) -> None:
    """Return when a file, or the listing of a folder, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def discard(folder: epath.Path) -> None:
    """Delete a checkpoint such that a partly deleted one is never taken for a checkpoint."""
    try:
        if can_rename(folder):
            folder = folder.rename(folder.with_name(folder.name + ".old.tmp"))
        else:
            (folder / mf.FILENAME).unlink(missing_ok=True)
        folder.rmtree()
    except OSError as error:
        logger.warning("%s cannot be removed: %s", folder, one_line(error))


def restore(
    folder: epath.Path, step: int | None, abstract: Any, prefix: str
) -> tuple[Any, Manifest]:
    """The arrays whose names start with `prefix`, once their digests agree.

    Raises InputError if `abstract` is another tree, another exception if anything is damaged.
    """
    wanted = mf.flatten(abstract)
    started: dict[str, Any] = {}

    def there(name: str, leaf: Any) -> None:
        if isinstance(leaf, jax.Array) and len(leaf.sharding.device_set) == 1:
            started[name] = mf.digest(leaf)

    loaded: tuple[Manifest, dict[str, Any]] | None = None
    failure: Exception | None = None
    try:
        manifest = Manifest.read(folder, step)
        manifest.require_same(wanted, prefix, folder)
        loaded = manifest, read(folder / manifest.folder, wanted, there)
    except Exception as error:
        failure = error
    # Every host must take part in what follows, or none: the other digests are collective.
    everywhere = _on_all_hosts(loaded is not None)
    if loaded is None or not everywhere:
        raise failure or ValueError("another host cannot read it")
    manifest, leaves = loaded
    started |= {name: mf.digest(leaf) for name, leaf in leaves.items() if name not in started}
    damaged = [n for n, lanes in started.items() if mf.as_text(lanes) != manifest.arrays[n].digest]
    if damaged:
        more = f" and of {len(damaged) - 1} more" if len(damaged) > 1 else ""
        raise ValueError(f"array {damaged[0]} is damaged (its digest{more} does not agree)")
    return jax.tree.unflatten(jax.tree.structure(abstract), list(leaves.values())), manifest


def read(
    folder: epath.Path,
    wanted: Mapping[str, Any],
    there: Callable[[str, Any], None] = lambda name, leaf: None,
) -> dict[str, Any]:
    """Arrays from an orbax folder: jax arrays where a sharding is given, else NumPy arrays.

    there: called with some arrays while others are still read, by several threads.
    """
    leaves = _read_plain(folder, wanted, there)
    stored = {name: a for name, a in wanted.items() if a.size and name not in leaves}
    if stored:
        ocp = _orbax()
        args = _nest({name: _restore_args(a) for name, a in stored.items()})
        request = ocp.args.PyTreeRestore(args, restore_args=args, partial_restore=True)
        _hush_abandoned()
        try:
            with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as orbax:
                restored = orbax.restore(folder, args=request)
            for name in stored:
                leaves[name] = functools.reduce(operator.getitem, name.split("/"), restored)
        except Exception as error:
            raise _explained(error, folder) from error
    for name, a in wanted.items():
        if not a.size:  # orbax has no empty arrays
            leaves[name] = _zeros(a)
        shape, dtype = (getattr(leaves[name], key, None) for key in ("shape", "dtype"))
        if (shape, dtype) != (a.shape, a.dtype):
            raise ValueError(f"array {name} is damaged (read as {dtype}, shape {shape})")
    return {name: leaves[name] for name in wanted}


def _read_plain(
    folder: epath.Path, wanted: Mapping[str, Any], there: Callable[[str, Any], None]
) -> dict[str, Any]:
    """Those arrays that lie there as plain numbers: each device's part straight from the file."""
    if not can_rename(folder):
        return {}
    arrays, plain = PlainArrays(Path(folder)), dict[str, PlainArray]()
    for name, a in wanted.items():
        stored = arrays.find(name, a.shape, a.dtype)
        if stored is not None and a.size:
            plain[name] = stored

    def array(name: str) -> Any:
        stored, a = plain[name], wanted[name]
        if a.sharding is None:
            return stored.read((slice(None),) * len(a.shape))
        leaf = jax.make_array_from_callback(a.shape, a.sharding, stored.read)
        there(name, leaf)
        return leaf

    with ThreadPoolExecutor(_READERS) as pool:
        return dict(zip(plain, pool.map(array, plain), strict=True))


def _explained(error: Exception, folder: epath.Path) -> Exception:
    """Name the metadata file that is to blame, which an error of the JSON parser does not."""
    for path in (*folder.glob("_*"), *folder.glob("array_metadatas/*")):
        try:
            parse_json(read_bytes(path), path.name)
        except InputError:
            return ValueError(f"{path.relative_to(folder.parent)} is damaged")
    reason = error.__cause__ or error
    return ValueError(f"{folder.name}/ is damaged: {type(reason).__name__}: {one_line(reason)}")


@functools.cache
def _hush_abandoned() -> None:
    """Keep stderr clean of what adds nothing to a failure that has been raised.

    When one read or write fails, orbax closes the event loop under the others. Python reports each
    of them as it ends; tensorstore, which calls the loop from C++, reports it as not caught.
    """
    unraisable, uncaught = sys.unraisablehook, sys.excepthook

    def report_unraisable(found: Any) -> None:
        code = getattr(found.object, "cr_code", None)
        of_orbax = code is not None and "orbax" in code.co_filename
        if not of_orbax and str(found.exc_value) != _CLOSED:
            unraisable(found)

    def report_uncaught(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        caller = trace.tb_frame.f_code.co_filename if trace else ""
        if str(error) != _CLOSED or Path(caller).parent.name != "asyncio":
            uncaught(kind, error, trace)

    sys.unraisablehook, sys.excepthook = report_unraisable, report_uncaught


def _restore_args(a: Any) -> Any:
    ocp = _orbax()
    if a.sharding is None:
        return ocp.RestoreArgs(restore_type=np.ndarray, dtype=a.dtype)
    return ocp.ArrayRestoreArgs(
        restore_type=jax.Array, sharding=a.sharding, global_shape=a.shape, dtype=a.dtype
    )


def _zeros(a: Any) -> Any:
    if a.sharding is None:
        return np.zeros(a.shape, a.dtype)
    return jnp.zeros(a.shape, a.dtype, device=a.sharding)


def can_rename(path: epath.Path) -> bool:
    """Whether this is a file system, which renames folders atomically, and not an object store."""
    return "://" not in os.fspath(path)


def _nest(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dicts from names with `/`: what orbax stores, whatever classes the tree has."""
    root: dict[str, Any] = {}
    for name, leaf in leaves.items():
        *parents, last = name.split("/")
        node = root
        for part in parents:
            node = node.setdefault(part, {})
        node[last] = leaf
    return root


def _on_all_hosts(ok: bool) -> bool:
    return bool(np.all(multihost_utils.process_allgather(np.asarray(ok))))


@contextmanager
def failures(what: str) -> Iterator[None]:
    """Context that turns any failure, in orbax or below, into one line."""
    try:
        yield
    except (InputError, CheckpointError):
        raise
    except Exception as error:
        raise CheckpointError(f"{what} failed: {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """The reason, without the specifications that tensorstore puts around it."""
    text = " ".join(str(error).split()) or type(error).__name__
    if code := re.search(r"os_error_code='(\d+)'", text):
        return os.strerror(int(code[1]))
    text = re.sub(r" \[(tensorstore_spec|source locations)[^=]*=.*", "", text)
    text = re.sub(r'Error opening "\w+" driver: ', "", text)
    return text if len(text) <= 400 else f"{text[:200]} ... {text[-195:]}"
