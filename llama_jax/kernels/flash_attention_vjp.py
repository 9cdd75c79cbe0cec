"""Flash attention for users: validation, padding, block sizes, and the gradient rule."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from llama_jax.kernels import block_sizes as sizes_of
from llama_jax.kernels.block_sizes import BlockSizes, Held
from llama_jax.kernels.flash_attention import forward
from llama_jax.kernels.flash_attention_bwd import LN2, backward
from llama_jax.kernels.intervals import intervals, pad_queries, tile_bounds

LOG2E = math.log2(math.e)


def flash_attention_with_lse(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    *,
    causal: bool = True,
    segment_ids: Int[Array, "B T"] | None = None,
    kv_segment_ids: Int[Array, "B S"] | None = None,
    q_offset: int | Int[Array, ""] | Int[Array, " B"] = 0,
    scale: float | None = None,
    block_sizes: tuple[BlockSizes, BlockSizes] | None = None,
    interpret: bool = False,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B N T"]]:
    """softmax(scale * q k^T + mask) v on a TPU, and the natural log-sum-exp of all logits.

    Both are differentiable in q, k and v. Query t of row b stands at position q_offset[b] + t and
    key s at position s. With `causal` a query sees the keys at its own position and before; with
    segment ids it sees its own segment only. A query that sees nothing gives zeros, gets zero
    gradients, and has a log-sum-exp below -1e29, finite so that merging stays finite.

    Args:
      q, k, v: bfloat16 or float32, H 64 or 128, N a multiple of K. Any T and S.
      segment_ids, kv_segment_ids: documents of queries and keys; the keys have those of the queries
        unless given. Equal ids must form one run in a row: documents are packed one after another.
      q_offset: position of the first query, an int, or traced: one for all rows or one per row.
      scale: of the logits; None for 1/sqrt(H).
      block_sizes: (forward, backward); None takes the tuned ones.
      interpret: run on any backend, slowly, for tests.

    Raises:
      ValueError: shapes, dtypes or blocks that the kernel does not take, with the nearest that it
        does, before compilation.
    """
    config, lo, hi = prepare(
        q,
        k,
        v,
        causal=causal,
        segment_ids=segment_ids,
        kv_segment_ids=kv_segment_ids,
        q_offset=q_offset,
        scale=scale,
        block_sizes=block_sizes,
        interpret=interpret,
    )
    out, lse = attend(config, *(x.transpose(0, 2, 1, 3) for x in (q, k, v)), lo, hi)
    return out.transpose(0, 2, 1, 3), lse * LN2


def flash_attention(
    q: Float[Array, "B T N H"], k: Float[Array, "B S K H"], v: Float[Array, "B S K H"], **options
) -> Float[Array, "B T N H"]:
    """The output alone; `options` and errors are those of `flash_attention_with_lse`."""
    return flash_attention_with_lse(q, k, v, **options)[0]


def flash_attention_gradients(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    do: Float[Array, "B T N H"],
    lse: Float[Array, "B N T"],
    delta: Float[Array, "B N T"],
    **options,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B S K H"], Float[Array, "B S K H"]]:
    """The contribution of these keys to dq, and dk and dv, when they are a part of all keys.

    For ring attention, which merges parts: `lse` (natural) and `delta` = sum(do * out) over H are
    those of the merged attention. `options` and errors as in `flash_attention_with_lse`.
    """
    config, lo, hi = prepare(q, k, v, **options)
    q, k, v, do = (x.transpose(0, 2, 1, 3) for x in (q, k, v, do))
    gradients = gradients_of(config, q, k, v, do, lse * LOG2E, delta, lo, hi)
    dq, dk, dv = (x.transpose(0, 2, 1, 3) for x in gradients)
    return dq, dk, dv


def prepare(
    q,
    k,
    v,
    *,
    causal=True,
    segment_ids=None,
    kv_segment_ids=None,
    q_offset=0,
    scale=None,
    block_sizes=None,
    interpret=False,
):
    """The static choices of a call and the interval of keys that each query sees."""
    validate(q, k, v, segment_ids, kv_segment_ids)
    B, T, _, H = q.shape
    S = k.shape[1]
    generation = sizes_of.generation()
    if block_sizes is None:
        segmented = segment_ids is not None
        block_sizes = sizes_of.choose(T, S, H, q.dtype, segmented, generation)
    # Where every query sees itself last, the last tile of a block of queries is a triangle.
    own = causal and kv_segment_ids is None and isinstance(q_offset, int)
    plan = functools.partial(
        make_plan,
        T=T,
        S=S,
        H=H,
        itemsize=q.dtype.itemsize,
        offset=q_offset if own and q_offset >= 0 and q_offset + T <= S else None,
        limit=sizes_of.VMEM[generation or "v4"],
    )
    config = Config(
        forward=plan(block_sizes[0], bytes_of=sizes_of.forward_bytes),
        backward=plan(block_sizes[1], bytes_of=sizes_of.backward_bytes),
        scale=(H**-0.5 if scale is None else scale) * LOG2E,
        interpret=interpret,
    )
    segments = {"segment_ids": segment_ids, "kv_segment_ids": kv_segment_ids}
    return config, *intervals(B, T, S, causal=causal, q_offset=q_offset, **segments)


def validate(q, k, v, segment_ids, kv_segment_ids):
    """Raise ValueError for inputs that the kernels do not support."""
    B, T, N, H = q.shape
    S, K = k.shape[1:3]
    if H not in sizes_of.HEAD_WIDTHS:
        near = min(sizes_of.HEAD_WIDTHS, key=lambda width: abs(width - H))
        raise ValueError(f"head width {H=} must be one of {sizes_of.HEAD_WIDTHS}; nearest {near}")
    if k.shape != v.shape or k.shape != (B, S, K, H):
        raise ValueError(f"k {k.shape} and v {v.shape} must be ({B}, S, K, {H}), as q is {q.shape}")
    if N % K:
        near = max(K, round(N / K) * K)
        raise ValueError(f"query heads {N=} must be a multiple of {K=}; nearest {near}")
    if not q.dtype == k.dtype == v.dtype or q.dtype.name not in sizes_of.DTYPES:
        raise ValueError(
            f"q, k and v must share a dtype of {sizes_of.DTYPES}, "
            f"not {q.dtype}, {k.dtype}, {v.dtype}"
        )
    if 0 in (*q.shape, *k.shape):
        raise ValueError(f"empty arrays: q {q.shape}, k {k.shape}")
    if kv_segment_ids is not None and segment_ids is None:
        raise ValueError("kv_segment_ids needs segment_ids")
    if segment_ids is not None and kv_segment_ids is None and T != S:
        raise ValueError(f"{T=} queries, {S=} keys: pass kv_segment_ids too")
    for name, ids, length in (
        ("segment_ids", segment_ids, T),
        ("kv_segment_ids", kv_segment_ids, S),
    ):
        if ids is not None and ids.shape != (B, length):
            raise ValueError(
                f"{name} {ids.shape} must be ({B}, {length}), as q {q.shape}, k {k.shape}"
            )


@dataclasses.dataclass(frozen=True)
class Plan:
    """One kernel's static choices."""

    sizes: BlockSizes
    held: Held
    diagonal: bool
    vmem_limit: int

    @property
    def statics(self) -> dict:
        """Keyword arguments of `forward` and `backward`."""
        return dict(
            block_q=self.sizes.block_q,
            block_kv=self.sizes.block_kv,
            sub=self.sizes.sub,
            span=self.held.span,
            chunk=self.held.chunk,
            buffers=self.held.buffers,
            diagonal=self.diagonal,
            vmem_limit=self.vmem_limit,
        )


