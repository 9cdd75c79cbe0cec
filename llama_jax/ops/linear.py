"""Matrix products whose order of summation does not depend on the number of rows.

XLA may sum in a different order for a different number of rows, so the last bits of a row can
change with its neighbours, and a decoder that samples may then draw another token. It matters for
generation, where each row has one position (T = 1), and not for training.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int8

# XLA's CPU backend adds so many terms in one order for up to so many rows; from 512 terms it splits
# the sum for few rows, from 56 rows it takes another kernel (measured, 1 to 256 rows).
CHUNK = 384
ROWS = 32
# A product of two rows or more with 2 BLOCK terms and a multiple of as many outputs is, bit by bit,
# two sums of BLOCK terms, each added up term by term as one row's product is (to 32 rows).
BLOCK = 128
FUSED = 32
"""Terms that are summed in registers while int8 is read."""
FUSED_ROWS = 32
"""Rows processed at a time, whose sums of FUSED terms lie in memory."""


def project(
    x: Float[Array, "B T *inputs"],
    w: Float[Array, "*weight"] | Int8[Array, "*weight"],
    inputs: int = 1,
    scale: Float[Array, "*outputs"] | None = None,
) -> Array:
    """Contract the last `inputs` axes of x with the first of w: [B, T, *outputs] in x's dtype,
    times a scale for each output.

    With T = 1 on a CPU a row's result is the same, bit by bit, for every B. There it is also
    faster for one row than one matrix product, and int8 is read as it is, without a copy in
    floating point.
    """
    if x.shape[1] == 1:
        one = _from_int8 if w.dtype == jnp.int8 else _by_row
        return jax.lax.platform_dependent(
            x, w, scale, cpu=partial(_alone, one, inputs), default=partial(_dot, inputs)
        )
    return _dot(inputs, x, w, scale)


def _dot(inputs, x, w, scale):
    # tensordot keeps the order of the axes; einsum may not, and then XLA transposes the weight.
    y = jnp.tensordot(x, w.astype(x.dtype), axes=inputs)
    return y if scale is None else (y * scale[None, None]).astype(x.dtype)


def _alone(one, inputs, x, w, scale):
    y = one(x, w, inputs)
    if scale is None:
        return y
    # Without the barrier the scale would be multiplied in with what is added later, in one rounding
    # or in two as the number of rows decides.
    return jax.lax.optimization_barrier((y * scale[None, None]).astype(x.dtype))


def _by_row(x, w, inputs):
    B = x.shape[0]
    if B > ROWS:
        groups = jnp.pad(x, [(0, -B % ROWS), *[(0, 0)] * (x.ndim - 1)])
        groups = groups.reshape(-1, ROWS, *x.shape[1:])
        out = jax.lax.map(lambda group: _by_row(group, w, inputs), groups)
        return out.reshape(-1, *out.shape[2:])[:B]
    terms, outputs = math.prod(w.shape[:inputs]), w.shape[inputs:]
    # A barrier of its own for every product: products that share x would share its broadcast, an
    # array of the weight's size that would be written to memory for each row.
    x, w = jax.lax.optimization_barrier((x.reshape(B, terms), w.reshape(terms, -1)))
    if terms % (2 * BLOCK) or w.shape[1] % (2 * BLOCK):
        chunks = next(n for n in range(-(-terms // CHUNK), terms + 1) if terms % n == 0)
        partial = _sums(x, w, chunks)
    elif B > 1:
        partial = _products(x, w, terms // (2 * BLOCK))
    else:
        # One row's product runs on a single core, but several at once on all of them.
        partial = _products(x, w, terms // BLOCK)
        partial = partial[::2] + partial[1::2]
    total = partial[0]
    for part in partial[1:]:  # one by one: a sum over the axis has no order of its own
        total = total + part
    return total.astype(x.dtype).reshape(B, 1, *outputs)


def _sums(x, w, chunks):
    """Sums over each chunk of the terms, float32 [chunks,B,outputs], as plain multiplications and
    additions: XLA has a product of its own for them, which takes the least to set up."""
    x32 = x.reshape(x.shape[0], chunks, -1, 1).astype(jnp.float32)
    w32 = w.reshape(1, chunks, -1, w.shape[1]).astype(jnp.float32)
    # The barrier keeps the two sums apart: as one it would be split by the number of rows again.
    return jax.lax.optimization_barrier(jnp.sum(x32 * w32, axis=2)).swapaxes(0, 1)


def _products(x, w, chunks):
    """The same as one matrix product for each chunk."""
    x = x.reshape(x.shape[0], chunks, -1).swapaxes(0, 1)
    w = w.reshape(chunks, -1, w.shape[1])
    out = jnp.einsum("cBd,cdF->cBF", x, w, preferred_element_type=jnp.float32)
    return jax.lax.optimization_barrier(out)


def _from_int8(x, w, inputs):
    """Plain multiplications and additions of whole rows of w, which one loop does while it reads
    them: a matrix product would first write all of w to memory in float32."""
    B, outputs = x.shape[0], w.shape[inputs:]
    if B > FUSED_ROWS:
        groups = jnp.pad(x, [(0, -B % FUSED_ROWS), *[(0, 0)] * (x.ndim - 1)])
        groups = groups.reshape(-1, FUSED_ROWS, *x.shape[1:])
        out = jax.lax.map(lambda group: _from_int8(group, w, inputs), groups)
        return out.reshape(-1, *out.shape[2:])[:B]
    terms = math.prod(w.shape[:inputs])
    fused = next(n for n in range(FUSED, 0, -1) if terms % n == 0)
    x32 = x.reshape(B, -1, fused, 1).astype(jnp.float32)
    # The barrier is before the conversion, so that this belongs to the loop.
    x32, w = jax.lax.optimization_barrier((x32, w.reshape(1, -1, fused, math.prod(outputs))))
    total = x32[:, :, 0] * w[:, :, 0].astype(jnp.float32)
    for i in range(1, fused):
        total = total + x32[:, :, i] * w[:, :, i].astype(jnp.float32)
    while total.shape[1] > 1:
        total = jax.lax.optimization_barrier(total)
        total = jnp.pad(total, [(0, 0), (0, -total.shape[1] % min(FUSED, total.shape[1])), (0, 0)])
        parts = total.reshape(B, -1, min(FUSED, total.shape[1]), total.shape[2])
        total = parts[:, :, 0]
        for i in range(1, parts.shape[2]):
            total = total + parts[:, :, i]
    return total.astype(x.dtype).reshape(B, 1, *outputs)
