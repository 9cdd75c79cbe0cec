"""Attention of new tokens to a KV cache that already holds their keys and values.

The decode kernel reads whole tokens, all heads of each together. XLA's products need whole heads,
and on CPUs the axis that they sum over must not be the last one, or XLA transposes the cache at
every token. So the order of a cache's axes depends on what will read it, and is chosen when the
cache is made.
"""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from llama_jax.ops import capabilities
from llama_jax.ops.attention import dot_product_attention, say_once
from llama_jax.ops.interpreted import interpreted

Order = Literal["BSKH", "BKHS"]
"""The axes of the keys of a cache."""
VALUES: dict[Order, str] = {"BSKH": "BSKH", "BKHS": "BKSH"}
"""The axes of its values."""
# Queries, of all heads, that the decode kernel takes at once; more go through the forward kernel.
DECODE_QUERIES = 256


def cache_order(
    implementation: str | None,
    *,
    B: int,
    N: int,
    K: int,
    H: int,
    dtype: str,
    spec: PartitionSpec | None,
) -> Order:
    """Axes of a cache's keys: "BSKH" where the Pallas kernels will read them, else "BKHS".

    Arguments as in `dot_product_attention`; None picks and warns once where it falls back.

    Raises:
      Unsupported: "pallas" is named and cannot be used, with the values.
    """
    device = capabilities.device()
    if implementation not in (None, "pallas") or (implementation is None and device in "cpu gpu"):
        return "BKHS"
    problem = capabilities.problem("decode", device, dtype, H, offset=True, segments=False)
    problem = problem or capabilities.split_problem(spec, B=B, N=N, K=K)
    if problem and implementation is not None:
        text = f"{implementation=} cannot read a cache: {problem}; 'xla' takes anything"
        raise capabilities.Unsupported(text)
    if problem:
        say_once(f"attention to a cache falls back from pallas to xla on {device}: {problem}")
    return "BKHS" if problem else "BSKH"


def cached_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "..."],
    v: Float[Array, "..."],
    start: Int[Array, " B"],
    *,
    order: Order,
    spec: PartitionSpec | None = None,
) -> Float[Array, "B T N H"]:
    """Causal attention of T new tokens per row, at start[b] onwards of the row's cache.

    Not differentiable.

    Args:
      k, v: the cache, with axes as in `order` and `VALUES[order]`; start[b] + T <= S.
      spec: how q is split over the mesh in scope, positions whole; the cache likewise.
    """
    T, N = q.shape[1:3]
    if order == "BKHS":
        if T == 1:
            return jax.lax.platform_dependent(q, k, v, start, cpu=_by_row, default=_by_tile)
        return _by_tile(q, k, v, start)
    if T > 1 and T * N > DECODE_QUERIES:
        return dot_product_attention(q, k, v, q_offset=start, implementation="pallas", spec=spec)
    if spec is None:
        return _decode(q, k, v, start)
    specs = (spec, spec, spec, PartitionSpec(spec[0]))
    return jax.shard_map(_decode, in_specs=specs, out_specs=spec, check_vma=False)(q, k, v, start)


def _by_tile(q, k, v, start):
    k, v = k.transpose(0, 3, 1, 2), v.swapaxes(1, 2)
    return dot_product_attention(q, k, v, q_offset=start, implementation="xla")


def _by_row(q, k, v, start):
    """One query a row, as sums of products: a CPU's cores share them, and each is added in an order
    that does not depend on B (see `ops.linear`)."""
    (B, _, N, H), (K, S), f32 = q.shape, (k.shape[1], k.shape[3]), jnp.float32
    # The barriers keep each product apart: one that is used twice would be written to memory.
    q, k, v = jax.lax.optimization_barrier((q.reshape(B, K, N // K, H, 1), k, v))
    logits = H**-0.5 * jnp.sum(q.astype(f32) * k[:, :, None].astype(f32), axis=3)
    seen = jnp.arange(S)[None, None, None] <= start[:, None, None, None]
    logits = jnp.where(seen, logits, -jnp.inf)
    weights = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
    weights = jax.lax.optimization_barrier(weights)
    out = jnp.sum(weights[..., None] * v[:, :, None].astype(f32), axis=3)
    out = out / jnp.sum(weights, axis=-1, keepdims=True)
    return out.astype(v.dtype).reshape(B, 1, N, H)


def _decode(q, k, v, start):
    from llama_jax.kernels.decode_attention import decode_attention  # for TPUs alone

    device = capabilities.device()
    q = interpreted(q) if device == "cpu" else q
    # Two cores share a chip of these generations; one row keeps both busy when it is split.
    splits = 2 if device in ("v4", "v5p") and q.shape[0] == 1 else 1
    attend = functools.partial(decode_attention, splits=splits, interpret=device == "cpu")
    return attend(q, k, v, start + jnp.int32(q.shape[1]))
