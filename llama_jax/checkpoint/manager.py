"""Saves and restores any tree of arrays with orbax, verified by digests.

    RUN/checkpoints/<step>/{state/ (orbax), manifest.json}
    MODEL/{config.json, tokenizer.model, params/ (orbax), manifest.json}

Orbax copies the arrays to the host, and writes them while the devices go on; every host writes
its shards. It restores damaged bytes as wrong numbers without an error, so the digests of
`manifest.py` are taken on the devices before a save and again after a restore.

A folder with a manifest is complete. On a file system a save is written under a name that ends in
`.tmp` and renamed when every byte is on the disk; in an object store, which cannot rename, the
manifest is written last. Host 0 alone writes manifests, renames and deletes.
"""

import logging
import re
import secrets
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from llama_jax.checkpoint import manifest as mf
from llama_jax.checkpoint import storage
from llama_jax.checkpoint.manifest import Manifest
from llama_jax.checkpoint.storage import CheckpointError
from llama_jax.config import InputError, require
from llama_jax.runtime.places import expand

logger = logging.getLogger(__name__)
MAX_STEP = 2**31
"""Upper bound of steps, enforced by the configuration: folders with larger numbers are not ours."""


class Restored(NamedTuple):
    """The result of `Checkpointer.restore`."""

    step: int
    tree: Any
    extra: dict[str, Any]


@dataclass(frozen=True)
class Report:
    """Result of `verify` for one folder that should have a manifest."""

    path: epath.Path
    step: int | None
    problem: str | None
    """What is wrong with the folder as a whole; None if its manifest and files are sound."""
    arrays: dict[str, str | None]
    """For each array by name: None if it is sound, else what is wrong."""

    @property
    def ok(self) -> bool:
        """Whether everything was found and every digest agrees."""
        return self.problem is None and not any(self.arrays.values())


class Checkpointer:
    """Checkpoints of one run, in `directory` (RUN/checkpoints). Every host makes all calls.

    Kept are the newest `keep` saves, those at multiples of `keep_every`, and the one that was
    restored. A save is deleted only when a later one is durable. An instance that only restores
    writes and deletes nothing.
    """

    def __init__(self, directory: epath.PathLike, *, keep: int, keep_every: int = 0):
        self._directory = _absolute(directory)
        self._keep = keep
        self._keep_every = keep_every
        self._writer = storage.Writer()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._cleaned = False
        self._restored: int | None = None
        self._damaged: set[int] = set()

    def save(self, step: int, tree: Any, extra: Mapping[str, Any] | None = None) -> None:
        """Start to save; returns once the arrays are copied to the host (they may be donated).

        Waits for the save before it. A durable save of the same step is replaced. `extra` holds
        small JSON values. Raises CheckpointError if the previous save failed, or this one could not
        start; InputError if the tree holds something that cannot be saved.
        """
        self.wait()
        final = self._path(step)
        manifest = Manifest(folder="state", step=step, arrays={}, extra=dict(extra or {}))
        with storage.failures(f"saving checkpoint {final}"):
            if not self._cleaned and jax.process_index() == 0:
                self._clean()
            self._cleaned = True
            commit = self._writer.start(final, f"{step}.tmp", tree, manifest, files={})
        self._pending = self._thread.submit(self._finish, commit, step)

    def wait(self) -> None:
        """Block until the save in flight is durable. Raises CheckpointError if it failed."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def close(self) -> None:
        """Wait, then release the threads; also at the end of a `with` block."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()
            self._writer.close()

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            self.close()
        except CheckpointError as error:
            if kind is None:
                raise
            logger.error("%s", error)  # the exception on its way says why the run ends

    def steps(self) -> list[int]:
        """Durable steps in ascending order, read from the disk."""
        return [s for s in saved_steps(self._directory) if (self._path(s) / mf.FILENAME).exists()]

    def restore(self, abstract: Any, step: int | None = None) -> Restored:
        """The newest step whose digests agree (or exactly `step`), laid out as `abstract`.

        abstract: tree of jax.ShapeDtypeStruct; one with a sharding gives a jax array, one without a
        NumPy array. A step that cannot be used is named in a warning, and the next older one is
        tried. Raises InputError if the tree differs from the saved one (it lists where) or nothing
        was saved; CheckpointError if no step verifies (each of them and why).
        """
        restored, damaged = _newest(self._directory, abstract, "", step)
        self._restored = restored.step
        self._damaged |= damaged
        return restored

    def _path(self, step: int) -> epath.Path:
        return self._directory / str(step)

    def _finish(self, commit: Callable[[], None], step: int) -> None:
        with storage.failures(f"saving checkpoint {self._path(step)}"):
            commit()
            self._damaged.discard(step)
            if jax.process_index() == 0:
                for old in self._obsolete(step):
                    storage.discard(self._path(old))
            self._writer.meet()

    def _obsolete(self, saved: int) -> list[int]:
        """Steps that go now that `saved` is durable. Later steps stay: damaged ones, say."""
        steps = saved_steps(self._directory)
        sound = [s for s in steps if s not in self._damaged]
        kept = {*sound[-self._keep :], saved, self._restored}
        if self._keep_every:
            kept |= {s for s in sound if s % self._keep_every == 0}
        return [s for s in steps if s < saved and s not in kept]

    def _clean(self) -> None:
        """Remove what killed saves left."""
        if not self._directory.exists():
            return
        for path in self._directory.iterdir():
            name = path.name.removesuffix(".tmp").removesuffix(".old")
            unfinished = not storage.can_rename(path) and not (path / mf.FILENAME).exists()
            if _step(name) is not None and (name != path.name or unfinished):
                logger.info("removing %s, left by a save that was killed", path)
                path.rmtree(missing_ok=True)


