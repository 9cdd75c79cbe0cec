"""Causal grouped-query attention over packed documents, one function for every implementation.

K and V are never repeated: the N query heads are viewed as K groups of G, and each group reads its
one key/value head (Ainslie et al. 2023; Llama 2, section 2.2 and appendix A.2.1).
"""

import functools
import logging

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from llama_jax.ops import attention_xla, capabilities
from llama_jax.ops.attention_parts import Parts, attend, in_float32, sharded
from llama_jax.ops.interpreted import interpreted
from llama_jax.ops.ring_attention import ring_parts, xla_parts

IMPLEMENTATIONS = ("xla", "pallas", "cudnn")
logger = logging.getLogger(__name__)


def dot_product_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    *,
    causal: bool = True,
    segment_ids: Int[Array, "B T"] | None = None,
    kv_segment_ids: Int[Array, "B S"] | None = None,
    q_offset: int | Int[Array, ""] | Int[Array, " B"] = 0,
    scale: float | None = None,
    implementation: str | None = None,
    spec: PartitionSpec | None = None,
    zigzag: bool = False,
) -> Float[Array, "B T N H"]:
    """softmax(scale * q k^T + mask) v for grouped query heads.

    Query t of row b stands at position q_offset[b] + t and key s at position s. With `causal` a
    query sees the keys at its own position and before; with segment ids it sees its own segment
    only. A query that sees nothing gives zeros. Logits and softmax are float32.

    Args:
      segment_ids: documents of the queries; those of the keys too unless kv_segment_ids is given.
        The keys of one document lie together, as packing leaves them.
      q_offset: position of the first query, one for all rows or one per row.
      scale: of the logits; None for 1/sqrt(H).
      implementation: None picks by device, shape and dtype, and says once where it falls back to
        "xla". An implementation that you name is used or raises an error: "xla", "pallas" (TPU;
        on a CPU interpreted, slowly) or "cudnn" (GPU). The device is that of the mesh in scope,
        else the default one.
      spec: how q is split over the mesh in scope, and k and v like it; None where it is whole.
        "xla" and "cudnn" are split by the compiler as it likes.
      zigzag: positions are in the order of `ring_attention.zigzag` for the mesh axis that splits
        them, and keys travel around the devices of that axis.

    Raises:
      ValueError: shapes or dtypes do not fit; the message holds the values.
      Unsupported: a ValueError; the named implementation cannot do this, with the values.
    """
    _validate(q, k, v, segment_ids, kv_segment_ids, implementation)
    masks = {"segment_ids": segment_ids, "kv_segment_ids": kv_segment_ids, "q_offset": q_offset}
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    axis = _ring_axis(spec, q, k, causal, masks) if zigzag else None
    chosen = _choose(implementation, q, k, causal, masks, spec, axis)
    if chosen == "xla" and axis is None:
        if segment_ids is not None and kv_segment_ids is None:
            kv_segment_ids = segment_ids
        return attention_xla.attend(q, k, v, causal, segment_ids, kv_segment_ids, q_offset, scale)
    if chosen == "cudnn":
        return _cudnn(q, k, v, causal, segment_ids, scale)
    arrays = {n: jnp.asarray(m) for n, m in masks.items() if not isinstance(m, int | None)}
    if axis is None:
        parts = _kernel(scale, causal=causal, **{n: m for n, m in masks.items() if n not in arrays})
    else:
        parts = ring_parts(_kernel(scale) if chosen == "pallas" else xla_parts(scale), axis)
    return attend(parts if spec is None else sharded(parts, spec), q, k, v, arrays)


def _validate(q, k, v, segment_ids, kv_segment_ids, implementation):
    if implementation not in (None, *IMPLEMENTATIONS):
        raise ValueError(f"{implementation=} must be None or one of {IMPLEMENTATIONS}")
    N, K = q.shape[2], k.shape[2]
    if N % K:
        raise ValueError(f"query heads {N=} must be divisible by key/value heads {K=}")
    if not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"one dtype is needed, not {q.dtype=}, {k.dtype=}, {v.dtype=}")
    if segment_ids is None and kv_segment_ids is not None:
        raise ValueError("kv_segment_ids needs segment_ids")
    if segment_ids is not None and kv_segment_ids is None and q.shape[1] != k.shape[1]:
        raise ValueError(f"T={q.shape[1]} queries, S={k.shape[1]} keys: pass kv_segment_ids too")


