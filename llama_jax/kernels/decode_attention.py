"""Decoding on TPU: a few query tokens of each row against a ragged cache of keys and values.

Decoding is bound by the bytes of the cache, so the kernel reads each valid block once, for all
heads together, in the layout in which the cache lies, and nothing beyond a row's length. In VMEM a
head's keys are every K-th row: strided loads of 32-bit words, each of which holds a few heads of
one token, take them apart. The few queries of a head then stream past its keys, and the scores of
all heads are one matrix [queries, keys] for the softmax. An int8 cache is multiplied as it is: its
scales act on the scores and on the probabilities.
"""

import functools
import math
from typing import Any

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
# Rows of a register.
SUBLANES = 8
# Key heads of a grid step.
HEADS = 8


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
    _validate(q, k, v, lengths, k_scale, v_scale)
    if k.shape[0] != q.shape[0]:
        raise ValueError(f"a cache of {k.shape[0]} rows does not fit {q.shape[0]} rows of queries")
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
    _validate(q, k, v, lengths, k_scale, v_scale)
    if page_table.shape[0] != q.shape[0]:
        raise ValueError(f"page_table {page_table.shape} must have {q.shape[0]} rows, as q")
    page, pages = k.shape[1], page_table.shape[1]
    if page % LANES and k_scale is not None:
        raise ValueError(f"{page=} must be a multiple of {LANES} for an int8 cache")

    def place(b, j, table_ref):
        return table_ref[b * pages + j], 0

    table = page_table.astype(jnp.int32).reshape(-1)
    return _decode(
        q, k, v, lengths, table, k_scale, v_scale, scale, page, pages, place, splits, interpret
    )


def _validate(q, k, v, lengths, k_scale, v_scale):
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
    shape = (k.shape[0], K, k.shape[1])
    for name, scales in (("k_scale", k_scale), ("v_scale", v_scale)):
        if scales is not None and scales.shape != shape:
            raise ValueError(f"{name} {scales.shape} must be {shape}, heads before tokens")
    if lengths.shape != q.shape[:1]:
        raise ValueError(f"lengths {lengths.shape} must be {q.shape[:1]}, one for each row of q")


