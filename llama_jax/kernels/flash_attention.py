"""Forward flash attention for TPU: one query block against the keys that it may see.

Scores are kept transposed, S^T = K Q^T of shape [block_kv, block_q]. The running maximum and sum
of a query are then row vectors: they reduce over sublanes, broadcast over sublanes, and never touch
the cross-lane unit. O^T = V^T P^T takes P^T as the stationary operand, so that the matrix unit
works at its full width whatever H is.

The loop over key tiles is software-pipelined: while tile j goes through the softmax and the second
product, the scores of tile j+1 are computed in its place. See README.md for derivation and figures.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

# The maximum of a query that has seen nothing yet; finite, so that exp2(-inf - FLOOR) is 0.
FLOOR = -1e30
# lhs [M,H] rhs [N,H] -> [M,N], and the plain product [M,K] [K,N] -> [M,N].
NT = (((1,), (1,)), ((), ()))
NN = (((1,), (0,)), ((), ()))


def precision(dtype) -> jax.lax.Precision:
    """float32 operands are multiplied in full; the matrix unit's own pass suits bfloat16."""
    full = dtype == jnp.float32
    return jax.lax.Precision.HIGHEST if full else jax.lax.Precision.DEFAULT


def visible(first_key, lo, hi, shape):
    """Which keys of a [keys, queries] tile each query sees: bool `shape`; `lo` may be None."""
    key = first_key + jax.lax.broadcasted_iota(jnp.int32, shape, 0)
    seen = key < hi
    return seen if lo is None else jnp.logical_and(seen, key >= lo)


