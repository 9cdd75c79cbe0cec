"""Attention of new tokens to a paged KV cache.

A pool of P pages has the axes of a contiguous cache of P rows (`cached_attention.Order`), with the
positions of a page in the place of S. Token s of row b lies in page table[b, s // page]. Page 0 is
nobody's: what must not be kept is written there, by rows that are idle or beyond their pages.

Each row is worked on page by page, the softmax carried along (Milakov and Gimelshein 2018), and a
page behind a row's end changes none of its bits: its weights are 0 and its correction is 1. So a
row's result does not depend on how long its neighbours are, whose pages decide how far the loop
runs, and no step reads more of the pool than the longest row has.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from llama_jax.ops import capabilities
from llama_jax.ops.attention import dot_product_attention
from llama_jax.ops.cached_attention import DECODE_QUERIES, VALUES, Order
from llama_jax.ops.int8_cache import Int8Pages, to_int8
from llama_jax.ops.interpreted import interpreted

type Pool = Float[Array, "P _ _ _"] | Int8Pages
"""Keys or values of all pages, in the compute type or in int8."""


def write_pages(
    keys: Pool,
    values: Pool,
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    table: Int[Array, "B pages"],
    start: Int[Array, " B"],
    *,
    order: Order,
) -> tuple[Pool, Pool]:
    """The pool with row b's new keys and values at positions start[b] onwards.

    Positions beyond the table's width go to page 0.
    """
    page = keys.shape[order.index("S")]
    positions = start[:, None] + jnp.arange(k.shape[1])[None]
    number, place = positions // page, positions % page
    owned = jnp.take_along_axis(table, jnp.minimum(number, table.shape[1] - 1), axis=1)
    at = jnp.where(number < table.shape[1], owned, 0)

    def write(pool: Pool, new: Array, axes: str) -> Pool:
        if not isinstance(pool, Int8Pages):
            return put(pool, new, axes)
        numbers, scale = to_int8(new)
        return Int8Pages(put(pool.numbers, numbers, axes), pool.scale.at[at, :, place].set(scale))

    def put(pool: Array, new: Array, axes: str) -> Array:
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
    keys: Pool,
    values: Pool,
    table: Int[Array, "B pages"],
    start: Int[Array, " B"],
    *,
    order: Order,
    spec: PartitionSpec | None = None,
) -> Float[Array, "B T N H"]:
    """Causal attention of T new tokens per row, at start[b] onwards of the row's pages.

    Not differentiable. A row's result is the same, bit by bit, whatever the other rows hold.

    Args:
      keys, values: the pool with axes as in `order` and `VALUES[order]`, the new tokens included.
      spec: how q is split over the mesh in scope; the pool by its heads alone.
    """
    if order == "BKHS":
        return _by_page(q, keys, values, table, start)
    B, T, N, _ = q.shape
    if T * N <= DECODE_QUERIES:
        return _by_kernel(q, keys, values, table, start, spec)
    pages = (_read(pool, table, VALUES[order], q.dtype) for pool in (keys, values))
    whole = (found.reshape(B, -1, *found.shape[3:]) for found in pages)
    return dot_product_attention(q, *whole, q_offset=start, implementation="pallas", spec=spec)


def _read(pool: Pool, at: Int[Array, "*rows"], axes: str, dtype: DTypeLike) -> Array:
    """The pages `at`, multiplied out."""
    if not isinstance(pool, Int8Pages):
        return pool[at].astype(dtype)
    scale = pool.scale[at]  # [*rows, K, page]
    scale = scale if axes.index("K") < axes.index("S") else scale.swapaxes(-1, -2)
    scale = jnp.expand_dims(scale, axes.index("H") - len(axes))
    return (pool.numbers[at].astype(jnp.float32) * scale).astype(dtype)


def _by_page(q, keys, values, table, start):
    B, T, N, H = q.shape
    K, page = keys.shape[1], keys.shape[3]
    G, f32, dtype = N // K, jnp.float32, q.dtype
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
        k, v = (_read(pool, at, a, f32) for pool, a in ((keys, "BKHS"), (values, "BKSH")))
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
    return (out / total).transpose(0, 3, 1, 2, 4).reshape(B, T, N, H).astype(dtype)


def _by_kernel(q, keys, values, table, start, spec):
    if spec is None:
        return _decode(q, keys, values, table, start)
    heads = spec[2]
    numbers, scale = PartitionSpec(None, None, heads, None), PartitionSpec(None, heads, None)
    pools = jax.tree.map(lambda pool: numbers if pool.ndim == 4 else scale, (keys, values))
    rows = PartitionSpec(spec[0])
    specs = (spec, *pools, rows, rows)
    split = jax.shard_map(_decode, in_specs=specs, out_specs=spec, check_vma=False)
    return split(q, keys, values, table, start)


def _decode(q, keys, values, table, start):
    from llama_jax.kernels.decode_attention import paged_decode_attention  # for TPUs alone

    device = capabilities.device()
    q = interpreted(q) if device == "cpu" else q
    lengths = start + jnp.int32(q.shape[1])
    attend = partial(paged_decode_attention, interpret=device == "cpu")
    if isinstance(keys, Int8Pages) and isinstance(values, Int8Pages):
        scales = {"k_scale": keys.scale, "v_scale": values.scale}
        return attend(q, keys.numbers, values.numbers, table, lengths, **scales)
    return attend(q, keys, values, table, lengths)