def make_plan(
    sizes: BlockSizes,
    *,
    T: int,
    S: int,
    H: int,
    itemsize: int,
    offset: int | None,
    limit: int,
    bytes_of,
) -> Plan:
    """`offset`: the static position of the first query where the mask is causal, else None."""
    held = sizes_of.hold(sizes, T, S, H, itemsize, bytes_of, limit)
    diagonal = (
        offset is not None
        and held.chunks == 1
        and sizes.block_q == sizes.block_kv
        and offset % sizes.block_kv == 0
    )
    return Plan(sizes, held, diagonal, limit)


@dataclasses.dataclass(frozen=True)
class Config:
    """The static choices of one call; `scale` holds log2(e)."""

    forward: Plan
    backward: Plan
    scale: float
    interpret: bool


def padded(plan: Plan, queries, keys, lo, hi):
    """Arrays [B,heads,length,H] and limits [B,T] as whole blocks, and their tile bounds."""
    B, T, S = queries[0].shape[0], queries[0].shape[2], keys[0].shape[2]
    whole_t = -(-T // plan.sizes.block_q) * plan.sizes.block_q
    whole_s = -(-S // plan.held.chunk) * plan.held.chunk
    if whole_s > S and hi is None:
        hi = jnp.full((B, T), S, jnp.int32)

    def grow(x, length):
        extra = length - x.shape[2]
        return jnp.pad(x, ((0, 0), (0, 0), (0, extra), (0, 0))) if extra else x

    lo, hi = pad_queries(lo, whole_t), pad_queries(hi, whole_t)
    bounds = tile_bounds(
        lo,
        hi,
        B=B,
        T=whole_t,
        S=whole_s,
        block_q=plan.sizes.block_q,
        block_kv=plan.sizes.block_kv,
    )
    return [grow(x, whole_t) for x in queries], [grow(x, whole_s) for x in keys], lo, hi, bounds


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def attend(config: Config, q, k, v, lo, hi):
    """Attention [B,N,T,H] and base-2 log-sum-exp [B,N,T] of q [B,N,T,H], k and v [B,K,S,H]."""
    T = q.shape[2]
    (q,), (k, v), lo, hi, bounds = padded(config.forward, [q], [k, v], lo, hi)
    out, lse = forward(
        q,
        k,
        v,
        lo,
        hi,
        bounds,
        scale=config.scale,
        interpret=config.interpret,
        **config.forward.statics,
    )
    return out[:, :, :T], lse[:, :, 0, :T]


def attend_forward(config, q, k, v, lo, hi):
    """The residuals are what the backward kernel reads."""
    out, lse = attend(config, q, k, v, lo, hi)
    return (out, lse), (q, k, v, out, lse, lo, hi)


def attend_backward(config, residuals, gradients):
    """Gradients of `attend`, those that arrive through the log-sum-exp included."""
    q, k, v, out, lse, lo, hi = residuals
    do, dlse = gradients
    delta = jnp.sum(do.astype(jnp.float32) * out.astype(jnp.float32), axis=-1) - dlse * LOG2E
    dq, dk, dv = gradients_of(config, q, k, v, do, lse, delta, lo, hi)
    return dq, dk, dv, None, None


def gradients_of(config: Config, q, k, v, do, lse, delta, lo, hi):
    """dq, dk, dv from the cotangent `do`, base-2 `lse` and `delta` [B,N,T], all heads first."""
    T, S = q.shape[2], k.shape[2]
    plan = config.backward
    queries = [q, do, lse[..., None], delta[..., None]]
    (q, do, lse, delta), (k, v), lo, hi, bounds = padded(plan, queries, [k, v], lo, hi)
    dq, dk, dv = backward(
        q,
        k,
        v,
        do,
        jnp.swapaxes(lse, 2, 3),
        jnp.swapaxes(delta, 2, 3),
        lo,
        hi,
        bounds,
        scale=config.scale,
        sub_kv=plan.sizes.sub_kv,
        interpret=config.interpret,
        **plan.statics,
    )
    return dq[:, :, :T], dk[:, :, :S], dv[:, :, :S]


attend.defvjp(attend_forward, attend_backward)
