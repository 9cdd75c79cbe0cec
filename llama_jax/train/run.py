"""The run folder: made, recognised, resumed, or refused."""

import dataclasses
import os
from typing import Any

import jax
from etils import epath

from llama_jax.config import InputError, TrainConfig, read_config, to_json

CONFIG_FILE = "config.json"
# Settings that may differ when a run goes on: they change no number of it, but for `steps`, which
# stretches the schedule of the learning rate and is how a finished run is taken further.
MAY_CHANGE = {
    "workdir", "steps", "log_every", "eval_every", "eval_batches", "sample_prompts",
    "profile_steps", "max_skipped", "init_from",
    "watchdog_seconds", "compilation_cache", "mesh", "checkpoint",
    "data.cache_dir", "data.workers", "data.tokenizer", "model.remat", "model.attention",
}  # fmt: skip


def open_run(config: TrainConfig) -> epath.Path:
    """The run's folder with the resolved configuration saved; new, or one of the same experiment.

    Raises:
      InputError: the folder cannot be written, holds something else than a run, or a run with
        other settings; the message lists them.
    """
    path = epath.Path(config.workdir).expanduser()
    path = path if "://" in config.workdir else epath.Path(os.path.abspath(path))
    file = path / CONFIG_FILE
    try:
        if file.exists():
            before = read_config(path)[1]
            if before is None:
                raise InputError(f"workdir {path} is a model folder, not a run: choose another")
            _check_same(before, config, path)
        elif path.exists() and any(True for _ in path.iterdir()):
            raise InputError(
                f"workdir {path} is not empty and holds no run (no {CONFIG_FILE}): choose another "
                "--workdir or empty it"
            )
        if jax.process_index() == 0:
            path.mkdir(parents=True, exist_ok=True)
            temporary = path / (CONFIG_FILE + ".tmp")
            temporary.write_text(to_json(config))
            temporary.replace(file)
    except OSError as error:
        raise InputError(f"workdir {path} cannot be written: {error}") from error
    return path


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
            f"workdir {path} holds a run with other settings ({'; '.join(changed)}): use another "
            "--workdir, or the same settings to resume it"
        )
