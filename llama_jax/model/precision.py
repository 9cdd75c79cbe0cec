"""Weights in the type that is computed with, and their gradients in that type.

Parameters are float32, products bfloat16. Where the casts happen, and in which type gradients are
stacked, decides about gigabytes of a chip's memory.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from llama_jax.config import ModelConfig
from llama_jax.model.weights import map_weights


def computed(
    weights: dict[str, Array], slots: Mapping[str, Any], cfg: ModelConfig
) -> dict[str, Array]:
    """Declared weights as they are computed with: matrices in cfg.dtype, norms as they are.

    Where there is a slot for a weight (see `slots_of`), the slot has its gradient.
    """
    weights = {k: w.astype(cfg.dtype) if w.ndim > 1 else w for k, w in weights.items()}
    return {k: _in_slot(slots[k], w) if k in slots else w for k, w in weights.items()}


def slots_of(cfg: ModelConfig) -> dict:
    """What to differentiate a loss by in place of its parameters: zeros that nothing reads.

    The gradient is theirs, number by number, in the type that is computed with, where the loop over
    the layers would stack the gradients of float32 parameters in float32.
    """

    def slot(w):
        return jnp.zeros(w.shape, cfg.param_dtype if "norm" in w.axes else cfg.dtype)

    return map_weights(slot, cfg)


@jax.custom_vjp
def _in_slot(slot, w):
    """w; its gradient goes to the slot."""
    return w


def _in_slot_forward(slot, w):
    return w, None


def _in_slot_backward(_, gradient):
    return gradient, None


_in_slot.defvjp(_in_slot_forward, _in_slot_backward)


@jax.custom_vjp
def kept(weights: dict[str, Array], x: Array) -> tuple[dict[str, Array], Array]:
    """Both as they are, for a layer that casts its weights in a loop over layers.

    A TPU's compiler would cast the whole stack before the loop, and keep that copy beside the
    parameters: half their size. A barrier alone does not keep it from that: it narrows what is
    only read as bfloat16 across barriers and loops. It does not narrow bits.
    """
    types = {k: w.dtype for k, w in weights.items()}
    bits = {k: w.view(f"uint{8 * w.dtype.itemsize}") for k, w in weights.items()}
    bits, x = jax.lax.optimization_barrier((bits, x))
    return {k: b.view(types[k]) for k, b in bits.items()}, x


def _kept_forward(weights, x):
    return kept(weights, x), None


def _kept_backward(_, gradients):
    return gradients


kept.defvjp(_kept_forward, _kept_backward)
