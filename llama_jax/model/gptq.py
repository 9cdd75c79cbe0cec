"""GPTQ: 4-bit quantisation calibrated on the inputs of each matrix (Frantar et al. 2022).

Rounding one number changes a product by the number's error times its input. GPTQ goes through the
inputs of a matrix one by one and moves what is not yet rounded so that the product, on inputs X
that were seen, changes least: with H = X^T X and U the upper Cholesky factor of its inverse, the
error of row i over U[i,i] is taken from the later rows j times U[i,j]. Layers are rounded in their
order, and each sees what the rounded ones before it leave.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from llama_jax.config import ModelConfig
from llama_jax.model.layer import attention, attention_output, mlp, mlp_output
from llama_jax.model.matrix import Int4
from llama_jax.model.quantize import two_a_byte
from llama_jax.model.weights import adapter_inputs
from llama_jax.ops.mlp import gated
from llama_jax.ops.norm import rms_norm

DAMPING = 0.01
"""Added to the diagonal of H, as a share of its mean."""
BLOCK = 128
"""Rows whose corrections are applied to the later ones together."""
SHRINK = np.linspace(0.6, 1.0, 17)
"""Scales to try for a group, as shares of the scale that its largest number requires."""


class Rows(NamedTuple):
    """Calibration text on its way through the layers."""

    x: Float[Array, "B T D"]
    positions: Int[Array, "B T"]
    segment_ids: Int[Array, "B T"]
    """0 for padding."""


def calibrated(
    layers: Mapping[str, Array],
    text: Sequence[Rows],
    cfg: ModelConfig,
    group: int,
    beat: Callable[[int, int], None] = lambda done, layers: None,
) -> list[dict[str, Int4]]:
    """The matrices of every layer in int4, by name, calibrated on a text that enters the first one.

    layers: dense, stacked as parameters are. `beat` gets the number of layers done.
    """
    found = []
    for number in range(cfg.num_layers):
        w: dict[str, Any] = {name: a[number].astype(jnp.float32) for name, a in layers.items()}
        _choose(w, "q k v", [(_normed(w, "attn_norm", r, cfg), r) for r in text], group)
        outs = [_attended(w, rows, cfg=cfg) for rows in text]
        _choose(w, "o", list(zip(outs, text, strict=True)), group)
        added = [attention_output(w, out) for out in outs]
        text = [r._replace(x=r.x + a) for r, a in zip(text, added, strict=True)]
        _choose(w, "gate up", [(_normed(w, "mlp_norm", r, cfg), r) for r in text], group)
        halves = [mlp(w, rows.x, cfg=cfg) for rows in text]
        gates = [gated(g, u) for g, u in halves]
        _choose(w, "down", list(zip(gates, text, strict=True)), group)
        added = [mlp_output(w, g, u) for g, u in halves]
        text = [r._replace(x=r.x + a) for r, a in zip(text, added, strict=True)]
        found.append({name: m for name, m in w.items() if isinstance(m, Int4)})
        beat(number + 1, cfg.num_layers)
    return found


def _choose(
    w: dict[str, Any], names: str, inputs: Sequence[tuple[Array, Rows]], group: int
) -> None:
    """Round the matrices that share inputs, in place."""
    total = np.zeros(())
    for x, rows in inputs:
        total = total + np.asarray(_products(x, rows.segment_ids), np.float64)
    for name in names.split():
        w[name] = rounded(w[name], total, adapter_inputs(name), group)


def _normed(w: Mapping[str, Any], norm: str, rows: Rows, cfg: ModelConfig) -> Array:
    return rms_norm(rows.x, w[norm], eps=cfg.norm_eps)


@partial(jax.jit, static_argnames="cfg")
def _attended(w: Mapping[str, Any], rows: Rows, *, cfg: ModelConfig) -> Array:
    own = rows.x, None, rows.positions, rows.segment_ids
    return attention(w, *own, cfg=cfg, zigzag=False)[0]


@jax.jit
def _products(x: Float[Array, "B T *inputs"], segment_ids: Int[Array, "B T"]) -> Array:
    """X^T X [n,n] of the flattened inputs of all tokens of a text."""
    flat = x.reshape(*x.shape[:2], -1) * (segment_ids > 0)[..., None]
    return jnp.einsum("BTn,BTm->nm", flat, flat, precision="highest")


def rounded(w: Array, products: Float[np.ndarray, "n n"], inputs: int, group: int) -> Int4:
    """A matrix [*inputs,*outputs] in int4, calibrated by X^T X of its flattened inputs."""
    shape = w.shape
    flat = np.asarray(w, np.float64).reshape(len(products), -1)
    codes, scale = choose(flat, products, group)
    outputs = shape[inputs:]
    values = two_a_byte(jnp.asarray(codes.reshape(-1, group, *outputs)))
    return Int4(values, jnp.asarray(scale.reshape(-1, *outputs)), shape[:inputs])


def choose(
    w: Float[np.ndarray, "n m"], products: Float[np.ndarray, "n n"], group: int
) -> tuple[UInt8[np.ndarray, "N m"], Float[np.ndarray, "groups m"]]:
    """Codes 0..15 of N = n inputs, padded to whole groups, and their scales, float16."""
    n, m = w.shape
    damping = DAMPING * np.trace(products) / n or 1.0  # where nothing was seen
    h = products + damping * np.eye(n)
    factor = np.linalg.cholesky(np.linalg.inv(h)).T
    w = w.copy()
    codes = np.full((n + -n % group, m), 8, np.uint8)
    scales = np.zeros((len(codes) // group, m), np.float16)
    for start in range(0, n, min(BLOCK, group)):
        end = min(start + min(BLOCK, group), n)
        if start % group == 0:
            scales[start // group] = best_scale(w[start : min(start + group, n)])
        scale = scales[start // group].astype(np.float64)
        errors = np.zeros((end - start, m))
        for i in range(start, end):
            codes[i] = nearest(w[i], scale)
            error = (w[i] - (codes[i] - 8.0) * scale) / factor[i, i]
            w[i:end] -= np.outer(factor[i, i:end], error)
            errors[i - start] = error
        w[end:] -= factor[start:end, end:].T @ errors
    return codes, scales


def nearest(w: Float[np.ndarray, "*x"], scale: Float[np.ndarray, "*x"]) -> UInt8[np.ndarray, "*x"]:
    """Nearest codes 0..15 of numbers."""
    ratio = np.divide(w, scale, out=np.zeros_like(w), where=scale != 0)
    return np.clip(np.rint(ratio) + 8, 0, 15).astype(np.uint8)


def best_scale(w: Float[np.ndarray, "g m"]) -> Float[np.ndarray, " m"]:
    """The scale of a group, float16: that among SHRINK with the least squared error."""
    at = np.abs(w).argmax(axis=0)[None]
    largest = np.take_along_axis(w, at, axis=0)[0] / -8
    best, least = np.zeros(w.shape[1], np.float16), np.full(w.shape[1], np.inf)
    for share in SHRINK:
        tried = (share * largest).astype(np.float16)
        scale = np.broadcast_to(tried.astype(np.float64)[None], w.shape)
        error = np.square((nearest(w, scale) - 8.0) * scale - w).sum(axis=0)
        better = error < least
        best, least = np.where(better, tried, best), np.where(better, error, least)
    return best
