"""Attention in plain XLA operations, blockwise, with a gradient of its own; for any backend."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

# Queries are taken in blocks against the keys that they may see, so that causal attention costs
# little more than half of a full one and no [T,S] matrix of all heads exists at once.
QUERY_BLOCK = 128


def attend(q, k, v, causal, segment_ids, kv_segment_ids, q_offset, scale):
    """Heads before positions, so that every product is a plain batched one; then the blocks."""
    B, T, N, H = q.shape
    K = k.shape[2]
    static, traced = (q_offset, None) if isinstance(q_offset, int) else (None, q_offset)
    masks = (segment_ids, kv_segment_ids, traced)
    q = q.reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4)
    k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
    out = _attend(q, k, v, masks, causal, static, scale)
    return out.transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)


def _blocks(T, S, causal, q_offset):
    """(start, stop, seen) of each block: its queries, and the length of the key prefix they see."""
    if not causal or q_offset is None or T <= QUERY_BLOCK:
        return [(0, T, S)]
    starts = range(0, T, QUERY_BLOCK)
    stops = [min(start + QUERY_BLOCK, T) for start in starts]
    return [(a, b, max(0, min(q_offset + b, S))) for a, b in zip(starts, stops, strict=True)]


def visible(block, causal, segment_ids, kv_segment_ids, q_offset):
    """What the queries of a block may see of their prefix of keys: bool [B or 1, T, S], or None."""
    start, stop, seen = block
    mask = None
    if causal:
        offset = jnp.reshape(jnp.asarray(q_offset), (-1, 1, 1))
        queries = offset + jnp.arange(start, stop)[None, :, None]
        mask = queries >= jnp.arange(seen)[None, None, :]
    if segment_ids is not None:
        same = segment_ids[:, start:stop, None] == kv_segment_ids[:, None, :seen]
        mask = same if mask is None else jnp.logical_and(mask, same)
    return mask


@partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _attend(q, k, v, masks, causal, q_offset, scale):
    """q [B,K,G,T,H], k and v [B,K,S,H], masks = (segment_ids, kv_segment_ids, traced offset)."""
    return _attend_forward(q, k, v, masks, causal, q_offset, scale)[0]


def _attend_forward(q, k, v, masks, causal, q_offset, scale):
    """The output, and for the gradient the log-partition [B,K,G,T] of each query's softmax."""
    outs, partitions = [], []
    for block in _blocks(q.shape[3], k.shape[2], causal, q_offset):
        start, stop, seen = block
        logits = scale * jnp.einsum(
            "BKGTH,BKSH->BKGTS",
            q[:, :, :, start:stop],
            k[:, :, :seen],
            preferred_element_type=jnp.float32,
        )
        mask = _blockvisible(block, causal, q_offset, masks)
        if mask is not None:
            logits = jnp.where(mask[:, None, None], logits, -jnp.inf)
        peak = jnp.max(logits, axis=-1, keepdims=True, initial=jnp.finfo(jnp.float32).min)
        weights = jnp.exp(logits - peak)
        # A query that sees nothing has weights 0, sum 0 and gives 0, its gradient too.
        total = jnp.maximum(jnp.sum(weights, axis=-1, keepdims=True), jnp.finfo(jnp.float32).tiny)
        out = jnp.einsum(
            "BKGTS,BKSH->BKGTH",
            weights.astype(v.dtype),
            v[:, :, :seen],
            preferred_element_type=jnp.float32,
        )
        outs.append((out / total).astype(q.dtype))
        partitions.append((peak + jnp.log(total))[..., 0])
    # Named, so that a remat policy can keep them: the backward pass reads nothing else of this.
    out = checkpoint_name(jnp.concatenate(outs, axis=3), "out")
    partition = checkpoint_name(jnp.concatenate(partitions, axis=3), "lse")
    return out, (q, k, v, masks, out, partition)


def _attend_backward(causal, q_offset, scale, residuals, d_out):
    """Block by block from recomputed weights (Dao et al. 2022, algorithm 4), keys before queries.

    With the weights as [S,T] the products that make dK and dV read them as they lie in memory, and
    dQ is made transposed for the same reason: no [S,T] array is ever transposed.
    """
    q, k, v, masks, out, partition = residuals
    f32 = jnp.float32
    delta = jnp.sum(d_out.astype(f32) * out.astype(f32), axis=-1)
    # The barrier keeps XLA from undoing the transposition: its fast products need it.
    k_transposed = jax.lax.optimization_barrier(k.transpose(0, 1, 3, 2))
    d_q, d_k, d_v = [], jnp.zeros(k.shape, f32), jnp.zeros(v.shape, f32)
    for block in _blocks(q.shape[3], k.shape[2], causal, q_offset):
        start, stop, seen = block
        q_block, d_block = q[:, :, :, start:stop], d_out[:, :, :, start:stop]
        k_seen, v_seen = k[:, :, :seen], v[:, :, :seen]
        logits = scale * jnp.einsum(
            "BKSH,BKGTH->BKSGT", k_seen, q_block, preferred_element_type=f32
        )
        mask = _blockvisible(block, causal, q_offset, masks)
        if mask is not None:
            logits = jnp.where(mask.swapaxes(1, 2)[:, None, :, None], logits, -jnp.inf)
        # Rounded before its second use too: one array is kept for both.
        weights = jnp.exp(logits - partition[:, :, None, :, start:stop]).astype(q.dtype)
        d_weights = jnp.einsum("BKSH,BKGTH->BKSGT", v_seen, d_block, preferred_element_type=f32)
        d_logits = weights * (d_weights - delta[:, :, None, :, start:stop]) * scale
        d_logits = d_logits.astype(q.dtype)
        unseen = ((0, 0), (0, 0), (0, k.shape[2] - seen), (0, 0))
        into_v = jnp.einsum("BKSGT,BKGTH->BKSH", weights, d_block, preferred_element_type=f32)
        into_k = jnp.einsum("BKSGT,BKGTH->BKSH", d_logits, q_block, preferred_element_type=f32)
        d_v, d_k = d_v + jnp.pad(into_v, unseen), d_k + jnp.pad(into_k, unseen)
        d_q.append(jnp.einsum("BKHS,BKSGT->BKHGT", k_transposed[..., :seen], d_logits))
    d_q = jnp.concatenate(d_q, axis=-1).transpose(0, 1, 3, 4, 2)
    return d_q, d_k.astype(k.dtype), d_v.astype(v.dtype), None


_attend.defvjp(_attend_forward, _attend_backward)


def _blockvisible(block, causal, q_offset, masks):
    segment_ids, kv_segment_ids, traced = masks
    offset = traced if q_offset is None else q_offset
    return visible(block, causal, segment_ids, kv_segment_ids, offset)
