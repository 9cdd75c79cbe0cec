"""`load` and `Model`: a model read from any format, for every consumer of weights."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

from llama_jax import checkpoint
from llama_jax.checkpoint import manifest as mf
from llama_jax.checkpoint.manifest import Manifest
from llama_jax.config import AdaptedModel, InputError, ModelConfig, TrainConfig, plain, require
from llama_jax.config_file import read_config
from llama_jax.convert import hf, hf_files, native, peft
from llama_jax.convert import load as foreign
from llama_jax.convert.api import open_source
from llama_jax.convert.usage import Usage
from llama_jax.data.tokenizer import MODEL_FILE, Tokenizer
from llama_jax.model.cache import is_prepared, prepare
from llama_jax.model.matrix import merged
from llama_jax.model.quantize import dequantized, quantized
from llama_jax.model.weights import abstract_params, chosen, map_weights, stays_fixed
from llama_jax.parallel.arrays import abstract_with
from llama_jax.parallel.rules import named_sharding
from llama_jax.runtime.places import expand


@dataclass(frozen=True)
class Model:
    """A model ready to generate text: configuration, parameter tree, tokenizer."""

    config: ModelConfig
    params: dict[str, Any]
    """Stacked layers, as they are stored; or the result of `prepare`, which only generates, where
    the model is `Opened.generator`'s."""
    tokenizer: Tokenizer | None
    """None if the folder has none: such a model computes logits, but generates no text."""
    usage: Usage = field(default_factory=Usage)
    """Further settings of its files: end tokens, whether prompts begin with BOS, a chat
    template."""

    @cached_property
    def prepared(self) -> dict[str, Any]:
        """The parameters in the form that generation needs; cached, so that only the first call
        copies.

        Raises InputError for a reward model, which has no head that predicts tokens.
        """
        _check_writes(self.config)
        return self.params if is_prepared(self.params) else prepare(self.params, self.config)


def _check_writes(config: ModelConfig) -> None:
    require(
        config.head == "language",
        "the model is a reward model: it scores answers and writes none; name a language model",
    )


@dataclass(frozen=True)
class Opened:
    """A model whose configuration and tokenizer are read, and whose weights are read on demand."""

    path: str
    config: ModelConfig
    tokenizer: Tokenizer | None
    read: Callable[[], dict[str, Any]]
    """The parameters as `load` gives them. Raises CheckpointError if none verify."""
    usage: Usage = field(default_factory=Usage)
    """As in `Model`."""

    def generator(self) -> Model:
        """The model for generation alone: its parameters are `prepared`, and those that were read
        are freed one by one, so there is never a second copy of the whole.

        Raises InputError for a reward model, CheckpointError if no checkpoint verifies.
        """
        _check_writes(self.config)
        w = prepare(self.read(), self.config, release=True)
        return Model(self.config, w, self.tokenizer, self.usage)

    def dense(self) -> "Opened":
        """The same with every matrix dense, however it is stored."""
        config, read = self.config, self.read
        if config.quant is None:
            return self
        return replace(self, config=plain(config), read=lambda: dequantized(read(), config))


def load(path: epath.PathLike) -> Model:
    """Read a model: our folders, a run folder (its newest checkpoint that verifies; of rejection
    sampling that of the newest round), a Hugging Face or Meta folder, or any other format of
    `llama_jax.convert`, which needs no converting first. Adapters, of a run or of PEFT, are merged
    into the model that they belong to. Our own folders may be in a bucket (gs://).

    Parameters have the type that they are stored in. With a mesh in context (`jax.set_mesh`) they
    are split over its devices by the rules, and each device reads only its own part; otherwise
    they are on the default device.

    Raises:
      InputError: `path` is no model, its configuration or tokenizer cannot be used, or they do not
        fit each other.
      CheckpointError: no checkpoint verifies.
    """
    opened = open_model(path)
    return Model(opened.config, opened.read(), opened.tokenizer, opened.usage)


