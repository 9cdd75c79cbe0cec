"""One decoder layer as a pure function of its weights: the page to read first.

    x -> norm -> q, k, v -> rotate -> attention -> o -> + x -> norm -> SwiGLU -> + x

Llama 2, section 2.2: pre-normalisation with RMSNorm, rotary embeddings, grouped-query attention,
SwiGLU. The residual stream and all matrix products have x's dtype; norms, rotary angles, attention
logits and softmax are float32.
"""

from collections.abc import Mapping

import jax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from llama_jax.config import ModelConfig
from llama_jax.ops.attention import dot_product_attention
from llama_jax.ops.linear import project
from llama_jax.ops.mlp import swiglu
from llama_jax.ops.norm import rms_norm
from llama_jax.ops.rope import apply_rope, rope_frequencies
from llama_jax.parallel.rules import constrain, spec_in_context

Cache = tuple[Float[Array, "B K S H"], Float[Array, "B K S H"]]


def decoder_layer(
    w: Mapping[str, Array],
    x: Float[Array, "B T D"],
    kv: Cache | None,
    positions: Int[Array, "B T"],
    segment_ids: Int[Array, "B T"] | None,
    *,
    cfg: ModelConfig,
    zigzag: bool = False,
) -> tuple[Float[Array, "B T D"], Cache | None]:
    """The layer's output and its updated cache.

    Args:
      w: the tensors of `layer_weights`, in x's dtype (norms may be float32).
      kv: keys and values of this layer's earlier positions; the T new ones are written at
        positions[:, 0] onwards. None to attend within x alone.
      positions: of each token in its document; with a cache, of each token in its row.
      segment_ids: document of each token; tokens see their own document only. Not with a cache.
      zigzag: the tokens of a row are in zigzag order over the mesh's sequence axis (see
        `ops.ring_attention`), not in natural order.
    """
    attended, kv = attention_block(w, x, kv, positions, segment_ids, cfg=cfg, zigzag=zigzag)
    x = constrain(x + attended, ("batch", "norm_seq", "act_embed"))
    return constrain(x + mlp_block(w, x, cfg=cfg), ("batch", "norm_seq", "act_embed")), kv


@jax.named_scope("attention")
def attention_block(w, x, kv, positions, segment_ids, *, cfg: ModelConfig, zigzag: bool):
    """Normed, projected, rotated, attended, projected back: what is added to x, and the cache."""
    rotary = rope_frequencies(
        cfg.head_dim,
        theta=cfg.rope_theta,
        scaling=cfg.rope_scaling,
        factor=cfg.rope_factor,
        pretrained_len=cfg.pretrained_seq_len,
    )
    h = rms_norm(x, w["attn_norm"], eps=cfg.norm_eps)
    q = checkpoint_name(apply_rope(project(h, w["q"]), positions, *rotary), "q")
    k = checkpoint_name(apply_rope(project(h, w["k"]), positions, *rotary), "k")
    v = checkpoint_name(project(h, w["v"]), "v")
    offset = 0
    if kv is not None:
        offset = positions[:, 0]
        kv = write_cache(kv, k, v, offset)
        k, v = (c.swapaxes(1, 2) for c in kv)
    out = dot_product_attention(
        q,
        k,
        v,
        causal=True,
        segment_ids=segment_ids,
        q_offset=offset,
        implementation=None if cfg.attention == "auto" else cfg.attention,
        spec=spec_in_context(("batch", "seq", "heads", "head_dim"), q.shape),
        zigzag=zigzag,
    )
    return project(out, w["o"], inputs=2), kv


@jax.named_scope("mlp")
def mlp_block(w, x, *, cfg: ModelConfig):
    """SwiGLU (Shazeer 2020): (silu(h gate) * (h up)) down."""
    h = rms_norm(x, w["mlp_norm"], eps=cfg.norm_eps)
    return swiglu(h, w["gate"], w["up"], w["down"])


def write_cache(kv: Cache, k: Array, v: Array, start: Int[Array, " B"]) -> Cache:
    """Row b's new keys and values [T,K,H] at positions start[b] onwards of its cache [K,S,H].

    The cache has the layout in which attention reads it, so that no step transposes all of it, and
    rows are written one by one: XLA's CPU backend makes a slow loop of a batched update.
    """

    def write(cache, new):
        new = new.swapaxes(1, 2).astype(cache.dtype)
        for b in range(cache.shape[0]):
            cache = jax.lax.dynamic_update_slice(cache, new[b : b + 1], (b, 0, start[b], 0))
        return cache

    return write(kv[0], k), write(kv[1], v)
