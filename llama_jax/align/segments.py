"""Segments of packed rows: their positions, and sums over each.

Segments count from 1 and stand one behind the other from the beginning of a row; K of them are
asked for, and those that a row lacks are empty.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from llama_jax.data.packing import positions_of


def of_segments(segment_ids: Int[Array, "*R T"], count: int) -> Bool[Array, "*R T {count}"]:
    """Mask of the tokens that belong to each of the segments 1 to K = count."""
    return jax.nn.one_hot(segment_ids - 1, count, dtype=bool)


def spans(
    segment_ids: Int[Array, "*R T"], count: int
) -> tuple[Int[Array, "*R {count}"], Int[Array, "*R {count}"]]:
    """Start and number of tokens of each segment."""
    lengths = jnp.sum(of_segments(segment_ids, count), axis=-2, dtype=jnp.int32)
    return jnp.cumsum(lengths, axis=-1) - lengths, lengths


def segment_sums(
    values: Float[Array, "R T"], segment_ids: Int[Array, "R T"], count: int
) -> Float[Array, "R {count}"]:
    """Sum of the values of each segment."""
    return jnp.sum(jnp.where(of_segments(segment_ids, count), values[..., None], 0), axis=1)


def apart(rows: Mapping[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
    """Arrays [R,T] as [R*K,T]: each segment moved to the beginning of a row of its own,
    zero-padded."""
    segment_ids = rows["segment_ids"]
    T = segment_ids.shape[1]
    lengths = np.sum(segment_ids[..., None] == np.arange(1, count + 1), axis=1)
    starts = np.cumsum(lengths, axis=1) - lengths
    here = np.arange(T)
    inside = (here < lengths[..., None]).reshape(-1, T)
    at = np.minimum(starts[..., None] + here, T - 1)
    found = {
        name: np.where(inside, np.take_along_axis(a[:, None], at, 2).reshape(-1, T), 0)
        for name, a in rows.items()
    }
    own = inside.astype(np.int32)
    found = {name: a.astype(rows[name].dtype) for name, a in found.items()}
    return found | {"segment_ids": own, "positions": positions_of(own)}