def forward_kernel(
    # Scalars, in SMEM.
    bounds_ref,  # [B * query blocks * 4]: first, full_first, full_last, last key tile
    # Inputs; "next" belongs to the query block after this one.
    q_ref,  # [block_q, H]
    q_next_ref,  # [block_q, H]
    k_ref,  # [chunk, H]
    v_ref,  # [chunk, H]
    lo_ref,  # [1, block_q] first key that each query sees, or None
    lo_next_ref,  # [1, block_q] or None
    hi_ref,  # [1, block_q] one past the last key, or None
    hi_next_ref,  # [1, block_q] or None
    # Outputs.
    o_ref,  # [block_q, H]
    lse_ref,  # [1, block_q] base-2 log-sum-exp
    # Scratch.
    scaled_ref,  # [block_q, H] scale * q of the tile in flight
    s_ref,  # [block_kv, block_q] scores of the tile in flight
    top_ref,  # [1, block_q] their maximum
    m_ref,  # [1, block_q] running maximum
    l_ref,  # [1, block_q] running sum
    acc_ref,  # [H, block_q] unnormalised output, transposed
    *,
    block_kv: int,
    sub: int,
    scale: float,
    diagonal: bool,
    chunks: int,
):
    """One step of the grid (B, N, query blocks, key chunks). Tiles hold `block_kv` keys each.

    With one chunk the pipeline runs on across query blocks: a step finds the first tile of its
    block scored, and ends by scoring the first tile of the next block.
    """
    block_q = q_ref.shape[0]
    i, blocks, chunk = pl.program_id(2), pl.num_programs(2), pl.program_id(3)
    tiles = k_ref.shape[0] // block_kv
    begin = chunk * tiles
    row = 4 * (pl.program_id(0) * blocks + i)
    first, last = bounds_ref[row], bounds_ref[row + 3]
    dot = functools.partial(
        jax.lax.dot_general,
        preferred_element_type=jnp.float32,
        precision=precision(q_ref.dtype),
    )
    # Without segments everything before the triangle is wholly seen.
    ragged = lo_ref is not None or (hi_ref is not None and not diagonal)
    here = (q_ref, lo_ref, hi_ref)

    def keys_of(column, triangle):
        return column + sub if triangle else block_kv

    def rows_of(tile, keys):
        return pl.ds(pl.multiple_of((tile - begin) * block_kv, block_kv), keys)

    def score(tile, column, limits, masked, triangle):
        """The scores of one column of queries, in base 2."""
        queries = scaled_ref[pl.ds(column, sub), :]
        s = dot(k_ref[rows_of(tile, keys_of(column, triangle)), :], queries, NT)
        lo, hi = (None if ref is None else ref[:, pl.ds(column, sub)] for ref in limits)
        if triangle and lo is None:
            # Only the square on the diagonal is partly seen.
            seen = visible(tile * block_kv + column, None, hi, (sub, sub))
            square = jnp.where(seen, s[column:], -jnp.inf)
            return jnp.concatenate([s[:column], square]) if column else square
        if masked:
            return jnp.where(visible(tile * block_kv, lo, hi, s.shape), s, -jnp.inf)
        return s

    def accumulate(tile, column, triangle):
        """Softmax and second product of the tile whose scores are kept."""
        columns = pl.ds(column, sub)
        keys = keys_of(column, triangle)
        m_old = m_ref[:, columns]
        m = jnp.maximum(m_old, top_ref[:, columns])
        p = jnp.exp2(s_ref[:keys, columns] - m)
        shrink = jnp.exp2(m_old - m)
        m_ref[:, columns] = m
        l_ref[:, columns] = shrink * l_ref[:, columns] + jnp.sum(p, axis=0, keepdims=True)
        v = v_ref[rows_of(tile, keys), :]
        acc_ref[:, columns] = shrink * acc_ref[:, columns] + dot(v.T, p.astype(v.dtype), NN)

    def load(columns, ref):
        scaled = ref[columns, :].astype(jnp.float32) * scale
        scaled_ref[columns, :] = scaled.astype(scaled_ref.dtype)

    def reset(columns):
        for ref, value in (m_ref, FLOOR), (l_ref, 0.0), (acc_ref, 0.0):
            ref[:, columns] = jnp.full((ref.shape[0], columns.size), value, jnp.float32)

    def leave(columns):
        """The output of a column of a query block."""
        total = l_ref[:, columns]
        # A query that saw nothing has the sum 0 and gives 0.
        safe = jnp.where(total > 0, total, 1.0)
        o_ref[columns, :] = (acc_ref[:, columns] / safe).T.astype(o_ref.dtype)
        lse_ref[:, columns] = m_ref[:, columns] + jnp.log2(safe)

    def advance(
        old, new, refs=here, *, masked=False, triangle=False, old_triangle=False, turn=False
    ):
        """Accumulate tile `old` while tile `new` is scored in its place; None leaves one out.

        With `turn`, `old` ends a query block and `new` begins another, which `refs` belong to.
        """
        order = range(0, block_q, sub)
        for column in reversed(order) if triangle else order:
            columns = pl.ds(column, sub)
            if new is not None and turn:
                load(columns, refs[0])
            s = score(new, column, refs[1:], masked, triangle) if new is not None else None
            if old is not None:
                accumulate(old, column, old_triangle)
                if turn:
                    leave(columns)
            if s is not None:
                if turn:
                    reset(columns)
                s_ref[: keys_of(column, triangle), columns] = s
                top_ref[:, columns] = jnp.max(s, axis=0, keepdims=True)

    def turn(old, new, end, refs):
        """From the last tile of one query block to the first of another, which ends at `end`."""
        step = functools.partial(advance, old, new, refs, old_triangle=diagonal, turn=True)
        # Without segments only the first block of all can consist of its triangle alone.
        if diagonal and (ragged or old is None):
            pl.when(new == end - 1)(functools.partial(step, masked=True, triangle=True))
            pl.when(new < end - 1)(functools.partial(step, masked=ragged))
        else:
            step(masked=ragged)

    if chunks == 1:
        pl.when(i == 0)(lambda: turn(None, first, last, here))
    else:

        @pl.when(chunk == 0)
        def _():
            load(pl.ds(0, block_q), q_ref)
            reset(pl.ds(0, block_q))

        first, last = jnp.maximum(first, begin), jnp.minimum(last, begin + tiles)
        pl.when(first < last)(lambda: advance(None, first, masked=ragged))

    # Tiles first+1 .. stop-1 in three runs: partly seen, wholly seen, partly seen.
    stop = last - 1 if diagonal else last
    head, body = first + 1, stop
    if ragged:
        head = jnp.clip(bounds_ref[row + 1], first + 1, jnp.maximum(stop, first + 1))
        body = jnp.clip(bounds_ref[row + 2], head, jnp.maximum(stop, head))
    if lo_ref is not None:
        pl.loop(first + 1, head)(lambda tile: advance(tile - 1, tile, masked=True))
    pl.loop(head, body)(lambda tile: advance(tile - 1, tile))
    if ragged:
        pl.loop(body, stop)(lambda tile: advance(tile - 1, tile, masked=True))

    if chunks > 1:
        pl.when(first < last)(lambda: advance(last - 1, None))
        pl.when(chunk == chunks - 1)(lambda: leave(pl.ds(0, block_q)))
        return

    if diagonal:

        @pl.when(first < stop)
        def _():
            advance(last - 2, last - 1, masked=True, triangle=True)

    @pl.when(i + 1 < blocks)
    def _():
        refs = (q_next_ref, lo_next_ref, hi_next_ref)
        turn(last - 1, bounds_ref[row + 4], bounds_ref[row + 7], refs)

    @pl.when(i + 1 == blocks)
    def _():
        advance(last - 1, None, old_triangle=diagonal, turn=True)


