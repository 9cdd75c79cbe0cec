"""Combines partial attention by its log-sum-exp, with one gradient rule on any mesh.

The rule stands outside of `jax.shard_map`, so that what the backward pass keeps are global arrays
with the names "out" and "lse", which a remat policy can save instead of computing them again.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

Masks = Mapping[str, Int[Array, "..."]]
"""segment_ids [B,T], kv_segment_ids [B,S] and q_offset, scalar or [B]: those of them that are
arrays."""


class Parts(NamedTuple):
    """One way to compute attention, forward and backward."""

    forward: Callable[..., tuple[Array, Array]]
    """(q, k, v, **masks) -> out [B,T,N,H] and the natural log-sum-exp of the logits [B,N,T]."""
    gradients: Callable[..., tuple[Array, Array, Array]]
    """(q, k, v, d_out, lse, delta, **masks) -> dq, dk, dv, with delta [B,N,T] = sum_H d_out out."""


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def attend(
    parts: Parts,
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    masks: Masks,
) -> Float[Array, "B T N H"]:
    """The output of `parts`, differentiable in q, k and v."""
    return parts.forward(q, k, v, **masks)[0]


def _attend_forward(parts, q, k, v, masks):
    out, lse = parts.forward(q, k, v, **masks)
    out, lse = checkpoint_name(out, "out"), checkpoint_name(lse, "lse")
    return out, (q, k, v, masks, out, lse)


def _attend_backward(parts, residuals, d_out):
    q, k, v, masks, out, lse = residuals
    return *parts.gradients(q, k, v, d_out, lse, delta(out, d_out), **masks), None


attend.defvjp(_attend_forward, _attend_backward)


def delta(out: Float[Array, "B T N H"], d_out: Float[Array, "B T N H"]) -> Float[Array, "B N T"]:
    """The term that the softmax gradient subtracts: sum_H d_out out, float32."""
    product = d_out.astype(jnp.float32) * out.astype(jnp.float32)
    return jnp.sum(product, axis=-1).transpose(0, 2, 1)


def sharded(parts: Parts, spec: PartitionSpec) -> Parts:
    """Parts that compute each device's share of q, k and v, split by `spec` over the mesh in scope.

    Nothing is exchanged unless the parts themselves do so.
    """
    batch, positions, heads, _ = spec
    rows = PartitionSpec(batch, heads, positions)

    def specs(masks: Masks) -> dict[str, PartitionSpec]:
        of = {"q_offset": (batch,)}
        tokens = (batch, positions)
        return {
            name: PartitionSpec(*of.get(name, tokens)[: value.ndim])
            for name, value in masks.items()
        }

    def split(function: Callable, *inputs: PartitionSpec, out: tuple[PartitionSpec, ...]):
        def run(*arrays: Array, **masks: Array) -> Any:
            # check_vma does not know the effects of Pallas kernels.
            return jax.shard_map(
                lambda arrays, masks: function(*arrays, **masks),
                in_specs=(inputs, specs(masks)),
                out_specs=out,
                check_vma=False,
            )(arrays, masks)

        return run

    qkv = (spec,) * 3
    return Parts(
        split(parts.forward, *qkv, out=(spec, rows)),
        split(parts.gradients, *qkv, spec, rows, rows, out=qkv),
    )


def in_float32(parts: Parts) -> Parts:
    """The same parts computed in float32, whatever the input dtypes; results are rounded to q's
    dtype."""

    def wide(*arrays: Array) -> list[Array]:
        return [a.astype(jnp.float32) for a in arrays]

    def forward(q: Array, k: Array, v: Array, **masks: Any):
        out, lse = parts.forward(*wide(q, k, v), **masks)
        return out.astype(q.dtype), lse

    def gradients(q: Array, *others: Array, **masks: Any):
        dq, dk, dv = parts.gradients(*wide(q, *others), **masks)
        return dq.astype(q.dtype), dk.astype(q.dtype), dv.astype(q.dtype)

    return Parts(forward, gradients)
