"""Mixed precision: casts master weights to the compute dtype and keeps gradients in it.

Parameters are float32, products bfloat16. The places of the casts, and the dtype in which gradients
are stacked, make a difference of gigabytes in a chip's memory.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from llama_jax.config import ModelConfig
from llama_jax.model.weights import Table, Weight, map_table


def compute_weights(
    weights: dict[str, Array], table: Mapping[str, Weight], slots: Mapping[str, Any], dtype: str
) -> dict[str, Array]:
    """Declared weights for computation: matrices in the compute dtype, the rest unchanged.

    Where there is a slot for a weight (see `gradient_slots`), the slot receives its gradient.
    """
    weights = {k: w.astype(dtype) if table[k].is_matrix else w for k, w in weights.items()}
    return {k: _in_slot(slots[k], w) if k in slots else w for k, w in weights.items()}


def gradient_slots(table: Table, cfg: ModelConfig) -> Any:
    """Zeros, never read, by which a loss is differentiated in place of its parameters.

    The gradient has the same values, but in the compute dtype, where the loop over the layers would
    stack the gradients of float32 parameters in float32. A weight without a row in `table` gets no
    gradient, and none is computed for it.
    """
    return map_table(
        lambda w: jnp.zeros(w.shape, cfg.dtype if w.is_matrix else w.dtype or cfg.param_dtype),
        table,
    )


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
def keep_master_weights(weights: dict[str, Array], x: Array) -> tuple[dict[str, Array], Array]:
    """Returns both unchanged, for a layer that casts its weights in a loop over layers.

    A TPU's compiler would cast the whole stack before the loop, and keep that copy beside the
    parameters: half their size. A barrier alone does not prevent it: the compiler narrows values
    that are only read as bfloat16 across barriers and loops. It does not narrow bits.
    """
    types = {k: w.dtype for k, w in weights.items()}
    bits = {k: w.view(f"uint{8 * w.dtype.itemsize}") for k, w in weights.items()}
    bits, x = jax.lax.optimization_barrier((bits, x))
    return {k: b.view(types[k]) for k, b in bits.items()}, x


def _kept_forward(weights, x):
    return keep_master_weights(weights, x), None


def _kept_backward(_, gradients):
    return gradients


keep_master_weights.defvjp(_kept_forward, _kept_backward)