def _ring_axis(spec, q, k, causal, masks):
    """The mesh axis of a ring; ValueError for what a ring does not do."""
    axis = None if spec is None else spec[1]
    if not isinstance(axis, str):
        raise ValueError(f"zigzag needs one mesh axis that splits the positions, not {spec=}")
    fits = causal and masks["kv_segment_ids"] is None and q.shape[1] == k.shape[1]
    if not fits or not _from_zero(masks):
        raise ValueError(
            "zigzag is for causal attention of a sequence to itself, not "
            f"{causal=}, T={q.shape[1]}, S={k.shape[1]}, kv_segment_ids or q_offset"
        )
    parts = 2 * capabilities.devices(axis)
    if q.shape[1] % parts:
        raise ValueError(f"T={q.shape[1]} must be a multiple of {parts}, two parts per device")
    return axis


def _choose(implementation, q, k, causal, masks, spec, axis):
    """The implementation to use; Unsupported if the one that was named cannot do this."""
    device = capabilities.device()
    if implementation is None:
        preferred = {"cpu": "xla", "gpu": "cudnn"}.get(device, "pallas")
    else:
        preferred = implementation
    if preferred == "cudnn":
        problem = _cudnn_problem(device, q, masks, axis)
    elif preferred == "pallas":
        problem = _kernel_problem(device, q, k, masks, spec, axis)
    else:
        problem = ""
    if problem and implementation is not None:
        text = f"{implementation=} cannot be used: {problem}; 'xla' takes anything"
        raise capabilities.Unsupported(text)
    if problem:
        say_once(f"attention falls back from {preferred} to xla on {device}: {problem}")
        return "xla"
    if preferred == "pallas" and device == "cpu":
        say_once("attention: Pallas kernels are interpreted on a CPU, which is slow")
    return preferred


@functools.cache
def say_once(message: str) -> None:
    """Log a warning, but each message only once."""
    logger.warning(message)


def _from_zero(masks) -> bool:
    return isinstance(masks["q_offset"], int) and masks["q_offset"] == 0


def _kernel_problem(device, q, k, masks, spec, axis) -> str:
    problem = capabilities.problem(
        "pallas" if axis is None else "ring",
        device,
        q.dtype.name,
        q.shape[3],
        offset=not _from_zero(masks),
        segments=masks["segment_ids"] is not None,
    )
    if not problem and axis is None and spec is not None and capabilities.devices(spec[1]) > 1:
        return f"positions that the mesh axis {spec[1]!r} splits need zigzag order"
    return problem or capabilities.split_problem(spec, B=q.shape[0], N=q.shape[2], K=k.shape[2])


def _kernel(scale: float, **masks) -> Parts:
    """The Pallas kernels with what is known of the masks before any array."""
    # A third of what it takes to import this package, and only TPUs need them.
    from llama_jax.kernels.flash_attention_vjp import (
        flash_attention_gradients,
        flash_attention_with_lse,
    )

    interpret = capabilities.device() == "cpu"
    statics = dict(scale=scale, interpret=interpret, **masks)
    parts = Parts(
        functools.partial(flash_attention_with_lse, **statics),
        functools.partial(flash_attention_gradients, **statics),
    )
    if not interpret:
        return parts
    # XLA's CPU backend lacks some of the bfloat16 products that the interpreted kernels make.
    return in_float32(Parts(*(_on_cpu(part) for part in parts)))


def _on_cpu(part):
    return lambda q, *others, **masks: part(interpreted(q), *others, **masks)


def _cudnn_problem(device, q, masks, axis) -> str:
    if axis is not None:
        return "it has no ring over devices"
    segments = masks["segment_ids"] is not None
    problem = capabilities.problem(
        "cudnn", device, q.dtype.name, q.shape[3], offset=not _from_zero(masks), segments=segments
    )
    if problem:
        return problem
    if masks["kv_segment_ids"] is not None:
        return "a query that sees nothing would not give zeros, and kv_segment_ids allow that"
    if segments and q.shape[1] % 2:
        return f"with segment ids it needs an even length, not T={q.shape[1]}"
    # "8.0" on NVIDIA's, "gfx942" and the like on others.
    able = jax.devices()[0].compute_capability
    if not able[:1].isdigit() or float(able) < 8:
        return f"it needs an NVIDIA GPU of compute capability 8.0 or more, not {able}"
    return ""


def _cudnn(q, k, v, causal, segment_ids, scale):
    mask = None
    if segment_ids is not None:
        mask = segment_ids[:, None, :, None] == segment_ids[:, None, None, :]
    out = jax.nn.dot_product_attention(
        q, k, v, mask=mask, is_causal=causal, scale=scale, implementation="cudnn"
    )
    return checkpoint_name(out, "out")
