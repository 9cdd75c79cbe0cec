"""Attention in plain XLA operations, tile by tile, with a gradient of its own; for any backend.

The [T,S] weights are made in tiles of some queries by some keys and never exist as a whole. Tiles
that causality hides are left out; the rest are visited one after another by a scan, and a query's
maximum, sum and output are corrected from tile to tile (Dao et al. 2022, algorithms 1 and 4). On a
CPU the passes over a tile then find it in the cache, which decides the speed wherever H is small.

R stands for the rows of a tile's products: its queries, once for each of the G heads of a group.
Queries and output gradients are wanted as [R,H] and as [H,R], keys and values as [H,S] alone: with
these, no product in either direction has to transpose a tile of weights.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

# Weights of a tile, over all its rows and heads: 4 MB of float32, a few of which fit a CPU's cache.
TILE_ELEMENTS = 1 << 20
# Below, products grow inefficient and steps many; above, little is left to hide.
MIN_BLOCK, MAX_BLOCK = 64, 512


class Tiling(NamedTuple):
    """The static facts of a call's mask, and the tile sizes."""

    causal: bool
    q_offset: int | None
    """None for an offset that is traced."""
    scale: float
    queries: int
    keys: int
    """Numbers of queries and keys of a tile."""


def attend(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    causal: bool,
    segment_ids: Int[Array, "B T"] | None,
    kv_segment_ids: Int[Array, "B S"] | None,
    q_offset: int | Int[Array, ""] | Int[Array, " B"],
    scale: float,
) -> Float[Array, "B T N H"]:
    """`dot_product_attention` with every argument given."""
    static, traced = (q_offset, None) if isinstance(q_offset, int) else (None, q_offset)
    queries, keys = _tile_shape(q.shape, k.shape[1], static)
    tiling = Tiling(causal, static, scale, queries, keys)
    return _attend(q, k, v, (segment_ids, kv_segment_ids, traced), tiling)


def _visible(
    queries: Int[Array, " T"],
    keys: Int[Array, " S"],
    causal: bool,
    segment_ids: Int[Array, "B T"] | None,
    kv_segment_ids: Int[Array, "B S"] | None,
    q_offset: int | Int[Array, ""] | Int[Array, " B"],
) -> Bool[Array, "rows T S"] | None:
    """What the queries of these indices may see of the keys of those; rows is B or 1. None: all."""
    mask = None
    if causal:
        positions = jnp.reshape(jnp.asarray(q_offset), (-1, 1, 1)) + queries[None, :, None]
        mask = positions >= keys[None, None, :]
    if segment_ids is not None and kv_segment_ids is not None:
        same = segment_ids[:, :, None] == kv_segment_ids[:, None, :]
        mask = same if mask is None else jnp.logical_and(mask, same)
    return mask


def _tile_shape(shape, S, q_offset):
    """Queries and keys of a tile.

    Where the offset is traced, as in generation, all keys are one tile and the batch has no say: a
    row's sums are then added up in the same order, whatever its neighbours are.
    """
    B, T, N, _ = shape
    if q_offset is None:
        return _even(T, MIN_BLOCK), S
    mesh = jax.sharding.get_abstract_mesh()
    heads = B * N / (1 if mesh.empty else mesh.size)
    side = 1 << int(math.log2(max(TILE_ELEMENTS / heads, 1)) / 2)
    side = min(max(side, MIN_BLOCK), MAX_BLOCK)
    return _even(T, side), _even(S, side)