def save_model(
    path: epath.PathLike,
    params: Any,
    config_json: str,
    tokenizer: bytes,
    origin: Mapping[str, Any],
) -> None:
    """Write a model folder; it appears complete or not at all. `origin` goes to the manifest.

    Raises InputError if `path` exists and is not empty, CheckpointError if writing fails.
    """
    path = _absolute(path)
    empty = not path.exists() or (path.is_dir() and not any(path.iterdir()))
    require(empty, f"{path} exists and is not empty: name a new folder for the model")
    files = {"config.json": config_json.encode(), "tokenizer.model": tokenizer}
    manifest = Manifest(folder="params", arrays={}, extra={"origin": dict(origin)})
    # A name of its own: what lies beside the folder under any other is not ours to replace.
    temporary = f"{path.name}.{_from_host_0(secrets.randbits(31)):08x}.tmp"
    writer = storage.Writer()
    try:
        with storage.failures(f"saving model {path}"):
            writer.start(path, temporary, params, manifest, files)()
            writer.meet()
    finally:
        writer.close()


def load_params(path: epath.PathLike, abstract: Any) -> Any:
    """Parameters from a model folder, or of the newest checkpoint of a run folder that verifies.

    abstract: tree of jax.ShapeDtypeStruct of the parameters, as in `Checkpointer.restore`; the
    optimizer state is not read. Raises InputError and CheckpointError as `restore` does.
    """
    path = _absolute(path)
    if (path / "checkpoints").is_dir():
        return _newest(path / "checkpoints", {"params": abstract}, "params/")[0].tree["params"]
    require((path / "params").is_dir(), f"{path} is neither a model folder nor a run folder")
    with storage.failures(f"loading model {path}"):
        return storage.restore(path, None, abstract, "")[0]


