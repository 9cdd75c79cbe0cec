"""x W, with one order of summation for every number of rows where one position a row is computed.

A matrix product may add in another order for another number of rows, so the same row can come out
with another last bit when its neighbours change, and a decoder that samples may then say another
word. Training does not mind; generation does.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# XLA's CPU backend adds fewer terms than this in the same order whatever the number of rows; from
# 512 it splits the sum for few rows (measured for 1 to 16 rows and up to 2048 terms).
CHUNK = 256


def project(x: Float[Array, "B T *inputs"], w: Float[Array, "*weight"], inputs: int = 1) -> Array:
    """Contract the last `inputs` axes of x with the first of w: [B, T, *outputs] in x's dtype.

    With T = 1 on a CPU a row's result is the same, bit by bit, for every B. There it is also
    faster for one row than the matrix product, which runs on a single core.
    """
    if x.shape[1] == 1:
        return jax.lax.platform_dependent(
            x, w, cpu=lambda x, w: _by_row(x, w, inputs), default=lambda x, w: _dot(x, w, inputs)
        )
    return _dot(x, w, inputs)


def _dot(x, w, inputs):
    # tensordot keeps the order of the axes; einsum may not, and then XLA transposes the weight.
    return jnp.tensordot(x, w, axes=inputs)


def _by_row(x, w, inputs):
    B, terms, outputs = x.shape[0], math.prod(w.shape[:inputs]), w.shape[inputs:]
    chunks = next(n for n in range(-(-terms // CHUNK), terms + 1) if terms % n == 0)
    x32 = x.reshape(B, chunks, terms // chunks, 1).astype(jnp.float32)
    w32 = w.reshape(1, chunks, terms // chunks, -1).astype(jnp.float32)
    # The barrier keeps the two sums apart: as one it would be split by the number of rows again.
    partial = jax.lax.optimization_barrier(jnp.sum(x32 * w32, axis=2))
    return jnp.sum(partial, axis=1).astype(x.dtype).reshape(B, 1, *outputs)
