"""The key/value cache, and the decoder over it: the layers one by one, each with its own weights.

A scan over stacked layers would copy every layer's weights and cache out of the stack at every
token, which is as much traffic as the work itself. So generation takes the stack apart once.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from llama_jax.config import ModelConfig
from llama_jax.model.layer import Cache, decoder_layer, order_of_cache
from llama_jax.ops.cached_attention import VALUES
from llama_jax.ops.linear import project
from llama_jax.ops.norm import rms_norm
from llama_jax.parallel.rules import spec_in_context


def empty_cache(config: ModelConfig, B: int, S: int) -> list[Cache]:
    """One (keys, values) pair for each layer, zeros in the compute type, see `order_of_cache`.

    With a mesh in context, each device makes the rows and heads that it will read.
    """
    sizes = {"B": B, "K": config.num_kv_heads, "S": S, "H": config.head_dim}
    names = {"B": "batch", "K": "kv_heads", "S": None, "H": "head_dim"}

    def zeros(order):
        shape = tuple(sizes[letter] for letter in order)
        spec = spec_in_context([names[letter] for letter in order], shape)
        make = partial(jnp.zeros, shape, config.dtype)
        return (make if spec is None else jax.jit(make, out_shardings=spec))()

    order = order_of_cache(config, B)
    return [(zeros(order), zeros(VALUES[order])) for _ in range(config.num_layers)]


def unstack(params: dict[str, Any], config: ModelConfig) -> dict[str, Any]:
    """The parameter tree with a list of L layers for "layers", matrices in the compute type.

    A tied head becomes a tensor of its own, in the layout that is read fastest.
    """

    def cast(w):
        return w.astype(config.dtype) if w.ndim > 1 else w

    stacked = params["layers"]
    layers = [{k: cast(w[i]) for k, w in stacked.items()} for i in range(config.num_layers)]
    outer = {k: cast(w) for k, w in params.items() if k != "layers"}
    return {"head": outer["embed"].T, **outer, "layers": layers}


def decode(
    w: dict[str, Any],
    tokens: Int[Array, "B T"],
    cache: list[Cache],
    start: Int[Array, " B"],
    *,
    config: ModelConfig,
) -> tuple[Float[Array, "B T D"], list[Cache]]:
    """Normed residual stream of T further tokens a row, and the cache that holds them.

    Row b's tokens stand at positions start[b] onwards; earlier positions must be in the cache.
    `w` is what `unstack` returns.
    """
    positions = start[:, None] + jnp.arange(tokens.shape[1])[None]
    x = w["embed"][tokens]
    written: list[Any] = []
    for layer, kv in zip(w["layers"], cache, strict=True):
        x, kv = decoder_layer(layer, x, kv, positions, None, cfg=config)
        written.append(kv)
    return rms_norm(x, w["norm"], eps=config.norm_eps), written


def logits_of(w: dict[str, Any], x: Float[Array, "B 1 D"]) -> Float[Array, "B V"]:
    """The head: float32 logits of one position a row."""
    return project(x.astype(jnp.float32), w["head"].astype(jnp.float32))[:, 0]


def inference_config(config: ModelConfig) -> ModelConfig:
    """The configuration to generate with: float32 on CPUs, whose bfloat16 products of one row run
    several times slower than float32 ones; the configured type elsewhere."""
    return replace(config, dtype="float32") if jax.default_backend() == "cpu" else config


@partial(jax.jit, static_argnames="config")
def prepare(params: dict[str, Any], config: ModelConfig) -> dict[str, Any]:
    """The parameters as generation reads them: layers apart, in the type it computes with."""
    return unstack(params, inference_config(config))
