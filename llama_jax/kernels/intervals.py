"""The keys that each query may see, as one interval, and the tiles that this leaves to visit.

Causality, an offset of the queries, packed documents and padding all reduce to lo <= key < hi. The
kernels know nothing else, so they mask with two comparisons and skip with four integers a block.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int


def run_starts(segment_ids: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """Index of the first token of the run of equal ids that each token lies in."""
    T = segment_ids.shape[1]
    position = jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32), segment_ids.shape)
    new = jnp.concatenate(
        [jnp.ones_like(segment_ids[:, :1], bool), segment_ids[:, 1:] != segment_ids[:, :-1]], 1
    )
    return jax.lax.cummax(jnp.where(new, position, 0), axis=1)


def run_ends(segment_ids: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """One past the last token of the run of equal ids that each token lies in."""
    return segment_ids.shape[1] - run_starts(segment_ids[:, ::-1])[:, ::-1]


def intervals(
    B: int,
    T: int,
    S: int,
    *,
    causal: bool,
    segment_ids: Int[Array, "B T"] | None,
    kv_segment_ids: Int[Array, "B S"] | None,
    q_offset: int | Int[Array, ""] | Int[Array, " B"],
) -> tuple[Int[Array, "B T"] | None, Int[Array, "B T"] | None]:
    """(lo, hi): query t of row b sees the keys lo[b,t] <= s < hi[b,t]; None means 0 and S.

    Equal segment ids must form one run in a row. Where nothing is seen hi <= lo.
    """
    lo = hi = None
    if segment_ids is not None and kv_segment_ids is None:
        lo, hi = run_starts(segment_ids), run_ends(segment_ids)
    elif segment_ids is not None and kv_segment_ids is not None:
        same = segment_ids[:, :, None] == kv_segment_ids[:, None, :]
        key = jnp.arange(S, dtype=jnp.int32)[None, None, :]
        lo = jnp.min(jnp.where(same, key, S), axis=2)
        hi = jnp.max(jnp.where(same, key + 1, 0), axis=2)
    if causal:
        offset = jnp.broadcast_to(jnp.asarray(q_offset, jnp.int32).reshape(-1, 1), (B, 1))
        end = jnp.clip(offset + jnp.arange(1, T + 1, dtype=jnp.int32)[None, :], 0, S)
        hi = end if hi is None else jnp.minimum(hi, end)
    return lo, hi


def pad_queries(limit: Int[Array, "B T"] | None, T: int) -> Int[Array, "B 1 padded"] | None:
    """Pads rows with copies of the last query's interval, so that no tile becomes ragged."""
    if limit is None:
        return None
    return jnp.pad(limit, ((0, 0), (0, T - limit.shape[1])), mode="edge")[:, None, :]


def tile_bounds(
    lo: Int[Array, "B 1 T"] | None,
    hi: Int[Array, "B 1 T"] | None,
    *,
    B: int,
    T: int,
    S: int,
    block_q: int,
    block_kv: int,
) -> Int[Array, " bounds"]:
    """First, full_first, full_last and last key tile of every row and query block, flattened.

    The kernel visits [first, last) and masks outside [full_first, full_last). At least one tile is
    visited, also by a block that sees nothing, so that its output is written.
    """
    blocks, tiles = T // block_q, S // block_kv
    low = jnp.zeros((B, 1, T), jnp.int32) if lo is None else lo
    high = jnp.full((B, 1, T), S, jnp.int32) if hi is None else hi
    low, high = (jnp.broadcast_to(x[:, 0], (B, T)).reshape(B, blocks, block_q) for x in (low, high))
    some = high > low
    first = jnp.min(jnp.where(some, low, S), axis=2) // block_kv
    last = -(-jnp.max(jnp.where(some, high, 0), axis=2) // block_kv)
    first = jnp.clip(first, 0, tiles - 1)
    last = jnp.clip(last, first + 1, tiles)
    full_first = -(-jnp.max(low, axis=2) // block_kv)
    full_last = jnp.min(jnp.where(some, high, 0), axis=2) // block_kv
    return jnp.stack([first, full_first, full_last, last], axis=2).astype(jnp.int32).reshape(-1)
