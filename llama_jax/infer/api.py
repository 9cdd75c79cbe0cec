"""The Python interface: load a model in any format, compute logits, continue text."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
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
from llama_jax.data.tokenizer import MODEL_FILE, Tokenizer
from llama_jax.infer.generate import Sampling, prepare, stream_tokens
from llama_jax.model.llama import apply
from llama_jax.model.weights import abstract_params, map_weights
from llama_jax.parallel.rules import named_sharding

__all__ = ["Model", "apply", "generate", "load", "stream"]


@dataclass(frozen=True)
class Model:
    """What generates text: a configuration, the parameter tree, and the tokenizer."""

    config: ModelConfig
    params: dict[str, Any]
    tokenizer: Tokenizer | None
    """None where the folder has none: such a model computes logits, but no text."""

    @cached_property
    def prepared(self) -> dict[str, Any]:
        """The parameters as generation reads them; kept, so that only the first call copies."""
        return prepare(self.params, self.config)


def load(path: epath.PathLike) -> Model:
    """Read a model: our folders, a run folder (its newest checkpoint that verifies), a Hugging Face
    or Meta folder, or any other format of `llama_jax.convert`, which needs no converting first.

    Parameters have the type that they are stored in. With a mesh in context (`jax.set_mesh`) they
    are split over its devices by the rules, and each device reads only its own part; otherwise
    they are on the default device.

    Raises:
      InputError: `path` is no model, its configuration or tokenizer cannot be used, or they do not
        fit each other.
      CheckpointError: no checkpoint verifies.
    """
    folder = epath.Path(path).expanduser()
    if "://" not in os.fspath(folder) and not native.is_format(folder):
        source = open_source(os.fspath(folder))
        model = source.tokenizer
        tokenizer = None if model is None else Tokenizer.from_bytes(model, where=str(folder))
        return Model(
            source.config, foreign.load_params(source, _shardings(source.config)), tokenizer
        )
    config, _ = read_config(folder)
    tokenizer = Tokenizer.load(folder) if (folder / MODEL_FILE).exists() else None
    require(
        tokenizer is None or tokenizer.vocab_size <= config.vocab_size,
        f"{folder}: tokenizer.model has {getattr(tokenizer, 'vocab_size', 0)} pieces and the model "
        f"{config.vocab_size} rows; the tokenizer is another model's",
    )
    abstract, default = abstract_params(config), jnp.zeros(()).sharding
    shardings = _shardings(config) or jax.tree.map(lambda _: default, abstract)
    abstract = jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, shardings
    )
    return Model(config, checkpoint.load_params(folder, abstract), tokenizer)


def _shardings(config: ModelConfig) -> Any:
    """How the mesh in context splits the parameters; None without one."""
    mesh = jax.sharding.get_mesh()
    if mesh.empty or mesh.size == 1:
        return None
    return map_weights(lambda w: named_sharding(w.axes, mesh, w.shape), config)


def generate(
    model: Model,
    prompt: str,
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
) -> str:
    """The prompt and its continuation, which ends at EOS, after `max_new_tokens` tokens, or at the
    end of the context. Temperature 0 is greedy; `""` starts from BOS alone.

    Raises:
      InputError: the model has no tokenizer, the prompt is longer than the context or no valid
        text, or a sampling setting is out of range.
    """
    parts = stream(
        model,
        prompt,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        block=max(max_new_tokens, 1),
    )
    return "".join(parts)


def stream(
    model: Model,
    prompt: str,
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    block: int = 8,
) -> Iterator[str]:
    """What `generate` returns, in pieces as they are drawn, `block` tokens at a time.

    The first piece begins with the prompt; a character of several tokens comes whole. Raises as
    `generate` does, before the first piece.
    """
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise InputError("the model has no tokenizer: add one with `llama-jax convert --tokenizer`")
    ids = tokenizer.encode(prompt, bos=True)
    parts = stream_tokens(
        model.prepared,
        [ids],
        config=model.config,
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature, top_k, top_p),
        seeds=[seed],
        eos_id=tokenizer.eos_id,
        block=block,
    )
    said, decode = prompt, tokenizer.decoder(after=ids)
    for (new,) in parts:
        yield said + decode(new)
        said = ""
    yield said + decode([], final=True)