def forward(
    q: Float[Array, "B N T H"],
    k: Float[Array, "B K S H"],
    v: Float[Array, "B K S H"],
    lo: Int[Array, "B 1 T"] | None,
    hi: Int[Array, "B 1 T"] | None,
    bounds: Int[Array, " bounds"],
    *,
    scale: float,
    block_q: int,
    block_kv: int,
    chunk: int,
    buffers: int,
    sub: int,
    diagonal: bool,
    vmem_limit: int | None,
    interpret: bool,
) -> tuple[Float[Array, "B N T H"], Float[Array, "B N 1 T"]]:
    """Attention and its base-2 log-sum-exp; T and S are whole numbers of blocks and chunks.

    Args:
      lo, hi: each query sees the keys lo <= s < hi; without `lo` it is 0.
      bounds: for each row and query block the first, full_first, full_last and last key tile: tiles
        outside [first, last) are skipped, those in [full_first, full_last) need no mask.
      scale: of the logits, log2(e) included.
      buffers: of K and V in VMEM.
      diagonal: the last tile of every query block is the causal triangle, block_q == block_kv.
    """
    B, N, T, H = q.shape
    K, S = k.shape[1:3]
    blocks, tiles, chunks = T // block_q, chunk // block_kv, S // chunk

    def keys(b, n, i, c, bounds_ref):
        if chunks > 1:
            # Chunks that nothing in this query block sees name the nearest one that is seen:
            # Pallas copies a block only when its index changes.
            row = 4 * (b * blocks + i)
            first = bounds_ref[row] // tiles
            last = jnp.maximum(bounds_ref[row + 3] - 1, 0) // tiles
            c = jnp.clip(c, jnp.minimum(first, last), last)
        return b, n // (N // K), c, 0

    def here(i):
        return i

    def after(i):
        return jnp.minimum(i + 1, blocks - 1)

    def queries(which):
        return pl.BlockSpec((None, None, block_q, H), lambda b, n, i, c, _: (b, n, which(i), 0))

    def limits(array, which):
        spec = pl.BlockSpec((None, 1, block_q), lambda b, n, i, c, _: (b, 0, which(i)))
        return None if array is None else spec

    kv_spec = pl.BlockSpec(
        (None, None, chunk, H), keys, pipeline_mode=pl.Buffered(buffer_count=buffers)
    )
    kernel = functools.partial(
        forward_kernel, block_kv=block_kv, sub=sub, scale=scale, diagonal=diagonal, chunks=chunks
    )
    row = pltpu.VMEM((1, block_q), jnp.float32)
    return pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(B, N, blocks, chunks),
            in_specs=[
                queries(here),
                queries(after),
                kv_spec,
                kv_spec,
                limits(lo, here),
                limits(lo, after),
                limits(hi, here),
                limits(hi, after),
            ],
            out_specs=[
                queries(here),
                pl.BlockSpec((None, None, 1, block_q), lambda b, n, i, c, _: (b, n, 0, i)),
            ],
            scratch_shapes=[
                pltpu.VMEM((block_q, H), q.dtype),
                pltpu.VMEM((block_kv, block_q), jnp.float32),
                row,
                row,
                row,
                pltpu.VMEM((H, block_q), jnp.float32),
            ],
        ),
        out_shape=[
            jax.ShapeDtypeStruct(q.shape, q.dtype),
            jax.ShapeDtypeStruct((B, N, 1, T), jnp.float32),
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary", "arbitrary"),
            vmem_limit_bytes=vmem_limit,
        ),
        name="flash_attention",
        interpret=interpret,
    )(bounds, q, q, k, v, lo, lo, hi, hi)
