"""x W, with one order of summation for every number of rows where one position a row is computed.

A matrix product may add in another order for another number of rows, so the same row can come out
with another last bit when its neighbours change, and a decoder that samples may then say another
word. Training does not mind; generation does.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# XLA's CPU backend adds so many terms in one order for up to so many rows; from 512 terms it splits
# the sum for few rows, from 56 rows it takes another kernel (measured, 1 to 256 rows).
CHUNK = 384
ROWS = 32


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
    B = x.shape[0]
    if B > ROWS:
        groups = jnp.pad(x, [(0, -B % ROWS), *[(0, 0)] * (x.ndim - 1)])
        groups = groups.reshape(-1, ROWS, *x.shape[1:])
        out = jax.lax.map(lambda group: _by_row(group, w, inputs), groups)
        return out.reshape(-1, *out.shape[2:])[:B]
    terms, outputs = math.prod(w.shape[:inputs]), w.shape[inputs:]
    chunks = next(n for n in range(-(-terms // CHUNK), terms + 1) if terms % n == 0)
    # A barrier of its own for every product: products that share x would share its broadcast, an
    # array of the weight's size that would be written to memory for each row.
    x, w = jax.lax.optimization_barrier((x, w))
    x32 = x.reshape(B, chunks, terms // chunks, 1).astype(jnp.float32)
    w32 = w.reshape(1, chunks, terms // chunks, -1).astype(jnp.float32)
    # The barrier keeps the two sums apart: as one it would be split by the number of rows again.
    partial = jax.lax.optimization_barrier(jnp.sum(x32 * w32, axis=2))
    total = partial[:, 0]
    for chunk in range(1, chunks):  # one by one: a sum over the axis has no order of its own
        total = total + partial[:, chunk]
    return total.astype(x.dtype).reshape(B, 1, *outputs)
