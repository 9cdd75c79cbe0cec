"""Sums over the last axis whose order does not depend on the number of rows, as in `ops.linear`."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

LANES, TERMS = 16, 16
"""Numbers of a vector register, and registers that are added at a time."""


def ordered_sum(x: Float[Array, "B N"]) -> Float[Array, " B"]:
    """The sum of each row. On a CPU a row's sum is the same, bit by bit, for every B; the order of
    a plain sum is for XLA to choose, which does so by shape."""
    return jax.lax.platform_dependent(x, cpu=_by_lanes, default=partial(jnp.sum, axis=-1))


def _by_lanes(x):
    """Additions of whole vector registers, TERMS at a time, then of the numbers of the last one in
    pairs."""
    B, N = x.shape
    sums = jnp.pad(x, [(0, 0), (0, -N % LANES)]).reshape(B, -1, LANES)
    while (terms := min(TERMS, sums.shape[1])) > 1:
        sums = jnp.pad(sums, [(0, 0), (0, -sums.shape[1] % terms), (0, 0)])
        parts = sums.reshape(B, -1, terms, LANES)
        total = parts[:, :, 0]
        for i in range(1, terms):
            total = total + parts[:, :, i]
        # Each stage stays a loop of its own.
        sums = jax.lax.optimization_barrier(total)
    sums = sums[:, 0]
    while sums.shape[1] > 1:
        sums = sums[:, ::2] + sums[:, 1::2]
    return sums[:, 0]
