"""Backward flash attention for TPU: dq, dk and dv in one pass over the visible tiles.

Five products a tile, all on transposed scores [keys, queries]:

    S^T = K Q^T     dP^T = V dO^T     dV^T += dO^T P     dK^T += Q^T dS     dQ^T += K^T dS^T

with P^T = exp2(S^T - lse) and dS^T = P^T * (dP^T - delta), delta the row sums of dO * O. lse and
delta are row vectors, so nothing is reduced. In the last three P and dS are the stationary operand
and the H rows of a transposed tensor stream past them: the matrix unit works at full width.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from llama_jax.kernels.block_sizes import LANES
from llama_jax.kernels.flash_attention import NN, NT, precision, visible

LN2 = 0.6931471805599453


def backward_kernel(
    # Scalars, in SMEM.
    bounds_ref,  # [B * query blocks * 4]: first, full_first, full_last, last key tile
    # Inputs.
    q_ref,  # [span, H]
    do_ref,  # [span, H]
    lse_ref,  # [1, span] base-2 log-sum-exp
    delta_ref,  # [1, span]
    k_ref,  # [chunk, H]
    v_ref,  # [chunk, H]
    lo_ref,  # [1, span] first key that each query sees, or None
    hi_ref,  # [1, span] one past the last key, or None
    # Outputs.
    dq_ref,  # [span, H]
    dk_ref,  # [chunk, H]
    dv_ref,  # [chunk, H]
    # Scratch, of one query block.
    scaled_ref,  # [block_q, H] scale * q
    scaled_t_ref,  # [H, block_q]
    do_t_ref,  # [H, block_q]
    dq_acc,  # [H, block_q]
    # Scratch, of all of them.
    dk_acc,  # [H, chunk]
    dv_acc,  # [H, chunk]
    *,
    block_kv: int,
    sub: int,
    sub_kv: int,
    scale: float,
    diagonal: bool,
):
    """One step of the grid (B, K, key chunks, G, spans of query blocks)."""
    block_q, blocks = scaled_ref.shape[0], q_ref.shape[0] // scaled_ref.shape[0]
    chunk, member, span = pl.program_id(2), pl.program_id(3), pl.program_id(4)
    members, spans = pl.num_programs(3), pl.num_programs(4)
    tiles = k_ref.shape[0] // block_kv
    begin = chunk * tiles
    rows = 4 * blocks * (pl.program_id(0) * spans + span)
    dot = functools.partial(
        jax.lax.dot_general,
        preferred_element_type=jnp.float32,
        precision=precision(q_ref.dtype),
    )
    ragged = lo_ref is not None or (hi_ref is not None and not diagonal)

    @pl.when(jnp.logical_and(member == 0, span == 0))
    def _():
        dk_acc[...] = jnp.zeros_like(dk_acc)
        dv_acc[...] = jnp.zeros_like(dv_acc)

    def queries_of(block, column):
        """A column of a query block, in what holds the whole span."""
        return pl.ds(pl.multiple_of(block * block_q + column, sub), sub)

    def load(block, column):
        queries, columns = queries_of(block, column), pl.ds(column, sub)
        scaled = (q_ref[queries, :].astype(jnp.float32) * scale).astype(q_ref.dtype)
        scaled_ref[columns, :] = scaled
        scaled_t_ref[:, columns] = scaled.T
        do_t_ref[:, columns] = do_ref[queries, :].T
        dq_acc[:, columns] = jnp.zeros((dq_acc.shape[0], sub), jnp.float32)

    def turn(block, column):
        """From a column of one query block to that of the next; the last one is its own next."""
        dq = (dq_acc[:, pl.ds(column, sub)] * (scale * LN2)).astype(dq_ref.dtype)
        dq_ref[queries_of(block, column), :] = dq.T
        load(jnp.minimum(block + 1, blocks - 1), column)

    def rows_of(tile, key, size):
        return pl.ds(pl.multiple_of((tile - begin) * block_kv + key, LANES), size)

    def probabilities(tile, block, column, key, size, masked):
        """P^T and dS^T of one piece of a tile."""
        keys, queries = rows_of(tile, key, size), queries_of(block, column)
        s = dot(k_ref[keys, :], scaled_ref[pl.ds(column, sub), :], NT)
        dp = dot(v_ref[keys, :], do_ref[queries, :], NT)
        if masked:
            lo = None if lo_ref is None else lo_ref[:, queries]
            seen = visible(tile * block_kv + key, lo, hi_ref[:, queries], s.shape)
            # Not zeros in P: the compiler would mask its way into the matrix unit, which is dear.
            s = jnp.where(seen, s, -jnp.inf)
        p = jnp.exp2(s - lse_ref[:, queries])
        ds = p * (dp - delta_ref[:, queries])
        return p.astype(do_ref.dtype), ds.astype(do_ref.dtype)

    def accumulate(tile, column, key, size, p, ds):
        keys, columns = rows_of(tile, key, size), pl.ds(column, sub)
        dv_acc[:, keys] += dot(do_t_ref[:, columns], p, NT)
        dk_acc[:, keys] += dot(scaled_t_ref[:, columns], ds, NT)
        dq_acc[:, columns] += dot(k_ref[keys, :].T, ds, NN)

    order = range(0, block_q, sub)

    def advance(block, tile, *, masked=False, triangle=False):
        """A tile in pieces of `sub` queries and `sub_kv` keys, so that few registers wait.

        One piece ahead: the scores of a piece overlap the updates of the one before. A triangle
        ends its query block.
        """
        pieces = [
            (column, key, min(sub_kv, block_kv - key), key + sub_kv > column)
            for column in order
            for key in range(0, column + sub if triangle else block_kv, sub_kv)
        ]
        waiting: list[tuple] = []
        for column, key, size, crossed in pieces:
            # Without segments a triangle is partly seen only where the diagonal crosses a piece.
            partly = masked and (crossed or not triangle or lo_ref is not None)
            scored = probabilities(tile, block, column, key, size, partly)
            for piece in waiting:
                accumulate(tile, *piece)
                if triangle and piece[0] < column:
                    turn(block, piece[0])
            waiting = [(column, key, size, *scored)]
        accumulate(tile, *waiting[0])
        if triangle:
            turn(block, order[-1])

    def visit(block):
        row = rows + 4 * block
        first = jnp.maximum(bounds_ref[row], begin)
        last = jnp.minimum(bounds_ref[row + 3], begin + tiles)
        stop = last - 1 if diagonal else last
        head, body = first, stop
        if ragged:
            head = jnp.clip(bounds_ref[row + 1], first, jnp.maximum(stop, first))
            body = jnp.clip(bounds_ref[row + 2], head, jnp.maximum(stop, head))
        partly = functools.partial(advance, block, masked=True)
        if lo_ref is not None:
            pl.loop(first, head)(partly)
        pl.loop(head, body)(functools.partial(advance, block))
        if ragged:
            pl.loop(body, stop)(partly)
        if diagonal:
            partly(last - 1, triangle=True)
        else:
            for column in order:
                turn(block, column)

    for column in order:
        load(0, column)
    pl.loop(0, blocks)(visit)

    @pl.when(jnp.logical_and(member == members - 1, span == spans - 1))
    def _():
        dk_ref[...] = (dk_acc[...] * LN2).astype(dk_ref.dtype).T
        dv_ref[...] = dv_acc[...].astype(dv_ref.dtype).T


def backward(
    q: Float[Array, "B N T H"],
    k: Float[Array, "B K S H"],
    v: Float[Array, "B K S H"],
    do: Float[Array, "B N T H"],
    lse: Float[Array, "B N 1 T"],
    delta: Float[Array, "B N 1 T"],
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
    sub_kv: int,
    diagonal: bool,
    vmem_limit: int | None,
    interpret: bool,
) -> tuple[Float[Array, "B N T H"], Float[Array, "B K S H"], Float[Array, "B K S H"]]:
    """Gradients of the forward pass; `lse` in base 2, `delta` = sum(do * o).

    Other arguments as in `forward`, but for `buffers`, which are those of dk and dv.
    """
    B, N, T, H = q.shape
    K, S = k.shape[1:3]
    G, spans, chunks = N // K, T // span, S // chunk

    def queries(b, kv, c, g, i, _):
        return b, kv * G + g, i, 0

    def row(b, kv, c, g, i, _):
        return b, kv * G + g, 0, i

    query_spec = pl.BlockSpec((None, None, span, H), queries)
    row_spec = pl.BlockSpec((None, None, 1, span), row)

    def keys(b, kv, c, g, i, _):
        return b, kv, c, 0

    key_spec = pl.BlockSpec((None, None, chunk, H), keys)
    sums_spec = pl.BlockSpec(
        (None, None, chunk, H), keys, pipeline_mode=pl.Buffered(buffer_count=buffers)
    )
    limit = pl.BlockSpec((None, 1, span), lambda b, kv, c, g, i, _: (b, 0, i))
    # Query blocks are seen by several chunks: partial sums, added up below in a fixed order.
    dq_dtype = q.dtype if chunks == 1 else jnp.float32
    dq_spec = pl.BlockSpec(
        (None, None, None, span, H), lambda b, kv, c, g, i, _: (c, b, kv * G + g, i, 0)
    )
    kernel = functools.partial(
        backward_kernel,
        block_kv=block_kv,
        sub=sub,
        sub_kv=sub_kv,
        scale=scale,
        diagonal=diagonal,
    )
    dq, dk, dv = pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(B, K, chunks, G, spans),
            in_specs=[
                query_spec,
                query_spec,
                row_spec,
                row_spec,
                key_spec,
                key_spec,
                None if lo is None else limit,
                None if hi is None else limit,
            ],
            out_specs=[dq_spec, sums_spec, sums_spec],
            scratch_shapes=[
                pltpu.VMEM((block_q, H), q.dtype),
                pltpu.VMEM((H, block_q), q.dtype),
                pltpu.VMEM((H, block_q), q.dtype),
                pltpu.VMEM((H, block_q), jnp.float32),
                pltpu.VMEM((H, chunk), jnp.float32),
                pltpu.VMEM((H, chunk), jnp.float32),
            ],
        ),
        out_shape=[
            jax.ShapeDtypeStruct((chunks, *q.shape), dq_dtype),
            jax.ShapeDtypeStruct(k.shape, k.dtype),
            jax.ShapeDtypeStruct(v.shape, v.dtype),
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", *("arbitrary",) * 3),
            vmem_limit_bytes=vmem_limit,
        ),
        name="flash_attention_backward",
        interpret=interpret,
    )(bounds, q, do, lse, delta, k, v, lo, hi)
    return dq[0] if chunks == 1 else dq.sum(0).astype(q.dtype), dk, dv
