"""Run folders: create, resume, lock, reject mismatches."""

import contextlib
import dataclasses
import fcntl
import hashlib
import importlib.metadata
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from etils import epath

from llama_jax import __version__
from llama_jax.checkpoint import saved_steps
from llama_jax.config import InputError, TrainConfig, require
from llama_jax.config_file import read_config, to_json
from llama_jax.convert.usage import FILENAME as USAGE_FILE
from llama_jax.convert.usage import Usage
from llama_jax.data.tokenizer import MODEL_FILE, Tokenizer
from llama_jax.models import Opened
from llama_jax.runtime.files import reason, write_atomic
from llama_jax.runtime.places import expand
from llama_jax.train.report import TrainingError

logger = logging.getLogger(__name__)
CONFIG_FILE = "config.json"
# Settings that may differ when a run goes on: they change no number of it but by rounding, but for
# `steps`, which stretches the schedule of the learning rate and is how a finished run is taken
# further.
MAY_CHANGE = {
    "workdir", "steps", "log_every", "eval_every", "eval_batches", "eval_tasks", "eval_questions",
    "eval_data", "sample_prompts",
    "profile_steps", "max_skipped", "init_from", "init_from_config",
    "watchdog_seconds", "compilation_cache", "mesh", "accumulate",
    "checkpoint.every", "checkpoint.keep", "checkpoint.keep_every",
    "data.cache_dir", "data.workers", "data.tokenizer", "model.remat", "model.attention",
    "rounds", "helpfulness", "safety", "wave_rows",
    "patience", "max_truncated", "max_kl", "max_drift", "max_ratio_error", "value_patience",
}  # fmt: skip


# Settings of a host and not of the run.
OF_A_HOST = {"compilation_cache", "data.cache_dir", "data.workers"}
PACKAGES = ("jax", "jaxlib", "libtpu", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def host_facts(config: TrainConfig) -> dict[str, object]:
    """Everything that determines which program a host runs: settings, versions, our code, compiler
    flags."""
    facts: dict[str, object] = {k: v for k, v in _flat(config).items() if k not in OF_A_HOST}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            facts[f"the version of {package}"] = importlib.metadata.version(package)
    root = Path(__file__).parents[1]
    code = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        code.update(file.relative_to(root).as_posix().encode() + file.read_bytes())
    facts[f"the code of llama_jax {__version__}"] = code.hexdigest()[:12]
    facts |= {name: os.environ.get(name, "") for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")}
    facts["the device"] = f"{jax.local_device_count()} x {jax.local_devices()[0].device_kind}"
    return facts


def run_path(config: TrainConfig) -> epath.Path:
    """The run's folder, absolute."""
    path = epath.Path(expand(config.workdir))
    return path if "://" in config.workdir else epath.Path(os.path.abspath(path))


def check_run(config: TrainConfig) -> epath.Path:
    """The run's folder, which is new, empty, or holds a run of the same experiment.

    Nothing is written. Raises InputError if it holds something else, a run with other settings (the
    message lists them), or one that has made more steps already.
    """
    path = run_path(config)
    try:
        if (path / CONFIG_FILE).exists():
            before = read_config(path)[1]
            if before is None:
                raise InputError(f"workdir {path} is a model folder, not a run: choose another")
            _check_same(before, config, path)
            made = max(saved_steps(path / "checkpoints"), default=0)
            require(
                made <= config.steps,
                f"the run in {path} has made {made} steps already, more than --steps "
                f"{config.steps}: use {made} or more, or another --workdir",
            )
        elif path.exists() and any(True for _ in path.iterdir()):
            raise InputError(
                f"workdir {path} is not empty and holds no run (no {CONFIG_FILE}): choose another "
                "--workdir or empty it"
            )
    except OSError as error:
        raise InputError(f"workdir {path} cannot be used: {reason(error)}") from error
    return path


@contextlib.contextmanager
def claim_run(path: epath.Path) -> Iterator[None]:
    """Make the folder and lock it while the context lasts; on host 0.

    A folder that was made here and stays empty is removed again: bad input leaves nothing behind.

    Raises:
      InputError: it cannot be made.
      TrainingError: another program of this machine trains in it.
    """
    if jax.process_index():
        yield
        return
    made: list[epath.Path] = []
    with contextlib.ExitStack() as stack:
        try:
            for folder in (path, *path.parents):
                if "://" in os.fspath(path) or folder.exists():
                    break
                made.append(folder)
            path.mkdir(parents=True, exist_ok=True)
            stack.enter_context(_alone_in(path))
        except OSError as error:
            raise InputError(f"workdir {path} cannot be written: {reason(error)}") from error
        try:
            yield
        finally:
            for folder in made:
                with contextlib.suppress(OSError):  # it holds something
                    os.rmdir(folder)


def write_run(
    config: TrainConfig,
    path: epath.Path,
    tokenizer: Tokenizer,
    source: Opened | None,
    template: str | None = None,
) -> None:
    """Write config.json, tokenizer.model and, if there are usage settings, usage.json; on host 0.

    A model is used like its `source`, except for the `template` that it is trained on. Raises
    InputError where the folder cannot be written.
    """
    if jax.process_index():
        return
    warmup, peak = config.optimizer.warmup_steps, config.optimizer.learning_rate
    if config.updates < warmup:
        logger.warning(
            "the learning rate warms up over %d updates and the run has %d: it ends at %.3g, not "
            "at %.3g; --optimizer.warmup-steps shortens the warm-up",
            warmup, config.updates, peak * config.updates / warmup, peak,
        )  # fmt: skip
    try:
        if not (path / MODEL_FILE).exists():
            tokenizer.save(path / MODEL_FILE)
        if not (path / USAGE_FILE).exists():
            usage = Usage() if source is None else source.usage
            if template is not None:
                usage = dataclasses.replace(usage, add_bos=True, chat_template=template)
            usage.write(path)
        write_atomic(path / CONFIG_FILE, to_json(config).encode())
    except OSError as error:
        raise InputError(f"workdir {path} cannot be written: {reason(error)}") from error


@contextlib.contextmanager
def _alone_in(path: epath.Path) -> Iterator[None]:
    """Two programs in one folder would remove each other's checkpoints: the second one ends here.

    The lock is the folder's own and ends with its program, however that ends. Buckets and some
    network file systems have none.
    """
    if "://" in os.fspath(path):
        yield
        return
    folder = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise TrainingError(
                    f"another program trains in workdir {path}: wait until it ends, or choose "
                    "another --workdir"
                ) from None
        yield
    finally:
        os.close(folder)


def _flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """Settings by their dotted command-line names."""
    flat: dict[str, Any] = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            flat |= _flat(value, f"{prefix}{f.name}.")
        else:
            flat[prefix + f.name] = value
    return flat


def _check_same(old: TrainConfig, new: TrainConfig, path: epath.Path) -> None:
    before, after = _flat(old), _flat(new)
    changed = [
        f"{name} {before[name]!r} -> {after[name]!r}"
        for name in before
        if before[name] != after[name] and not {name, name.split(".")[0]} & MAY_CHANGE
    ]
    if changed:
        raise InputError(
            f"workdir {path} holds a run with other settings ({'; '.join(changed)}): choose "
            "another --workdir, or restore those settings to resume"
        )