def open_model(path: epath.PathLike, base: str | None = None) -> Opened:
    """The model that `load` would read, without the weights: they are read when `read` is called.

    base: path of the model that `path` holds adapters of, if they do not name it.

    Raises InputError as `load` does.
    """
    folder = _weights_folder(epath.Path(expand(path)))
    here = "://" not in os.fspath(folder)
    if here and peft.is_format(Path(folder)):
        return _with_peft(folder, base)
    if here and not native.is_format(folder):
        source = open_source(os.fspath(folder))
        model = source.tokenizer
        tokenizer = None if model is None else Tokenizer.from_bytes(model, where=str(folder))
        return Opened(
            os.fspath(folder),
            source.config,
            tokenizer,
            lambda: foreign.load_params(source, _shardings(source.config)),
            source.usage,
        )
    if not here:
        _require_ours(folder)
    config, experiment = read_config(folder)
    if experiment is not None and experiment.lora.rank:
        return _with_adapters(folder, experiment, base)
    tokenizer = Tokenizer.load(folder) if (folder / MODEL_FILE).exists() else None
    require(
        tokenizer is None or tokenizer.vocab_size <= config.vocab_size,
        f"{folder}: the tokenizer has {getattr(tokenizer, 'vocab_size', 0)} tokens but the model's "
        f"embedding has {config.vocab_size} rows: this tokenizer belongs to a different model",
    )

    def read() -> dict[str, Any]:
        return checkpoint.load_params(folder, _placed(config))

    return Opened(os.fspath(folder), config, tokenizer, read, Usage.read(folder))


def _require_ours(folder: epath.Path) -> None:
    """Raise InputError for a model in a bucket that is in another format than ours: those are read
    as memory maps, which a bucket does not have."""
    files = (hf_files.ADAPTER_CONFIG, "params.json")
    foreign = hf.is_format(folder) or any((folder / name).exists() for name in files)
    require(
        not foreign and not folder.is_file(),
        f"{folder} is in another format than ours, which only a folder on this machine may be. "
        "Convert a copy here and put the result into the bucket: llama-jax convert SRC DST, then "
        f"gcloud storage cp --recursive DST {folder.parent}/",
    )


def _with_adapters(run: epath.Path, experiment: TrainConfig, base: str | None) -> Opened:
    """The model that a run trained adapters of, with these in its matrices.

    Raises InputError if that model is not there any more, or is another one now.
    """
    below = open_base(run, base).dense()
    adapted = AdaptedModel.of(experiment.model, experiment.lora)

    def read() -> dict[str, Any]:
        return _merged(on_base(below.read(), read_adapters(run, experiment), adapted), adapted)

    tokenizer = Tokenizer.load(run) if (run / MODEL_FILE).exists() else below.tokenizer
    own = Usage.read(run)
    usage = below.usage if own == Usage() else own
    return Opened(os.fspath(run), experiment.model, tokenizer, read, usage)


def read_adapters(run: epath.Path, experiment: TrainConfig) -> dict[str, Any]:
    """The content of the newest checkpoint that verifies: adapters, and the head of a reward
    model."""
    adapted = AdaptedModel.of(experiment.model, experiment.lora)
    own = chosen(_placed(adapted), lambda name: not stays_fixed(adapted, name))
    return checkpoint.load_params(run, own)


def _with_peft(folder: epath.Path, base: str | None) -> Opened:
    """The model that a PEFT folder belongs to, with its adapters merged.

    Raises InputError if that model is not on this machine, or the adapters do not fit it.
    """
    path = Path(folder)
    named = peft.read_config(path).base
    places = [epath.Path(expand(base))] if base else [epath.Path(expand(named)), folder / named]
    found = [place for place in places if place.exists()]
    require(
        found,
        f"{folder} is a LoRA adapter (PEFT) of {base or named}, which is not here, and has to be "
        "merged into it first: llama-jax convert ADAPTER NEW --base MODEL",
    )
    below = open_model(found[0]).dense()
    lora, factors = peft.read(path, below.config)
    adapted = AdaptedModel.of(below.config, lora)

    def read() -> dict[str, Any]:
        own = {"layers": {name: jnp.asarray(w) for name, w in factors.items()}}
        return _merged(on_base(below.read(), own, adapted), adapted)

    return Opened(os.fspath(folder), below.config, below.tokenizer, read, below.usage)


def on_base(base: dict[str, Any], own: dict[str, Any], adapted: ModelConfig) -> dict[str, Any]:
    """A base and adapters as one tree that shares their arrays; a head that the adapted model lacks
    is left out."""
    wanted = abstract_params(adapted)
    found = {name: w for name, w in base.items() if name in wanted}
    return {**found, **own, "layers": {**found["layers"], **own["layers"]}}


