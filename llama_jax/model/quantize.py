"""Quantises dense matrices to int8, int4 or NF4, and turns them back.

Rounding is to the nearest number that the type has (see `matrix.Int8`, `Int4`, `Nf4`). A stack of
layers is processed one layer at a time, so that no more than one is in memory twice.
"""

import itertools
import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from llama_jax.config import MATRICES, ModelConfig, Quantization
from llama_jax.model.matrix import (
    NF4,
    Int4,
    Int8,
    Int8Rows,
    Nf4,
    Packed,
    dense,
    matrices,
    outer_matrices,
)
from llama_jax.model.weights import LOW, SCALE, STEP, adapter_inputs
from llama_jax.ops import int8_cache


def pack(w: Float[Array, "*weight"], q: Quantization, inputs: int) -> Packed:
    """Quantises a dense matrix [*inputs,*outputs] with `inputs` input axes."""
    w = w.astype(jnp.float32)
    if q.weights == "int8":
        return to_int8(w, inputs)
    return to_int4(w, inputs, q.group) if q.weights == "int4" else to_nf4(w, inputs, q.group)


def to_int8(w: Float[Array, "*weight"], inputs: int) -> Int8:
    """Scales each output so that its largest magnitude becomes 127."""
    return Int8(*int8_cache.to_int8(w, tuple(range(inputs))))


def to_int4(w: Float[Array, "*weight"], inputs: int, group: int) -> Int4:
    """As ggml's Q4_0 does, with its block as the group: the number of the largest magnitude becomes
    -8 scales, so that one of the 16 codes represents it exactly, and halves are rounded up."""
    shape, numbers = w.shape[:inputs], _grouped(w, inputs, group)
    largest = jnp.take_along_axis(numbers, jnp.argmax(jnp.abs(numbers), axis=1)[:, None], axis=1)
    scale = largest / -8
    inverse = jnp.where(scale == 0, 0, 1 / _or_one(scale))
    found = jnp.clip(jnp.trunc(numbers * inverse + 8.5), 0, 15)
    return Int4(two_a_byte(found), scale[:, 0].astype(jnp.float16), shape)


def to_nf4(w: Float[Array, "*weight"], inputs: int, group: int) -> Nf4:
    """Rounds to NF4 times the block's largest magnitude, which is itself rounded to one of 256
    values between the least and the largest of its output (double quantisation)."""
    shape, numbers = w.shape[:inputs], _grouped(w, inputs, group)
    largest = jnp.max(jnp.abs(numbers), axis=1)
    low = jnp.min(largest, axis=0)
    step = (jnp.max(largest, axis=0) - low) / 255
    scale = jnp.rint((largest - low[None]) / _or_one(step)[None])
    kept = low[None] + step[None] * scale
    ratio = numbers / _or_one(kept)[:, None]
    found = jnp.zeros(ratio.shape, jnp.uint8)
    for least, most in itertools.pairwise(NF4):
        found += ratio > (least + most) / 2
    return Nf4(two_a_byte(found), scale.astype(jnp.uint8), low, step, shape)


def _or_one(scale: Array) -> Array:
    """What to divide by: where all numbers are 0, so are their codes."""
    return jnp.where(scale == 0, 1, scale)


def _grouped(w: Array, inputs: int, group: int) -> Float[Array, "groups g *outputs"]:
    """The inputs flattened and cut into groups, the last one filled up with zeros."""
    flat = w.reshape(-1, *w.shape[inputs:])
    padded = jnp.pad(flat, [(0, -len(flat) % group), *[(0, 0)] * (flat.ndim - 1)])
    return padded.reshape(-1, group, *flat.shape[1:])


def two_a_byte(found: Array) -> UInt8[Array, "groups half *outputs"]:
    """Packs codes [groups,g,*outputs] below 16 in the form that `matrix.codes` reads."""
    low, high = jnp.split(found.astype(jnp.uint8), 2, axis=1)
    return low | high << 4


def parts(name: str, w: Packed | Int8Rows) -> dict[str, Array]:
    """The arrays of a value, by their names in the parameter tree."""
    ends = ("", SCALE, LOW, STEP)
    return {name + end: a for end, a in zip(ends, jax.tree.leaves(w), strict=False)}


def quantized(
    params: Mapping[str, Any], cfg: ModelConfig, *, release: bool = False
) -> dict[str, Any]:
    """Dense parameters as a model with `cfg.quant` keeps them; what is none of its matrices stays.

    Adapters may be among them. With `release` each dense matrix is deleted once it is packed: a
    device that they nearly fill has no room for both.
    """
    assert cfg.quant is not None, "the model keeps its matrices dense"
    q, layers = cfg.quant, dict(params["layers"])
    outer = {name: w for name, w in params.items() if name != "layers"}
    for name in MATRICES:
        stack = layers.pop(name)
        layers |= _packed_stack(stack, name, q)
        if release:
            stack.delete()
    for name in ("embed", "head") if q.embeddings else ():
        if (table := outer.get(name)) is not None:
            outer |= _packed_table(table, name)
            if release:
                table.delete()
    return {**outer, "layers": layers}


@partial(jax.jit, static_argnames=("name", "q"))
def _packed_stack(stack: Float[Array, "L ..."], name: str, q: Quantization) -> dict[str, Array]:
    packed = jax.lax.map(partial(pack, q=q, inputs=adapter_inputs(name)), stack)
    return parts(name, packed)


@partial(jax.jit, static_argnames="name")
def _packed_table(table: Float[Array, "..."], name: str) -> dict[str, Array]:
    if name == "head":
        return parts(name, to_int8(table.astype(jnp.float32), 1))
    embed = to_int8(table.astype(jnp.float32).T, 1)
    return parts(name, Int8Rows(embed.values.T, embed.scale))


@partial(jax.jit, static_argnames="cfg")
def dequantized(params: Mapping[str, Any], cfg: ModelConfig) -> dict[str, Any]:
    """Parameters of a model with `cfg.quant` as dense ones, in its param_dtype."""
    layers = matrices(params["layers"], cfg)
    for name in MATRICES:
        layers[name] = jax.lax.map(partial(dense, dtype=cfg.param_dtype), layers[name])
    outer = outer_matrices({n: w for n, w in params.items() if n != "layers"}, cfg)
    outer = {name: dense(w, cfg.param_dtype) if name in ("embed", "head") else w
             for name, w in outer.items()}  # fmt: skip
    return {**outer, "layers": layers}


def relative_errors(
    params: Mapping[str, Any], packed: Mapping[str, Any], cfg: ModelConfig
) -> dict[str, list[float]]:
    """Relative rounding error by matrix and layer: the root mean square of the change over that of
    the numbers.

    The embedding and the head have one entry each, if they were quantised.
    """
    again = dequantized(packed, cfg)
    found = {n: _error(params["layers"][n], again["layers"][n]) for n in MATRICES}
    for name in ("embed", "head"):
        if name + SCALE in packed:
            found[name] = _error(params[name][None], again[name][None])
    return {name: values.tolist() for name, values in found.items()}


@jax.jit
def _error(before: Array, after: Array) -> Float[Array, " L"]:
    def root(a):
        return jnp.sqrt(jnp.sum(jnp.square(a), axis=tuple(range(1, a.ndim))))

    a, b = before.astype(jnp.float32), after.astype(jnp.float32)
    return root(a - b) / jnp.maximum(root(a), math.ulp(0.0))
