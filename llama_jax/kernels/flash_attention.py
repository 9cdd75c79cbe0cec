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
    """Multiply float32 operands in full; the matrix unit's own single pass suits bfloat16."""
    full = dtype == jnp.float32
    return jax.lax.Precision.HIGHEST if full else jax.lax.Precision.DEFAULT


def visible(first_key, lo, hi, shape):
    """Mask of the keys of a [keys, queries] tile that each query sees: bool `shape`; `lo` may be
    None."""
    key = first_key + jax.lax.broadcasted_iota(jnp.int32, shape, 0)
    seen = key < hi
    return seen if lo is None else jnp.logical_and(seen, key >= lo)


def forward_kernel(
    # Scalars, in SMEM.
    bounds_ref,  # [B * query blocks * 4]: first, full_first, full_last, last key tile
    # Inputs.
    q_ref,  # [span, H]
    k_ref,  # [chunk, H]
    v_ref,  # [chunk, H]
    lo_ref,  # [1, span] first key that each query sees, or None
    hi_ref,  # [1, span] one past the last key, or None
    # Outputs.
    o_ref,  # [span, H]
    lse_ref,  # [1, span] base-2 log-sum-exp
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
    """One step of the grid (B, N, spans of query blocks, key chunks).

    Tiles hold `block_kv` keys each. With one chunk the pipeline runs on from query block to query
    block: each finds its first tile scored, and ends by scoring the first tile of the next. With
    several chunks a span is one block, whose state stays in scratch from chunk to chunk.
    """
    block_q, blocks = scaled_ref.shape[0], q_ref.shape[0] // scaled_ref.shape[0]
    chunk, tiles = pl.program_id(3), k_ref.shape[0] // block_kv
    begin = chunk * tiles
    rows = 4 * blocks * (pl.program_id(0) * pl.num_programs(2) + pl.program_id(2))
    dot = functools.partial(
        jax.lax.dot_general,
        preferred_element_type=jnp.float32,
        precision=precision(q_ref.dtype),
    )
    # Without segments everything before the triangle is wholly seen.
    ragged = lo_ref is not None or (hi_ref is not None and not diagonal)

    def keys_of(column, triangle):
        return column + sub if triangle else block_kv

    def rows_of(tile, keys):
        return pl.ds(pl.multiple_of((tile - begin) * block_kv, block_kv), keys)

    def queries_of(block, column):
        """A column of a query block, in what holds the whole span."""
        return pl.ds(pl.multiple_of(block * block_q + column, sub), sub)

    def score(tile, block, column, masked, triangle):
        """The scores of one column of queries, in base 2."""
        queries = scaled_ref[pl.ds(column, sub), :]
        s = dot(k_ref[rows_of(tile, keys_of(column, triangle)), :], queries, NT)
        if not masked:
            return s
        columns = queries_of(block, column)
        lo, hi = (None if ref is None else ref[:, columns] for ref in (lo_ref, hi_ref))
        if triangle and lo is None:
            # Only the square on the diagonal is partly seen.
            seen = visible(tile * block_kv + column, None, hi, (sub, sub))
            square = jnp.where(seen, s[column:], -jnp.inf)
            return jnp.concatenate([s[:column], square]) if column else square
        return jnp.where(visible(tile * block_kv, lo, hi, s.shape), s, -jnp.inf)

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

    def load(block, column):
        scaled = q_ref[queries_of(block, column), :].astype(jnp.float32) * scale
        scaled_ref[pl.ds(column, sub), :] = scaled.astype(scaled_ref.dtype)

    def reset(column):
        for ref, value in (m_ref, FLOOR), (l_ref, 0.0), (acc_ref, 0.0):
            ref[:, pl.ds(column, sub)] = jnp.full((ref.shape[0], sub), value, jnp.float32)

    def leave(block, column):
        """The output of a column of a query block."""
        columns, total = pl.ds(column, sub), l_ref[:, pl.ds(column, sub)]
        # A query that saw nothing has the sum 0 and gives 0.
        safe = jnp.where(total > 0, total, 1.0)
        out = (acc_ref[:, columns] / safe).T
        o_ref[queries_of(block, column), :] = out.astype(o_ref.dtype)
        lse_ref[:, queries_of(block, column)] = m_ref[:, columns] + jnp.log2(safe)

    order = range(0, block_q, sub)

    def advance(block, old, new, *, masked=False, triangle=False, old_triangle=False, turn=False):
        """Accumulate tile `old` while tile `new` is scored in its place; None leaves one out.

        With `turn`, `old` ends the query block and `new` begins the one after it.
        """
        for column in reversed(order) if triangle else order:
            columns = pl.ds(column, sub)
            if new is not None and turn:
                load(block + 1, column)
            s = score(new, block + turn, column, masked, triangle) if new is not None else None
            if old is not None:
                accumulate(old, column, old_triangle)
                if turn:
                    leave(block, column)
            if s is not None:
                if turn:
                    reset(column)
                s_ref[: keys_of(column, triangle), columns] = s
                top_ref[:, columns] = jnp.max(s, axis=0, keepdims=True)

    def turn(block, old):
        """From the last tile of a query block to the first of the one after it."""
        new, end = bounds_ref[rows + 4 * block + 4], bounds_ref[rows + 4 * block + 7]
        step = functools.partial(advance, block, old, new, old_triangle=diagonal, turn=True)
        # Without segments only the first block of all can consist of its triangle alone.
        if diagonal and (ragged or old is None):
            pl.when(new == end - 1)(functools.partial(step, masked=True, triangle=True))
            pl.when(new < end - 1)(functools.partial(step, masked=ragged))
        else:
            step(masked=ragged)

    def visit(block):
        """All tiles of a query block but the first, which is scored."""
        row = rows + 4 * block
        first, last = bounds_ref[row], bounds_ref[row + 3]
        if chunks > 1:
            first, last = jnp.maximum(first, begin), jnp.minimum(last, begin + tiles)
            pl.when(first < last)(lambda: advance(block, None, first, masked=ragged))
        # Tiles first+1 .. stop-1 in three runs: partly seen, wholly seen, partly seen.
        stop = last - 1 if diagonal else last
        head, body = first + 1, stop
        if ragged:
            head = jnp.clip(bounds_ref[row + 1], first + 1, jnp.maximum(stop, first + 1))
            body = jnp.clip(bounds_ref[row + 2], head, jnp.maximum(stop, head))
        follow = functools.partial(advance, block)
        if lo_ref is not None:
            pl.loop(first + 1, head)(lambda tile: follow(tile - 1, tile, masked=True))
        pl.loop(head, body)(lambda tile: follow(tile - 1, tile))
        if ragged:
            pl.loop(body, stop)(lambda tile: follow(tile - 1, tile, masked=True))
        if chunks > 1:
            pl.when(first < last)(lambda: follow(last - 1, None))
            return
        if diagonal:
            pl.when(first < stop)(lambda: follow(last - 2, last - 1, masked=True, triangle=True))
        pl.when(block + 1 < blocks)(lambda: turn(block, last - 1))

        @pl.when(block + 1 == blocks)
        def _():
            follow(last - 1, None, old_triangle=diagonal, turn=True)

    if chunks == 1:
        turn(-1, None)
        pl.loop(0, blocks)(visit)
        return

    @pl.when(chunk == 0)
    def _():
        for column in order:
            load(0, column)
            reset(column)

    visit(0)

    @pl.when(chunk == chunks - 1)
    def _():
        for column in order:
            leave(0, column)


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
    span: int,
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
      span: queries of a step of the grid, whole blocks that divide T; one block if S > chunk.
      diagonal: the last tile of every query block is the causal triangle, block_q == block_kv.
    """
    B, N, T, H = q.shape
    K, S = k.shape[1:3]
    spans, blocks, tiles, chunks = T // span, T // block_q, chunk // block_kv, S // chunk

    def keys(b, n, i, c, bounds_ref):
        if chunks > 1:
            # Chunks that nothing in this query block sees name the nearest one that is seen:
            # Pallas copies a block only when its index changes.
            row = 4 * (b * blocks + i)
            first = bounds_ref[row] // tiles
            last = jnp.maximum(bounds_ref[row + 3] - 1, 0) // tiles
            c = jnp.clip(c, jnp.minimum(first, last), last)
        return b, n // (N // K), c, 0

    queries = pl.BlockSpec((None, None, span, H), lambda b, n, i, c, _: (b, n, i, 0))
    limits = pl.BlockSpec((None, 1, span), lambda b, n, i, c, _: (b, 0, i))
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
            grid=(B, N, spans, chunks),
            in_specs=[
                queries,
                kv_spec,
                kv_spec,
                None if lo is None else limits,
                None if hi is None else limits,
            ],
            out_specs=[
                queries,
                pl.BlockSpec((None, None, 1, span), lambda b, n, i, c, _: (b, n, 0, i)),
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
    )(bounds, q, k, v, lo, hi)
