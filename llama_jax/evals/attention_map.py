"""Attention probabilities of every token, computed explicitly for plots."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from llama_jax.config import ModelConfig
from llama_jax.model.layer import decoder_layer
from llama_jax.model.matrix import matrices, project
from llama_jax.ops.norm import rms_norm
from llama_jax.ops.rope import apply_rope, rope_frequencies


@partial(jax.jit, static_argnames="config")
def attention_weights(
    params: dict[str, Any], tokens: Int[Array, " T"], *, config: ModelConfig
) -> Float[Array, "L N T T"]:
    """softmax(q k^T / sqrt(H)) of every layer and head over one text, float32 [L,N,T,S].

    Row t holds the weights of token t on tokens s <= t; rows sum to 1. They are computed from the
    same normed, projected and rotated queries and keys as in `model.layer.attention`, in float32.
    """
    positions = jnp.arange(tokens.shape[0])[None]
    causal = positions[0][:, None] >= positions[0][None, :]
    rotary = rope_frequencies(
        config.head_dim,
        theta=config.rope_theta,
        scaling=config.rope_scaling,
        factor=config.rope_factor,
        pretrained_len=config.pretrained_seq_len,
    )

    def layer(x, flat):
        w = matrices(flat, config)
        h = rms_norm(x, w["attn_norm"], eps=config.norm_eps)
        q = apply_rope(project(h, w["q"]), positions, *rotary)[0]
        k = apply_rope(project(h, w["k"]), positions, *rotary)[0]
        # Consecutive query heads share a key head.
        q = q.reshape(q.shape[0], config.num_kv_heads, -1, config.head_dim)
        logits = jnp.einsum("TKGH,SKH->KGTS", q, k) / np.sqrt(config.head_dim)
        logits = jnp.where(causal[None, None], logits, -jnp.inf)
        weights = jax.nn.softmax(logits, axis=-1).reshape(-1, *causal.shape)
        return decoder_layer(w, x, None, positions, None, cfg=config)[0], weights

    wide = jax.tree.map(lambda a: a.astype(jnp.float32), params)
    _, weights = jax.lax.scan(layer, wide["embed"][tokens][None], wide["layers"])
    return weights


def farthest_looking(weights: Float[np.ndarray, "L N T T"]) -> tuple[int, int]:
    """Layer and head with the most attention to tokens other than the first, the previous one and
    the token itself: one that looks something up in the text. For short texts, the first head."""
    T = weights.shape[-1]
    t, s = np.indices((T, T))
    looked_up = np.where((s > 0) & (s < t - 1), weights, 0.0).sum((-1, -2))
    layer, head = np.unravel_index(looked_up.argmax(), looked_up.shape)
    return int(layer), int(head)
