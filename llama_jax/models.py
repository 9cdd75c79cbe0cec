"""A model as its users hold it, read from any format: what every consumer of weights imports."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

from llama_jax import checkpoint
from llama_jax.config import InputError, ModelConfig, require
from llama_jax.config_file import read_config
from llama_jax.convert import load as foreign
from llama_jax.convert import native
from llama_jax.convert.api import open_source
from llama_jax.convert.usage import Usage
from llama_jax.data.tokenizer import MODEL_FILE, Tokenizer
from llama_jax.model.cache import prepare
from llama_jax.model.weights import abstract_params, map_weights
from llama_jax.parallel.arrays import abstract_with
from llama_jax.parallel.rules import named_sharding
from llama_jax.runtime.places import expand


@dataclass(frozen=True)
class Model:
    """What generates text: a configuration, the parameter tree, and the tokenizer."""

    config: ModelConfig
    params: dict[str, Any]
    tokenizer: Tokenizer | None
    """None where the folder has none: such a model computes logits, but no text."""
    usage: Usage = field(default_factory=Usage)
    """What else its files say: further ends of text, whether prompts begin with BOS, a template."""

    @cached_property
    def prepared(self) -> dict[str, Any]:
        """The parameters as generation reads them; kept, so that only the first call copies.

        Raises InputError for a reward model, which has no head that predicts tokens.
        """
        require(
            self.config.head == "language",
            "the model is a reward model: it scores answers and writes none; name a language model",
        )
        return prepare(self.params, self.config)


@dataclass(frozen=True)
class Opened:
    """A model whose configuration and tokenizer are read, and whose weights come when asked."""

    path: str
    config: ModelConfig
    tokenizer: Tokenizer | None
    read: Callable[[], dict[str, Any]]
    """The parameters as `load` gives them. Raises CheckpointError if none verify."""
    usage: Usage = field(default_factory=Usage)
    """As in `Model`."""


def load(path: epath.PathLike) -> Model:
    """Read a model: our folders, a run folder (its newest checkpoint that verifies; of rejection
    sampling that of the newest round), a Hugging Face or Meta folder, or any other format of
    `llama_jax.convert`, which needs no converting first.

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


def open_model(path: epath.PathLike) -> Opened:
    """What `load` would read, without the weights: they are read when `read` is called.

    Raises InputError as `load` does.
    """
    folder = _weights_folder(epath.Path(expand(path)))
    if "://" not in os.fspath(folder) and not native.is_format(folder):
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
    config, _ = read_config(folder)
    tokenizer = Tokenizer.load(folder) if (folder / MODEL_FILE).exists() else None
    require(
        tokenizer is None or tokenizer.vocab_size <= config.vocab_size,
        f"{folder}: the tokenizer has {getattr(tokenizer, 'vocab_size', 0)} tokens but the model's "
        f"embedding has {config.vocab_size} rows: this tokenizer belongs to a different model",
    )

    def read() -> dict[str, Any]:
        abstract, default = abstract_params(config), jnp.zeros(()).sharding
        shardings = _shardings(config) or jax.tree.map(lambda _: default, abstract)
        return checkpoint.load_params(folder, abstract_with(abstract, shardings))

    return Opened(os.fspath(folder), config, tokenizer, read, native.read_usage(folder))


def newest_round(run: epath.Path) -> epath.Path | None:
    """Run folder of the last fine-tuning that a run of rejection sampling finished, if any."""
    finished = [path.parent for path in run.glob("round_*/round.json")]
    last = max(finished, key=lambda path: int(path.name.removeprefix("round_")), default=None)
    return None if last is None else last / "sft"


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


def _shardings(config: ModelConfig) -> Any:
    """How the mesh in context splits the parameters; None without one."""
    mesh = jax.sharding.get_mesh()
    if mesh.empty or mesh.size == 1:
        return None
    return map_weights(lambda w: named_sharding(w.axes, mesh, w.shape), config)