def block_of(S: int, K: int) -> int:
    """Tokens of a block: a multiple of the lanes, no more than S needs."""
    block = max(LANES, min(STEP_TOKENS, STEP_ROWS // heads_of_step(K) // LANES * LANES))
    return min(block, -(-S // LANES) * LANES)


def heads_of_step(K: int) -> int:
    """Number of key heads that a grid step takes: with more, the rows of a head would lie so far
    apart in a block that a strided load takes several instructions."""
    return HEADS if K % HEADS == 0 else K


def parts_of(word: Num[Array, "rows H"], dtype) -> list[Array]:
    """The numbers of type `dtype` that lie in 32-bit words, lowest first, each as float32."""
    if dtype == jnp.float32:
        return [word]
    if dtype == jnp.bfloat16:
        halves = word << 16, word & ~0xFFFF
        return [jax.lax.bitcast_convert_type(half, jnp.float32) for half in halves]
    return [((word << 24 - 8 * i) >> 24).astype(jnp.float32) for i in range(4)]


def decode_kernel(
    # Scalars, in SMEM.
    lengths_ref,  # [B]
    last_ref,  # [B] last valid block, for the index maps as
    table_ref,  # the page table
    # Inputs.
    q_ref,  # [K * R, H] queries of each key head, scaled to base 2
    k_ref,  # [1, block, 1, K, H] or [1, block * K, H]: tokens, the heads of each together
    v_ref,  # likewise
    k_scale_ref,  # [K, block] or None
    v_scale_ref,  # [K, block] or None
    # Outputs.
    o_ref,  # [K * R, H]
    lse_ref,  # [K * R, LANES] or None
    # Scratch; what there is one of a query fills all lanes.
    m_ref,  # [K * R, LANES]
    l_ref,  # [K * R, LANES]
    acc_ref,  # [K * R, H]
    wide_ref: Any = None,  # [block * K, H] float32, where a word of the cache holds several tokens
    *,
    tokens: int,
    group: int,
    kv_heads: int,
    dtype,
):
    """One step of the grid (splits, B, groups of K key heads, blocks of a split)."""
    del last_ref, table_ref
    K, rows, H = kv_heads, q_ref.shape[0], q_ref.shape[1]
    k_ref, v_ref = (ref.reshape(-1, H) for ref in (k_ref, v_ref))
    R, block = rows // K, k_ref.shape[0] // K
    row, j, steps = pl.program_id(1), pl.program_id(3), pl.num_programs(3)
    start = (pl.program_id(0) * steps + j) * block
    length = lengths_ref[row]
    dot = functools.partial(
        jax.lax.dot_general, preferred_element_type=jnp.float32, precision=precision(dtype)
    )

    def heads_of(ref):
        """The keys or values of each head, [block, H]: every K-th row, read as 32-bit words."""
        packing = 4 // ref.dtype.itemsize
        if K == 1:
            return [ref[...].astype(dtype)]
        if K % packing:
            wide_ref[...] = ref[...].astype(jnp.float32)
            return [wide_ref[pl.ds(h, block, stride=K), :].astype(dtype) for h in range(K)]
        words, stride = ref if packing == 1 else ref.bitcast(jnp.int32), K // packing
        taken = [words[pl.ds(w, block, stride=stride), :] for w in range(stride)]
        return [part.astype(dtype) for word in taken for part in parts_of(word, ref.dtype)]

    def spread(x, width):
        """[rows, LANES], the same in all lanes, as [rows, width]."""
        return jnp.concatenate([x] * -(-width // LANES), axis=1)[:, :width]

    def scales(ref):
        """[K, block] as [K * R, block]: those of a head for each of its queries."""
        return jnp.concatenate([jnp.broadcast_to(ref[h : h + 1], (R, block)) for h in range(K)])

    def visit(masked):
        queries = [q_ref[h * R : (h + 1) * R].astype(dtype) for h in range(K)]
        keys, values = heads_of(k_ref), heads_of(v_ref)
        s = jnp.concatenate([dot(q, k, NT) for q, k in zip(queries, keys, strict=True)])
        if k_scale_ref is not None:
            s *= scales(k_scale_ref)
        seen = None
        if masked:
            key = start + jax.lax.broadcasted_iota(jnp.int32, s.shape, 1)
            query = jax.lax.broadcasted_iota(jnp.int32, s.shape, 0) % R
            seen = key <= length - tokens + jnp.minimum(query // group, tokens - 1)
            s = jnp.where(seen, s, -jnp.inf)
            # What lies beyond the valid keys may be anything, and 0 * NaN is NaN.
            valid = start + jax.lax.broadcasted_iota(jnp.int32, (block, H), 0) < length
            values = [jnp.where(valid, v.astype(jnp.float32), 0.0).astype(dtype) for v in values]
        m_old = m_ref[...]
        m = jnp.maximum(m_old, jnp.max(s, axis=1, keepdims=True))
        p = jnp.exp2(s - spread(m, block))
        shrink = jnp.exp2(m_old - m)
        m_ref[...] = m
        l_ref[...] = shrink * l_ref[...] + jnp.sum(p, axis=1, keepdims=True)
        if v_scale_ref is not None:
            p *= scales(v_scale_ref)
            p = p if seen is None else jnp.where(seen, p, 0.0)
        weights = [p[h * R : (h + 1) * R].astype(dtype) for h in range(K)]
        out = jnp.concatenate([dot(w, v, NN) for w, v in zip(weights, values, strict=True)])
        acc_ref[...] = spread(shrink, H) * acc_ref[...] + out

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
        o_ref[...] = (acc_ref[...] / spread(safe, H)).astype(o_ref.dtype)
        if lse_ref is not None:
            lse_ref[...] = m_ref[...] + jnp.log2(safe)


def _decode(
    q, k, v, lengths, table, k_scale, v_scale, scale, block, blocks, place, splits, interpret
):
    B, T, N, H = q.shape
    K = k.shape[2]
    G, steps = N // K, -(-blocks // splits)
    # Key heads of a step, and queries of each: rows of one product, whole registers of them.
    few = heads_of_step(K)
    R = -(-T * G // SUBLANES) * SUBLANES
    scaled = q.astype(jnp.float32) * ((H**-0.5 if scale is None else scale) * LOG2E)
    scaled = scaled.reshape(B, T, K, G, H).swapaxes(1, 2).reshape(B, K, T * G, H)
    scaled = jnp.pad(scaled, ((0, 0), (0, 0), (0, R - T * G), (0, 0))).reshape(B, K * R, H)

    lengths = lengths.astype(jnp.int32)
    last = jnp.clip((lengths - 1) // block, 0, blocks - 1)

    def at(split, b, j, lengths_ref, last_ref, table_ref):
        # Blocks beyond the valid ones name the last valid one, which is not copied again.
        return place(b, jnp.minimum(split * steps + j, last_ref[b]), table_ref)

    def keys(split, b, heads, j, *refs):
        place = at(split, b, j, *refs)
        return (*place, heads, 0, 0) if few < K else (*place, 0)

    def scales(split, b, heads, j, *refs):
        first, second = at(split, b, j, *refs)
        return first, heads, second

    def partial(split, b, heads, j, *_):
        return split, b, heads, 0

    if few < K:
        key_spec = pl.BlockSpec((1, block, 1, few, H), keys)
        k, v = (x.reshape(*x.shape[:2], K // few, few, H) for x in (k, v))
    else:
        # Rows of one matrix: in memory, few heads would fill the registers of a token badly.
        key_spec = pl.BlockSpec((1, block * K, H), keys)
        k, v = (x.reshape(x.shape[0], -1, H) for x in (k, v))
    rows = few * R
    scale_spec = None if k_scale is None else pl.BlockSpec((None, few, block), scales)
    split_words = few > 1 and few % (4 // k.dtype.itemsize) > 0
    out, lse = pl.pallas_call(
        functools.partial(decode_kernel, tokens=T, group=G, kv_heads=few, dtype=q.dtype),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3,
            grid=(splits, B, K // few, steps),
            in_specs=[
                pl.BlockSpec((None, rows, H), lambda split, b, heads, j, *_: (b, heads, 0)),
                key_spec,
                key_spec,
                scale_spec,
                scale_spec,
            ],
            out_specs=[
                pl.BlockSpec((None, None, rows, H), partial),
                None if splits == 1 else pl.BlockSpec((None, None, rows, LANES), partial),
            ],
            scratch_shapes=[
                pltpu.VMEM((rows, LANES), jnp.float32),
                pltpu.VMEM((rows, LANES), jnp.float32),
                pltpu.VMEM((rows, H), jnp.float32),
                *([pltpu.VMEM((block * few, H), jnp.float32)] if split_words else []),
            ],
        ),
        out_shape=[
            jax.ShapeDtypeStruct((splits, B, K * R, H), q.dtype if splits == 1 else jnp.float32),
            None if splits == 1 else jax.ShapeDtypeStruct((splits, B, K * R, LANES), jnp.float32),
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "parallel", "arbitrary")
        ),
        name="decode_attention",
        interpret=interpret,
    )(lengths, last, table, scaled, k, v, k_scale, v_scale)
    if splits > 1:
        weights = jnp.exp2(lse - jnp.max(lse, axis=0, keepdims=True))[..., :1]
        weights = weights / jnp.sum(weights, axis=0, keepdims=True)
        out = jnp.sum(weights * out, axis=0, keepdims=True).astype(q.dtype)
    out = out[0].reshape(B, K, R, H)[:, :, : T * G].reshape(B, K, T, G, H)
    return out.swapaxes(1, 2).reshape(B, T, N, H)
