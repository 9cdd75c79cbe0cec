"""Save and restore any tree of arrays: orbax, with digests that are checked on the way back.

    RUN/checkpoints/<step>/{state/ (orbax), manifest.json}
    MODEL/{config.json, tokenizer.model, params/ (orbax), manifest.json}

Signatures first; bodies follow.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

from etils import epath


class CheckpointError(OSError):
    """A checkpoint could not be written or none could be read. One line that names the path."""


class Restored(NamedTuple):
    """What `Checkpointer.restore` found."""

    step: int
    tree: Any
    extra: dict[str, Any]


@dataclass(frozen=True)
class Report:
    """Result of `verify` for one folder that has (or lacks) a manifest."""

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
    """Checkpoints of one run, in `directory` (RUN/checkpoints). Every host makes all calls."""

    def __init__(self, directory: epath.PathLike, *, keep: int, keep_every: int = 0): ...

    def save(self, step: int, tree: Any, extra: Mapping[str, Any] | None = None) -> None:
        """Start to save; returns once the arrays are copied to the host (they may be donated).

        Waits for the save before it. Raises CheckpointError if that one, or the start of this
        one, failed. A durable save of the same step is replaced.
        """
        raise NotImplementedError

    def wait(self) -> None:
        """Block until the save in flight is durable. Raises CheckpointError if it failed."""
        raise NotImplementedError

    def close(self) -> None:
        """Wait, then release threads. Also the end of the `with` block."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def steps(self) -> list[int]:
        """Durable steps in ascending order, read from the disk."""
        raise NotImplementedError

    def restore(self, abstract: Any, step: int | None = None) -> Restored:
        """The newest step whose digests agree (or exactly `step`), laid out as `abstract`.

        abstract: tree of jax.ShapeDtypeStruct; with `.sharding` gives jax arrays, without gives
        NumPy arrays. Raises InputError if the tree differs from the saved one (lists where) or
        there is no checkpoint at all; CheckpointError if none verifies (each step and why).
        Use `steps()` first to learn whether there is anything to restore.
        """
        raise NotImplementedError


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
    raise NotImplementedError


def load_params(path: epath.PathLike, abstract: Any) -> Any:
    """Parameters from a model folder, or of the newest checkpoint of a run folder that verifies.

    abstract: tree of jax.ShapeDtypeStruct of the parameters, as in `Checkpointer.restore`; the
    optimizer state is not read. Raises InputError and CheckpointError as `restore` does.
    """
    raise NotImplementedError


def verify(path: epath.PathLike) -> list[Report]:
    """Check every digest of a run folder (all steps), one checkpoint, or a model folder.

    Holds one array in memory at a time. Raises InputError if `path` is none of these.
    """
    raise NotImplementedError
