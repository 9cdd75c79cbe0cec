"""Opens LoRA adapters, ours or PEFT's: beside the base, merged into it, or exported as PEFT."""

import dataclasses
import logging
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from etils import epath

from llama_jax.checkpoint import save_model
from llama_jax.config import FUNCTION, InputError, LoraConfig, TrainConfig, require
from llama_jax.config_file import model_json, read_config
from llama_jax.convert import hf, peft
from llama_jax.convert.api import convert
from llama_jax.convert.staging import staged
from llama_jax.model.by_row import Adapter
from llama_jax.models import Opened, open_base, open_model, read_adapters
from llama_jax.runtime.places import expand

logger = logging.getLogger(__name__)


def is_adapter(path: str) -> bool:
    """Whether a folder holds only adapters, of a run of ours or of PEFT, without their base
    model."""
    folder = Path(expand(path))
    return peft.is_format(folder) or _experiment(folder) is not None


def _experiment(folder: Path) -> TrainConfig | None:
    """That of a run which trained adapters; None for anything else."""
    try:
        experiment = read_config(folder)[1]
    except InputError:
        return None
    return experiment if experiment is not None and experiment.lora.rank else None


@dataclass(frozen=True)
class OpenedAdapter:
    """Adapters whose settings are read, and whose factors are read on demand."""

    lora: LoraConfig
    read: Callable[[], Adapter]
    """Reads the factors. Raises CheckpointError if no checkpoint verifies."""


def open_adapter(path: str, base: Opened) -> OpenedAdapter:
    """The adapters at `path`, a run of --lora.rank or a PEFT folder, for a model that is open.

    Raises InputError unless they are adapters of this model: a run says which weights its own
    belong to; those of PEFT have to fit the shapes.
    """
    folder = Path(expand(path)).absolute()
    if peft.is_format(folder):
        lora, factors = peft.read(folder, base.config)
        return OpenedAdapter(lora, lambda: Adapter(lora, factors))
    experiment = _experiment(folder)
    if experiment is None:
        raise InputError(f"{path} holds no adapters: name a run of --lora.rank or a PEFT folder")
    run, model = epath.Path(folder), experiment.model
    require(
        model.head == "language", f"{path} is a reward model: its adapters score and write nothing"
    )
    open_base(run, base.path)
    for name in FUNCTION:
        ours, theirs = getattr(base.config, name), getattr(model, name)
        require(
            ours == theirs, f"{path} was trained with {name}={theirs}, but the model has {ours}"
        )

    if experiment.lora.base != "dense":
        logger.warning(
            "%s was trained on the model in %s; here it is applied to the model as it is stored",
            path, experiment.lora.base,
        )  # fmt: skip

    def read() -> Adapter:
        return Adapter(experiment.lora, jax.device_get(read_adapters(run, experiment)["layers"]))

    return OpenedAdapter(experiment.lora, read)


def merge_adapters(
    src: str,
    dst: str,
    *,
    to: str,
    base: str | None = None,
    tokenizer: str | None = None,
    dtype: str | None = None,
) -> dict[str, Any]:
    """`convert` for the base model with the adapters merged into it; returns the same report.

    The merged model is stored beside `dst` meanwhile. Raises InputError as `convert` does, and if
    the base is missing or has changed.
    """
    opened = open_model(src, base)
    require(opened.tokenizer is not None, f"{src}: neither it nor its base has a tokenizer")
    assert opened.tokenizer is not None
    origin = {"adapters": os.path.abspath(expand(src))}
    parent = Path(expand(dst)).absolute().parent
    require(parent.is_dir(), f"{parent} does not exist: make it first")
    with tempfile.TemporaryDirectory(dir=parent, prefix=".merging-") as place:
        merged = Path(place) / "merged"
        config = dataclasses.replace(opened.config, remat="none", attention="auto")
        model = opened.tokenizer.model_bytes
        save_model(merged, opened.read(), model_json(config), model, origin)
        opened.usage.write(merged)
        return convert(merged, dst, to=to, tokenizer=tokenizer, dtype=dtype)


def write_peft(src: str, dst: str, *, base: str | None = None) -> list[str]:
    """A PEFT folder of the adapters of a run; what was written, in lines for people.

    base: name or path that PEFT will open the base by; None for the place that it came from.

    Raises InputError if `src` is no run of adapters, has no place for its head in PEFT, or `dst`
    exists.
    """
    folder, target = Path(expand(src)).absolute(), Path(expand(dst)).absolute()
    experiment = _experiment(folder)
    if experiment is None:
        raise InputError(f"{src} is not a run of --lora.rank: --to peft writes only adapters")
    require(
        experiment.model.head == "language",
        f"{src} is a reward model, whose head cannot be stored in PEFT's format",
    )
    require(not target.exists(), f"{target} exists: name a new place")
    below = open_base(epath.Path(folder))
    layers = jax.device_get(read_adapters(epath.Path(folder), experiment)["layers"])
    found = below.path if "://" in below.path else os.path.abspath(below.path)
    with staged(target, is_file=False) as place:
        peft.write(place, experiment.lora, layers, experiment.model, base or found)
    theirs = base is not None or hf.is_format(Path(found))
    return [
        f"from        {folder} (adapters of {found})",
        f"base        {base or found}"
        + ("" if theirs else ": PEFT opens Hugging Face folders; name yours with --base"),
        f"to          {target} (PEFT)",
        f"rank        {experiment.lora.rank}, scale {experiment.lora.scale:g}",
        f"matrices    {', '.join(experiment.lora.targets)}",
    ]