def newest_sound(path: epath.PathLike) -> epath.Path:
    """Folder of the newest checkpoint of a run folder whose digests agree.

    Raises InputError if nothing was saved, CheckpointError if no checkpoint verifies.
    """
    directory = _absolute(path) / "checkpoints"
    steps = saved_steps(directory)
    require(steps, f"{directory} holds no checkpoint")
    for step in reversed(steps):
        if (report := _verify(directory / str(step), step)).ok:
            return report.path
        logger.warning("checkpoint %s cannot be used; `llama-jax verify` says why", report.path)
    raise CheckpointError(f"no checkpoint in {directory} can be used")


def verify(path: epath.PathLike) -> list[Report]:
    """Check every digest of a run folder (all its steps), one checkpoint, or a model folder.

    It holds one array in memory at a time. Raises InputError if `path` is none of these.
    """
    path = _absolute(path)
    require(path.exists(), f"{path} does not exist")
    if any((path / name).exists() for name in (mf.FILENAME, "state", "params")):
        return [_verify(path, None)]
    directory = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    steps = saved_steps(directory)
    require(
        steps, f"{path} is neither a run folder with checkpoints, a checkpoint nor a model folder"
    )
    return [_verify(directory / str(step), step) for step in steps]


# ---- Reading


def _newest(
    directory: epath.Path, abstract: Any, prefix: str, step: int | None = None
) -> tuple[Restored, set[int]]:
    """The newest step that verifies, or `step`; and the steps that were tried in vain."""
    steps = saved_steps(directory) if step is None else [step]
    failures: dict[int, str] = {}
    # Host 0 chooses, since hosts may see a network file system in different states.
    while (tried := _from_host_0(max((s for s in steps if s not in failures), default=-1))) >= 0:
        folder = directory / str(tried)
        try:
            tree, manifest = storage.restore(folder, tried, abstract, prefix)
            return Restored(tried, tree, manifest.extra), set(failures)
        except InputError:
            raise
        except Exception as error:
            failures[tried] = storage.one_line(error)
            logger.warning("checkpoint %s cannot be used: %s", folder, failures[tried])
    require(failures, f"{directory} holds no checkpoint")
    reasons = "; ".join(f"step {s}: {reason}" for s, reason in failures.items())
    raise CheckpointError(f"no checkpoint in {directory} can be used: {reasons}")


def _verify(folder: epath.Path, step: int | None) -> Report:
    try:
        manifest = Manifest.read(folder, step)
    except (ValueError, OSError) as error:
        return Report(folder, step, storage.one_line(error), {})
    if not (folder / manifest.folder).is_dir():
        return Report(folder, manifest.step, f"its folder {manifest.folder} is missing", {})
    try:  # XLA computes digests several times faster than NumPy
        device = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
    except RuntimeError:
        device = None
    arrays: dict[str, str | None] = {}
    for name, record in manifest.arrays.items():
        a = jax.ShapeDtypeStruct(record.shape, jnp.dtype(record.dtype), sharding=device)
        try:
            found = mf.as_text(mf.digest(storage.read(folder / manifest.folder, {name: a})[name]))
            sound = found == record.digest
            arrays[name] = None if sound else f"its digest is {found}, not {record.digest}"
        except Exception as error:
            arrays[name] = storage.one_line(error)
    return Report(folder, manifest.step, None, arrays)


# ---- Small things


def _absolute(path: epath.PathLike) -> epath.Path:
    path = epath.Path(expand(path))
    return path.absolute() if storage.can_rename(path) else path


def saved_steps(directory: epath.Path) -> list[int]:
    """Every folder of RUN/checkpoints named by a step, sound or not, in ascending order."""
    if not directory.is_dir():
        return []
    found = ((_step(path.name), path) for path in directory.iterdir())
    return sorted(step for step, path in found if step is not None and path.is_dir())


def _step(name: str) -> int | None:
    """The step that a folder of this name holds; None for any other name."""
    step = int(name) if re.fullmatch(r"0|[1-9][0-9]{0,9}", name) else MAX_STEP
    return step if step < MAX_STEP else None


def _from_host_0(value: int) -> int:
    return int(multihost_utils.broadcast_one_to_all(np.int32(value)))
