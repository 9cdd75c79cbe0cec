"""Initial parameters of a run: fresh ones, or those of an existing model.

Weights and the settings that they were trained with belong together. Nothing later would reveal a
different rotary base: the loss would only be worse. So all settings are compared before any data is
read.
"""

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import jax
from etils import epath

from llama_jax.config import FUNCTION, InputError, ModelConfig, TrainConfig, require
from llama_jax.config_file import read_config
from llama_jax.model.quantize import quantized
from llama_jax.models import Opened, open_model
from llama_jax.train.state import with_updates

logger = logging.getLogger(__name__)
SHAPE = ("vocab_size", "d_model", "num_layers", "num_heads", "num_kv_heads", "head_dim", "d_ff")
"""Settings that determine which tensors exist, and their shapes."""


def open_source[C: TrainConfig](
    config: C, workdir: epath.Path, *, resumes: bool
) -> tuple[C, Opened | None]:
    """The model that `init_from` names, and the experiment that fits it.

    With `init_from_config` the experiment takes the model's own shape and function. A run that
    `resumes` no longer needs the model.

    Raises InputError if it is no model, or its settings are not those of the experiment; the
    message lists them.
    """
    if config.init_from is None:
        return config, None
    if resumes:
        if config.init_from_config:
            config = replace(config, model=as_source(config.model, read_config(workdir)[0]))
        return config, None
    source = open_model(config.init_from).dense()
    if config.init_from_config:
        config = replace(config, model=as_source(config.model, source.config))
    check_source(config.model, source.config, source.path)
    return config, source


def as_source(model: ModelConfig, source: ModelConfig) -> ModelConfig:
    """An experiment's model with the shape and function of the one that it starts from."""
    names = (*SHAPE, *FUNCTION, "tie_embeddings", "max_seq_len")
    return replace(model, **{name: getattr(source, name) for name in names})


def check_source(model: ModelConfig, source: ModelConfig, path: str) -> None:
    """Raise InputError unless a model can start from the weights of `source`.

    A context may be extended: rotary scaling over a source that has none and whose context is the
    pretrained one.
    """
    names = [*SHAPE, *FUNCTION]
    if model.head == "language":
        names.append("tie_embeddings")
        require(
            source.head == "language",
            f"init_from {path} is a reward model, without the head that predicts tokens: start "
            "from a language model",
        )
    extended = (
        source.rope_scaling == "none"
        and model.rope_scaling != "none"
        and model.pretrained_seq_len == source.max_seq_len
    )
    if extended:
        names = [name for name in names if name not in ("rope_scaling", "rope_factor")]
        logger.info(
            "context extended from %d to %d tokens (rope_scaling %s)",
            source.max_seq_len,
            model.max_seq_len,
            model.rope_scaling,
        )
    changed = [
        f"model.{name} {getattr(source, name)!r} -> {getattr(model, name)!r}"
        for name in names
        if getattr(source, name) != getattr(model, name)
    ]
    if changed:
        raise InputError(
            f"init_from {path} was trained with other settings ({', '.join(changed)}): use its "
            "own with --init-from-config True, or set them"
        )


def source_params(source: Opened, wanted: dict[str, Any], model: ModelConfig) -> dict[str, Any]:
    """The `wanted` shapes with the source's parameters in place of all that it has, in their types
    and places.

    What only one of the two has, such as a head, is named in the log: a head of the source is left
    out, one of the new model remains a shape. Whatever is packed or cast is freed as it is done.
    """
    read = source.read()
    if model.quant is not None:
        read = quantized(read, model, release=True)
    if source.config.param_dtype != model.param_dtype:
        logger.info(
            "%s: weights cast from %s to %s",
            source.path,
            source.config.param_dtype,
            model.param_dtype,
        )
    new = [name for name in wanted if name not in read]
    left = [name for name in read if name not in wanted]
    if new or left:
        logger.info(
            "%s: %s left out, %s start fresh",
            source.path,
            ", ".join(left) or "nothing",
            ", ".join(new) or "none",
        )
    shared = {name: read[name] for name in wanted if name in read}
    places = {name: wanted[name] for name in shared}
    if model.lora is not None:  # adapters start fresh
        places["layers"] = {name: wanted["layers"][name] for name in shared["layers"]}
    return with_updates(wanted, jax.tree.map(_put, shared, places))


def _put(array: jax.Array, place: Any) -> jax.Array:
    """The array in another type, or elsewhere; the old one is deleted."""
    there = array.sharding.is_equivalent_to(place.sharding, array.ndim)
    if there and array.dtype == place.dtype:
        return array
    found = _cast(place.dtype, place.sharding)(array)
    array.delete()
    return found


@cache
def _cast(dtype: Any, sharding: Any) -> Callable[[jax.Array], jax.Array]:
    return jax.jit(lambda array: array.astype(dtype), out_shardings=sharding)
