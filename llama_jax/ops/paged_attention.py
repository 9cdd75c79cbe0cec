"""Attention of new tokens to a cache of keys and values that lies in pages.

A pool of P pages has the axes of a contiguous cache of P rows (`cached_attention.Order`), with the
positions of a page in the place of S. Token s of row b lies in page table[b, s // page]. Page 0 is
nobody's: what must not be kept is written there, by rows that are idle or beyond their pages.

Each row is worked on page by page, the softmax carried along (Milakov and Gimelshein 2018), and a
page behind a row's end changes none of its bits: its weights are 0 and its correction is 1. So a
row's result does not depend on how long its neighbours are, whose pages decide how far the loop
runs, and no step reads more of the pool than the longest row has.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from llama_jax.ops import capabilities
from llama_jax.ops.attention import dot_product_attention
from llama_jax.ops.cached_attention import DECODE_QUERIES, VALUES, Order
from llama_jax.ops.interpreted import interpreted


def write_pages(
    keys: Float[Array, "P x y z"],
    values: Float[Array, "P x2 y2 z2"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    table: Int[Array, "B pages"],
    start: Int[Array, " B"],
    *,
    order: Order,
) -> tuple[Float[Array, "P x y z"], Float[Array, "P x2 y2 z2"]]:
    """The pool with row b's new keys and values at positions start[b] onwards.

    Positions beyond the table's width go to page 0.
    """
    page = keys.shape[order.index("S")]
    positions = start[:, None] + jnp.arange(k.shape[1])[None]
    number, place = positions // page, positions % page
    owned = jnp.take_along_axis(table, jnp.minimum(number, table.shape[1] - 1), axis=1)
    at = jnp.where(number < table.shape[1], owned, 0)

    def write(pool, new, axes):
        if axes.index("S") == 1:
            return pool.at[at, place].set(new.astype(pool.dtype))
        if axes.index("S") == 2:
            return pool.at[at, :, place].set(new.astype(pool.dtype))
        return pool.at[at, :, :, place].set(new.astype(pool.dtype))

    # Without the barrier XLA writes once more into a copy, fused with what reads it.
    written = write(keys, k, order), write(values, v, VALUES[order])
    return jax.lax.optimization_barrier(written)


def paged_attention(
    q: Float[Array, "B T N H"],
    keys: Float[Array, "P x y z"],
    values: Float[Array, "P x2 y2 z2"],
    table: Int[Array, "B pages"],
    start: Int[Array, " B"],
    *,
    order: Order,
) -> Float[Array, "B T N H"]:
    """Causal attention of T new tokens a row, which stand at start[b] onwards of its pages.

    Not differentiable. A row's result is the same, bit by bit, whatever the other rows hold.

    Args:
      keys, values: the pool in the axes that `order` and `VALUES[order]` say, the new tokens in it.
    """
    if order == "BKHS":
        return _by_page(q, keys, values, table, start)
    B, T, N, _ = q.shape
    if T * N <= DECODE_QUERIES:
        return _by_kernel(q, keys, values, table, start)
    whole = (pool[table].reshape(B, -1, *pool.shape[2:]) for pool in (keys, values))
    return dot_product_attention(q, *whole, q_offset=start, implementation="pallas")


def _by_page(q, keys, values, table, start):
    B, T, N, H = q.shape
    K, page = keys.shape[1], keys.shape[3]
    G, f32 = N // K, jnp.float32
    q = q.reshape(B, T, K, G, H).transpose(0, 2, 3, 1, 4).astype(f32) * H**-0.5
    positions = start[:, None] + jnp.arange(T)[None]

    def product(a, b):
        """a [B,K,G,T,x] times b [B,K,x,y]. For one query a sum of products, which a CPU's cores
        share, as in `cached_attention`."""
        if T > 1:
            return jnp.einsum("BKGTx,BKxy->BKGTy", a, b, preferred_element_type=f32)
        a, b = jax.lax.optimization_barrier((a, b))
        return jnp.sum(a.swapaxes(3, 4) * b[:, :, None], axis=3, keepdims=True)

    def body(n, carry):
        largest, total, out = carry
        at = jax.lax.dynamic_index_in_dim(table, n, axis=1, keepdims=False)
        k, v = keys[at].astype(f32), values[at].astype(f32)
        seen = (n * page + jnp.arange(page))[None, None] <= positions[:, :, None]  # [B,T,page]
        # What no query sees may be another row's, or not a number.
        v = jnp.where(seen[:, -1, None, :, None], v, 0.0)
        seen = seen[:, None, None]
        logits = jnp.where(seen, product(q, k), -jnp.inf)
        new = jnp.maximum(largest, jnp.max(logits, axis=-1, keepdims=True))
        weights = jnp.where(seen, jnp.exp(logits - new), 0.0)
        weights = jax.lax.optimization_barrier(weights)
        kept = jnp.where(largest == new, 1.0, jnp.exp(largest - new))
        total = total * kept + jnp.sum(weights, axis=-1, keepdims=True)
        return new, total, out * kept + product(weights, v)

    rows = (B, K, G, T)
    begin = (
        jnp.full((*rows, 1), -jnp.inf, f32),
        jnp.zeros((*rows, 1), f32),
        jnp.zeros((*rows, H), f32),
    )
    pages = jnp.minimum(jnp.max(positions) // page + 1, table.shape[1])
    _, total, out = jax.lax.fori_loop(0, pages, body, begin)
    return (out / total).transpose(0, 3, 1, 2, 4).reshape(B, T, N, H).astype(values.dtype)


def _by_kernel(q, keys, values, table, start):
    from llama_jax.kernels.decode_attention import paged_decode_attention  # for TPUs alone

    device = capabilities.device()
    q = interpreted(q) if device == "cpu" else q
    lengths = start + jnp.int32(q.shape[1])
    return paged_decode_attention(q, keys, values, table, lengths, interpret=device == "cpu")