def _even(length, limit):
    """Size of equal parts of at most `limit`, so that little is padded."""
    return -(-length // -(-length // limit))


def _tiles(T, S, tiling):
    """Indices of the tiles in which any query sees any key: two int32 arrays [tiles]."""
    rows, columns = np.indices((-(-T // tiling.queries), -(-S // tiling.keys)), np.int32)
    if tiling.causal and tiling.q_offset is not None:
        last_query = tiling.q_offset + np.minimum((rows + 1) * tiling.queries, T) - 1
        some = last_query >= columns * tiling.keys
        return rows[some], columns[some]
    return rows.ravel(), columns.ravel()


def _cut(x, size):
    """[B,T,...] as [tiles,B,size,...], padded with zeros."""
    x = jnp.pad(x, [(0, -x.shape[1] % size if a == 1 else 0) for a in range(x.ndim)])
    return jnp.moveaxis(x.reshape(x.shape[0], -1, size, *x.shape[2:]), 1, 0)


def _cut_queries(x, K, size):
    """[B,T,N,H] as [tiles,B,K,R,H]."""
    x = _cut(x, size)
    x = x.reshape(*x.shape[:3], K, -1, x.shape[-1]).transpose(0, 1, 3, 4, 2, 5)
    return x.reshape(*x.shape[:3], -1, x.shape[-1])


def _join_queries(x, T, N):
    """[tiles,B,K,R,H] as [B,T,N,H]."""
    tiles, B, K, R, H = x.shape
    x = x.reshape(tiles, B, N, R * K // N, H).transpose(1, 0, 3, 2, 4)
    return x.reshape(B, -1, N, H)[:, :T]


def _cut_keys(x, size):
    """[B,S,K,H] as [tiles,B,K,H,S]."""
    return _cut(x, size).transpose(0, 1, 3, 4, 2)


def _join_keys(x, S):
    """[tiles,B,K,H,S] as [B,S,K,H]."""
    tiles, B, K, H, size = x.shape
    return x.transpose(1, 0, 4, 2, 3).reshape(B, tiles * size, K, H)[:, :S]


def _at(x, i):
    return jax.lax.dynamic_index_in_dim(x, i, keepdims=False)


def _set(x, i, value):
    return jax.lax.dynamic_update_index_in_dim(x, value, i, 0)


def _product(equation, a, b):
    return jnp.einsum(equation, a, b, preferred_element_type=jnp.float32)


def _make_logits(q, k, masks, tiling, T, S, G):
    """The function of a tile's indices that gives its masked logits, float32 [B,K,R,S].

    Takes q [tiles,B,K,R,H] and k [tiles,B,K,H,S].
    """
    # The barrier lets nothing of the mask look independent of q: what is the same for all layers,
    # JAX would make once, for all tiles and heads, and keep.
    (segment_ids, kv_segment_ids, traced), hidden, q = jax.lax.optimization_barrier(
        (masks, jnp.float32(-jnp.inf), q)
    )
    offset = tiling.q_offset if traced is None else traced
    if segment_ids is not None:
        segment_ids, kv_segment_ids = (
            _cut(segment_ids, tiling.queries),
            _cut(kv_segment_ids, tiling.keys),
        )

    def logits(i, j):
        x = tiling.scale * _product("BKRH,BKHS->BKRS", _at(q, i), _at(k, j))
        queries = i * tiling.queries + jnp.arange(tiling.queries)
        keys = j * tiling.keys + jnp.arange(tiling.keys)
        ids = (None, None) if segment_ids is None else (_at(segment_ids, i), _at(kv_segment_ids, j))
        mask = _visible(queries, keys, tiling.causal, *ids, offset)
        if S % tiling.keys:
            exists = (keys < S)[None, None]
            mask = exists if mask is None else jnp.logical_and(mask, exists)
        if mask is None:
            return x
        heads = x.reshape(*x.shape[:2], G, -1, x.shape[-1])
        return jnp.where(mask[:, None, None], heads, hidden).reshape(x.shape)

    return logits


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(q, k, v, masks, tiling):
    """masks = (segment_ids, kv_segment_ids, traced offset), each of which may be None."""
    return _forward(q, k, v, masks, tiling)[0]


def _forward(q, k, v, masks, tiling):
    """The output, and for the gradient the log-partition of each query's softmax."""
    T, N, S, K = *q.shape[1:3], *k.shape[1:3]
    queries, keys, values = (
        _cut_queries(q, K, tiling.queries),
        *(_cut_keys(x, tiling.keys) for x in (k, v)),
    )
    logits = _make_logits(queries, keys, masks, tiling, T, S, N // K)

    def visit(carry, tile):
        peaks, totals, outs = carry
        i, j = tile
        x = logits(i, j)
        before = _at(peaks, i)
        peak = jnp.maximum(before, jnp.max(x, axis=-1))
        weights, shrink = jnp.exp(x - peak[..., None]), jnp.exp(before - peak)
        out = _product("BKRS,BKHS->BKRH", weights.astype(v.dtype), _at(values, j))
        total = _at(totals, i) * shrink + jnp.sum(weights, axis=-1)
        out += _at(outs, i) * shrink[..., None]
        return (_set(peaks, i, peak), _set(totals, i, total), _set(outs, i, out)), None

    outs = jnp.zeros_like(queries, jnp.float32)
    totals = outs[..., 0]
    # The least finite number: a query that sees nothing has weights exp(-inf) and never a NaN.
    peaks = jnp.full_like(totals, jnp.finfo(jnp.float32).min)
    (peaks, totals, outs), _ = jax.lax.scan(visit, (peaks, totals, outs), _tiles(T, S, tiling))
    # It has the sum 0 and gives 0, its gradient too.
    totals = jnp.maximum(totals, jnp.finfo(jnp.float32).tiny)
    # Named, so that a remat policy can keep them: the backward pass reads nothing else of this.
    out = checkpoint_name(_join_queries((outs / totals[..., None]).astype(q.dtype), T, N), "out")
    partitions = checkpoint_name(peaks + jnp.log(totals), "lse")
    return out, (q, k, v, masks, out, partitions)


def _backward(tiling, residuals, d_out):
    """Tile by tile from recomputed weights."""
    q, k, v, masks, out, partitions = residuals
    T, N, S, K = *q.shape[1:3], *k.shape[1:3]
    f32 = jnp.float32
    queries, d_outs = (_cut_queries(x, K, tiling.queries) for x in (q, d_out))
    keys, values = (_cut_keys(x, tiling.keys) for x in (k, v))
    logits = _make_logits(queries, keys, masks, tiling, T, S, N // K)
    deltas = jnp.sum(d_out.astype(f32) * out.astype(f32), axis=-1, keepdims=True)
    deltas = _cut_queries(deltas, K, tiling.queries)
    # The barrier keeps XLA from undoing the transposition: its fast products need it.
    queries_t, d_outs_t = jax.lax.optimization_barrier(
        (queries.swapaxes(-1, -2), d_outs.swapaxes(-1, -2))
    )

    def visit(carry, tile):
        d_q, d_k, d_v = carry
        i, j = tile
        # Rounded before its second use too: one array is kept for both.
        weights = jnp.exp(logits(i, j) - _at(partitions, i)[..., None]).astype(q.dtype)
        d_weights = _product("BKRH,BKHS->BKRS", _at(d_outs, i), _at(values, j))
        d_logits = (weights * (d_weights - _at(deltas, i)) * tiling.scale).astype(q.dtype)
        into_q = _product("BKRS,BKHS->BKRH", d_logits, _at(keys, j))
        into_k = _product("BKHR,BKRS->BKHS", _at(queries_t, i), d_logits)
        into_v = _product("BKHR,BKRS->BKHS", _at(d_outs_t, i), weights)
        d_q = _set(d_q, i, _at(d_q, i) + into_q)
        d_k = _set(d_k, j, _at(d_k, j) + into_k)
        d_v = _set(d_v, j, _at(d_v, j) + into_v)
        return (d_q, d_k, d_v), None

    start = tuple(jnp.zeros_like(x, f32) for x in (queries, keys, values))
    (d_q, d_k, d_v), _ = jax.lax.scan(visit, start, _tiles(T, S, tiling))
    d_q = _join_queries(d_q.astype(q.dtype), T, N)
    return d_q, _join_keys(d_k.astype(k.dtype), S), _join_keys(d_v.astype(v.dtype), S), None


_attend.defvjp(_forward, _backward)