@partial(jax.jit, static_argnames="adapted")
def _merged(params: dict[str, Any], adapted: AdaptedModel) -> dict[str, Any]:
    """As they were trained: the base in the type that the run kept it in."""
    if adapted.quant is not None:
        params = quantized(params, adapted)
    types = abstract_params(adapted)
    return merged(jax.tree.map(lambda a, t: a.astype(t.dtype), params, types), adapted)


def open_base(run: epath.Path, base: str | None = None) -> Opened:
    """The base model of a run's adapters: at `base`, or at the path where it was, absolute or
    relative to the run.

    Raises InputError if it is missing, or has changed.
    """
    steps = checkpoint.saved_steps(run / "checkpoints")
    require(steps, f"{run} holds no checkpoint")
    try:
        extra = Manifest.read(run / "checkpoints" / str(steps[-1])).extra
    except (ValueError, OSError) as error:
        raise InputError(f"{run}: step {steps[-1]}: {error}") from error
    places = [epath.Path(extra["base_path"]), run / extra["base_beside"]]
    places = [epath.Path(expand(base))] if base else places
    found = [place for place in places if place.exists()]
    require(
        found,
        f"{run} holds adapters of a model that no longer exists: restore it at {places[0]}",
    )
    below = open_model(found[0])
    now = weights_identity(below)
    require(
        now == extra["base"],
        f"{run} holds adapters of other weights than {found[0]} has now (digest "
        f"{extra['base'][:12]}, now {now[:12]}): restore those, or train the adapters again",
    )
    return below


def base_pointer(base: Opened, run: epath.Path) -> dict[str, str]:
    """The reference to the base in a checkpoint of adapters, for `open_base`: without its
    digest."""
    path = base.path if "://" in base.path else os.path.abspath(base.path)
    beside = path if "://" in path else os.path.relpath(path, os.fspath(run))
    return {"base_path": path, "base_beside": beside}


def weights_identity(opened: Opened) -> str:
    """A string that changes when a model's weights do: the digest of its manifest, or of its
    tensors."""
    folder = epath.Path(opened.path)
    steps = checkpoint.saved_steps(folder / "checkpoints")
    manifest = (folder / "checkpoints" / str(steps[-1]) if steps else folder) / mf.FILENAME
    if manifest.exists():
        return mf.sha256(manifest.read_bytes())
    return params_digest(opened.read())


def params_digest(params: Any) -> str:
    """SHA-256 over the digests of all parameters, in hexadecimal."""
    found = {name: mf.as_text(mf.digest(a)) for name, a in mf.flatten(params).items()}
    return mf.sha256("\n".join(f"{name} {found[name]}" for name in sorted(found)).encode())


def newest_round(run: epath.Path) -> epath.Path | None:
    """Run folder of the last fine-tuning that a run of rejection sampling finished, if any."""
    rounds = finished_rounds(run)
    return rounds[-1] / "sft" if rounds else None


def finished_rounds(run: epath.Path) -> list[epath.Path]:
    """The folders of the rounds that a run of rejection sampling finished, in order."""
    found = {}
    for file in run.glob("round_*/round.json"):
        if number := re.fullmatch(r"round_(\d+)", file.parent.name):
            found[int(number[1])] = file.parent
    return [found[n] for n in sorted(found)]


def _weights_folder(path: epath.Path) -> epath.Path:
    """Where the weights of a model or a run lie: its own folder, or that of its newest round."""
    if not (path / "round_1").is_dir():
        return path
    newest = newest_round(path)
    if newest is None:
        raise InputError(
            f"{path} has finished no round of rejection sampling yet: run the same command again"
        )
    return newest


def _placed(config: ModelConfig) -> dict[str, Any]:
    """The abstract parameters, with the devices that they are read to."""
    abstract, default = abstract_params(config), jnp.zeros(()).sharding
    shardings = _shardings(config) or jax.tree.map(lambda _: default, abstract)
    return abstract_with(abstract, shardings)


def _shardings(config: ModelConfig) -> Any:
    """How the mesh in context splits the parameters; None without one."""
    mesh = jax.sharding.get_mesh()
    if mesh.empty or mesh.size == 1:
        return None
    return map_weights(lambda w: named_sharding(w.axes, mesh, w.shape), config)
