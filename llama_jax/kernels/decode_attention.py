"""Decoding on TPU: a few query tokens of each row against a ragged cache of keys and values.

Decoding is bound by the bytes of the cache, so the kernel reads each valid block once, for all
heads together, in the layout in which the cache lies, and nothing beyond a row's length. The
queries of all heads meet the keys of all heads in one product; the scores of foreign heads are
dropped before the softmax, which then works on [keys, queries] as in the forward kernel. An int8
cache is multiplied as it is: its scales act on the scores and on the probabilities.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int, Num

from llama_jax.kernels.block_sizes import DTYPES, HEAD_WIDTHS, LANES
from llama_jax.kernels.flash_attention import FLOOR, NN, NT, precision

LOG2E = math.log2(math.e)
# Rows of keys, tokens times heads, that one grid step takes: enough to hide the latencies of its
# operations. And at most so many tokens: half a block is read in vain at the end of a row.
STEP_ROWS, STEP_TOKENS = 2048, 256
# lhs [K,M] rhs [K,N] -> [M,N].
TN = (((0,), (0,)), ((), ()))


def decode_attention(
    q: Float[Array, "B T N H"],
    k: Num[Array, "B S K H"],
    v: Num[Array, "B S K H"],
    lengths: Int[Array, " B"],
    *,
    k_scale: Float[Array, "B K S"] | None = None,
    v_scale: Float[Array, "B K S"] | None = None,
    scale: float | None = None,
    splits: int = 1,
    interpret: bool = False,
) -> Float[Array, "B T N H"]:
    """Attention of the last T tokens of each row over the row's cache, itself included.

    Row b holds lengths[b] valid tokens; query t stands at position lengths[b] - T + t and sees the
    keys up to its own. A query that sees nothing gives zeros. Not differentiable.

    Args:
      q: bfloat16 or float32. k, v: of the same dtype, or int8 with scales.
      k_scale, v_scale: float32, one per head and token, S last so that it is dense in memory.
      scale: of the logits; None for 1/sqrt(H).
      splits: parts of S that are worked on independently and then merged; 2 keeps both cores of a
        v4 or v5p chip busy when there are fewer rows than cores.

    Raises:
      ValueError: shapes or dtypes do not fit, with the values.
    """
    S = k.shape[1]
    _validate(q, k, v, k_scale, v_scale)
    block = block_of(S, k.shape[2])
    rows = -(-S // block)
    table = jnp.zeros((1,), jnp.int32)

    def place(b, j, table_ref):
        return b, j

    return _decode(
        q, k, v, lengths, table, k_scale, v_scale, scale, block, rows, place, splits, interpret
    )


def paged_decode_attention(
    q: Float[Array, "B T N H"],
    k: Num[Array, "P page K H"],
    v: Num[Array, "P page K H"],
    page_table: Int[Array, "B pages"],
    lengths: Int[Array, " B"],
    *,
    k_scale: Float[Array, "P K page"] | None = None,
    v_scale: Float[Array, "P K page"] | None = None,
    scale: float | None = None,
    splits: int = 1,
    interpret: bool = False,
) -> Float[Array, "B T N H"]:
    """`decode_attention` where token s of row b lies in page page_table[b, s // page].

    Entries beyond a row's length are not read. Raises ValueError as `decode_attention`.
    """
    _validate(q, k, v, k_scale, v_scale)
    page, pages = k.shape[1], page_table.shape[1]
    if page % LANES and k_scale is not None:
        raise ValueError(f"{page=} must be a multiple of {LANES} for an int8 cache")

    def place(b, j, table_ref):
        return table_ref[b * pages + j], 0

    table = page_table.astype(jnp.int32).reshape(-1)
    return _decode(
        q, k, v, lengths, table, k_scale, v_scale, scale, page, pages, place, splits, interpret
    )


def _validate(q, k, v, k_scale, v_scale):
    N, H = q.shape[2:]
    K = k.shape[2]
    if H not in HEAD_WIDTHS or k.shape[3] != H:
        raise ValueError(f"head width {H=} of q and {k.shape[3]} of k must be one of {HEAD_WIDTHS}")
    if N % K or k.shape != v.shape:
        raise ValueError(
            f"query heads {N=} must be a multiple of {K=}, and k {k.shape} like v {v.shape}"
        )
    if q.dtype.name not in DTYPES:
        raise ValueError(f"q must be of {DTYPES}, not {q.dtype}")
    quantized = k.dtype == jnp.int8
    if k.dtype != v.dtype or not (quantized or k.dtype == q.dtype):
        raise ValueError(f"k and v must be int8 or {q.dtype} as q, not {k.dtype} and {v.dtype}")
    if quantized != (k_scale is not None) or quantized != (v_scale is not None):
        raise ValueError("an int8 cache needs k_scale and v_scale, another takes none")


def block_of(S: int, K: int) -> int:
    """Tokens of a block: a multiple of the lanes, no more than S needs."""
    block = max(LANES, min(STEP_TOKENS, STEP_ROWS // K // LANES * LANES))
    return min(block, -(-S // LANES) * LANES)


def decode_kernel(
    # Scalars, in SMEM.
    lengths_ref,  # [B]
    table_ref,  # page table, for the index maps
    # Inputs.
    q_ref,  # [C, H] queries of all heads and tokens, scaled to base 2
    k_ref,  # [block * K, H] tokens, the heads of each together
    v_ref,  # [block * K, H]
    k_scale_ref,  # [K, block] or None
    v_scale_ref,  # [K, block] or None
    # Outputs.
    o_ref,  # [C, H]
    lse_ref,  # [1, C]
    # Scratch.
    m_ref,  # [1, C]
    l_ref,  # [1, C]
    acc_ref,  # [H, C]
    *,
    tokens: int,
    heads: int,
    kv_heads: int,
):
    """One step of the grid (splits, B, blocks of a split)."""
    del table_ref
    C, K = q_ref.shape[0], kv_heads
    block = k_ref.shape[0] // K
    row, j, steps = pl.program_id(1), pl.program_id(2), pl.num_programs(2)
    start = (pl.program_id(0) * steps + j) * block
    length = lengths_ref[row]
    dot = functools.partial(jax.lax.dot_general, preferred_element_type=jnp.float32)
    full = precision(q_ref.dtype)
    column = jax.lax.broadcasted_iota(jnp.int32, (K, C), 1)
    head = jax.lax.broadcasted_iota(jnp.int32, (K, C), 0)
    own = head == column % heads // (heads // K)

    def own_heads(s):
        """[block * K, C] -> [block, C]: the score of every query against its own head."""
        return s if K == 1 else jnp.sum(jnp.where(own[None], s.reshape(block, K, C), 0.0), axis=1)

    def all_heads(p):
        """[block, C] -> [block * K, C]: zero for the heads that are not a query's own."""
        return p if K == 1 else jnp.where(own[None], p[:, None, :], 0.0).reshape(block * K, C)

    def expand(scale_ref):
        """Scales [K, block] as a factor [block, C] of the queries of each head.

        Three bfloat16 parts hold a float32 in full, so one pass of the matrix unit is exact.
        """
        rest, parts = scale_ref[...], []
        for _ in range(3):
            parts.append(rest.astype(jnp.bfloat16).astype(jnp.float32))
            rest = rest - parts[-1]
        chosen = jnp.concatenate([own.astype(jnp.float32)] * 3).astype(jnp.bfloat16)
        return dot(jnp.concatenate(parts).astype(jnp.bfloat16), chosen, TN)

    def visit(masked):
        s = own_heads(dot(k_ref[...].astype(q_ref.dtype), q_ref[...], NT, precision=full))
        if k_scale_ref is not None:
            s *= expand(k_scale_ref)
        v = v_ref[...]
        seen = None
        if masked:
            key = start + jax.lax.broadcasted_iota(jnp.int32, (block, C), 0)
            token = jax.lax.broadcasted_iota(jnp.int32, (block, C), 1) // heads
            seen = key <= length - tokens + token
            s = jnp.where(seen, s, -jnp.inf)
            # What lies beyond the valid keys may be anything, and 0 * NaN is NaN.
            line = start * K + jax.lax.broadcasted_iota(jnp.int32, v.shape, 0)
            v = jnp.where(line < length * K, v.astype(jnp.float32), 0.0)
        v = v.astype(q_ref.dtype)
        m = jnp.maximum(m_ref[...], jnp.max(s, axis=0, keepdims=True))
        p = jnp.exp2(s - m)
        shrink = jnp.exp2(m_ref[...] - m)
        m_ref[...] = m
        l_ref[...] = shrink * l_ref[...] + jnp.sum(p, axis=0, keepdims=True)
        if v_scale_ref is not None:
            p *= expand(v_scale_ref)
            p = p if seen is None else jnp.where(seen, p, 0.0)
        spread = all_heads(p).astype(v.dtype)
        acc_ref[...] = shrink * acc_ref[...] + dot(v.T, spread, NN, precision=full)

    @pl.when(j == 0)
    def _():
        m_ref[...] = jnp.full_like(m_ref, FLOOR)
        l_ref[...] = jnp.zeros_like(l_ref)
        acc_ref[...] = jnp.zeros_like(acc_ref)

    # The first token sees the keys up to length - tokens.
    whole = start + block <= length - tokens + 1
    pl.when(whole)(lambda: visit(False))
    pl.when(jnp.logical_and(jnp.logical_not(whole), start < length))(lambda: visit(True))

    @pl.when(j == steps - 1)
    def _():
        total = l_ref[...]
        safe = jnp.where(total > 0, total, 1.0)
        o_ref[...] = (acc_ref[...] / safe).T.astype(o_ref.dtype)
        lse_ref[...] = m_ref[...] + jnp.log2(safe)


def _decode(
    q, k, v, lengths, table, k_scale, v_scale, scale, block, blocks, place, splits, interpret
):
    B, T, N, H = q.shape
    K = k.shape[2]
    steps = -(-blocks // splits)
    C = -(-T * N // LANES) * LANES
    scaled = q.astype(jnp.float32) * ((H**-0.5 if scale is None else scale) * LOG2E)
    scaled = scaled.astype(q.dtype).reshape(B, T * N, H)
    scaled = jnp.pad(scaled, ((0, 0), (0, C - T * N), (0, 0)))

    def at(split, b, j, lengths_ref, table_ref):
        # Blocks beyond the valid ones name the last valid one, which is not copied again.
        last = jnp.maximum(lengths_ref[b] - 1, 0) // block
        return place(b, jnp.minimum(jnp.minimum(split * steps + j, last), blocks - 1), table_ref)

    def keys(*indices):
        return *at(*indices), 0

    def scales(*indices):
        first, second = at(*indices)
        return first, 0, second

    def queries(split, b, j, *_):
        return b, 0, 0

    def partial(split, b, j, *_):
        return split, b, 0, 0

    # The heads of a token lie together: rows of one matrix, whatever K is.
    k, v = (x.reshape(x.shape[0], x.shape[1] * K, H) for x in (k, v))
    key_spec = pl.BlockSpec((None, block * K, H), keys)
    scale_spec = None if k_scale is None else pl.BlockSpec((None, K, block), scales)
    out, lse = pl.pallas_call(
        functools.partial(decode_kernel, tokens=T, heads=N, kv_heads=K),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(splits, B, steps),
            in_specs=[
                pl.BlockSpec((None, C, H), queries),
                key_spec,
                key_spec,
                scale_spec,
                scale_spec,
            ],
            out_specs=[
                pl.BlockSpec((None, None, C, H), partial),
                pl.BlockSpec((None, None, 1, C), partial),
            ],
            scratch_shapes=[
                pltpu.VMEM((1, C), jnp.float32),
                pltpu.VMEM((1, C), jnp.float32),
                pltpu.VMEM((H, C), jnp.float32),
            ],
        ),
        out_shape=[
            jax.ShapeDtypeStruct((splits, B, C, H), q.dtype if splits == 1 else jnp.float32),
            jax.ShapeDtypeStruct((splits, B, 1, C), jnp.float32),
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary")
        ),
        name="decode_attention",
        interpret=interpret,
    )(lengths.astype(jnp.int32), table, scaled, k, v, k_scale, v_scale)
    if splits > 1:
        weights = jnp.exp2(lse - jnp.max(lse, axis=0, keepdims=True))
        weights = (weights / jnp.sum(weights, axis=0, keepdims=True))[:, :, 0, :, None]
        out = jnp.sum(weights * out, axis=0, keepdims=True).astype(q.dtype)
    return out[0, :, : T * N].reshape(B, T, N, H)
