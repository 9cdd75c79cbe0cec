"""Causal grouped-query attention over packed documents, one function for every implementation.

K and V are never repeated: the N query heads are viewed as K groups of G, and each group reads its
one key/value head (Ainslie et al. 2023; Llama 2, section 2.2 and appendix A.2.1).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from llama_jax.ops.attention_xla import attend, visible

IMPLEMENTATIONS = ("xla", "cudnn")


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
) -> Float[Array, "B T N H"]:
    """softmax(scale * q k^T + mask) v for grouped query heads.

    Query t of row b stands at position q_offset[b] + t and key s at position s. With `causal` a
    query sees the keys at its own position and before; with segment ids it sees its own segment
    only. A query that sees nothing gives zeros. Logits and softmax are float32.

    Args:
      segment_ids: documents of the queries; those of the keys too unless kv_segment_ids is given.
      q_offset: position of the first query, one for all rows or one per row.
      scale: of the logits; None for 1/sqrt(H).
      implementation: None picks; "xla" or "cudnn" (GPU, float16 or bfloat16) is used or raises.

    Raises:
      ValueError: shapes, dtypes or the implementation do not fit; the message holds the values.
    """
    _validate(q, k, v, segment_ids, kv_segment_ids, implementation)
    if segment_ids is not None and kv_segment_ids is None:
        kv_segment_ids = segment_ids
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if implementation == "cudnn":
        return _cudnn(q, k, v, causal, segment_ids, kv_segment_ids, q_offset, scale)
    return attend(q, k, v, causal, segment_ids, kv_segment_ids, q_offset, scale)


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


def _cudnn(q, k, v, causal, segment_ids, kv_segment_ids, q_offset, scale):
    if jax.default_backend() != "gpu" or q.dtype not in (jnp.bfloat16, jnp.float16):
        raise ValueError(
            f"implementation='cudnn' needs a GPU and float16 or bfloat16, not "
            f"{jax.default_backend()} and {q.dtype}; use 'xla'"
        )
    static = isinstance(q_offset, int) and q_offset == 0
    mask = None
    if segment_ids is not None or not static:
        T, S = q.shape[1], k.shape[1]
        mask = visible((0, T, S), causal, segment_ids, kv_segment_ids, q_offset)
        mask = None if mask is None else mask[:, None]
    return jax.nn.dot_product_attention(
        q, k, v, mask=mask, is_causal=causal and static, scale=scale, implementation="cudnn"
    )
