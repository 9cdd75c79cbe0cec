"""One decoder layer as a pure function of its weights: the page to read first.

    x -> norm -> q, k, v -> rotate -> attention -> o -> + x -> norm -> SwiGLU -> + x

Llama 2, section 2.2: pre-normalisation with RMSNorm, rotary embeddings, grouped-query attention,
SwiGLU. The residual stream and all matrix products have x's dtype; norms, rotary angles, attention
logits and softmax are float32.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from llama_jax.config import InputError, ModelConfig
from llama_jax.model.weights import layer_weights
from llama_jax.ops.attention import dot_product_attention
from llama_jax.ops.cached_attention import VALUES, Order, cache_order, cached_attention
from llama_jax.ops.capabilities import Unsupported
from llama_jax.ops.linear import project
from llama_jax.ops.mlp import gate_up, gated_down
from llama_jax.ops.norm import rms_norm
from llama_jax.ops.rope import apply_rope, rope_frequencies
from llama_jax.parallel.fsdp import by_rows
from llama_jax.parallel.rules import constrain, relayout, spec_in_context

# The stream between two blocks, and what a block reads: under tensor parallelism its parts of the
# heads or of the MLP need all positions of a row, and leave sums that are scattered over them.
BY_POSITION = ("batch", "norm_seq", "act_embed")
WHOLE = ("batch", "seq", "act_embed")

Cache = tuple[Float[Array, "B x y z"], Float[Array, "B x2 y2 z2"]]
"""Keys and values, their axes as `order_of_cache` says."""


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
    axes = {name: weight.axes for name, weight in layer_weights(cfg).items()}

    def run(function: Callable[..., Any], *names: str, rows: tuple) -> Any:
        own = {name: w[name] for name in names}
        return by_rows(function, own, axes, *rows) if kv is None else function(own, *rows)

    attended, kv = attention_block(run, x, kv, positions, segment_ids, cfg=cfg, zigzag=zigzag)
    x = constrain(x + attended, BY_POSITION)
    return constrain(x + mlp_block(run, x, cfg=cfg), BY_POSITION), kv


@jax.named_scope("attention")
def attention_block(run, x, kv, positions, segment_ids, *, cfg: ModelConfig, zigzag: bool):
    """Normed, projected, rotated, attended, projected back: what is added to x, and the cache."""
    rotary = rope_frequencies(
        cfg.head_dim,
        theta=cfg.rope_theta,
        scaling=cfg.rope_scaling,
        factor=cfg.rope_factor,
        pretrained_len=cfg.pretrained_seq_len,
    )

    def attended(w, x, kv, positions, segment_ids):
        h = relayout(rms_norm(x, w["attn_norm"], eps=cfg.norm_eps), WHOLE, BY_POSITION)
        q = checkpoint_name(apply_rope(project(h, w["q"]), positions, *rotary), "q")
        k = checkpoint_name(apply_rope(project(h, w["k"]), positions, *rotary), "k")
        v = checkpoint_name(project(h, w["v"]), "v")
        with settings_refused(cfg):
            return attend(q, k, v, kv, positions, segment_ids, cfg=cfg, zigzag=zigzag)

    def back(w, out):
        return relayout(project(out, w["o"], inputs=2), BY_POSITION, WHOLE)

    rows = (x, kv, positions, segment_ids)
    out, kv = run(attended, "attn_norm", "q", "k", "v", rows=rows)
    return run(back, "o", rows=(out,)), kv


@jax.named_scope("mlp")
def mlp_block(run, x, *, cfg: ModelConfig):
    """SwiGLU (Shazeer 2020): (silu(h gate) * (h up)) down."""

    def products(w, x):
        h = relayout(rms_norm(x, w["mlp_norm"], eps=cfg.norm_eps), WHOLE, BY_POSITION)
        return gate_up(h, w["gate"], w["up"])

    def down(w, g, u):
        return relayout(gated_down(g, u, w["down"]), BY_POSITION, WHOLE)

    return run(down, "down", rows=run(products, "mlp_norm", "gate", "up", rows=(x,)))


def attend(q, k, v, kv, positions, segment_ids, *, cfg: ModelConfig, zigzag: bool):
    """Attention within x, or to a cache that the new keys and values are written to first."""
    if kv is None:
        spec = spec_in_context(("batch", "seq", "heads", "head_dim"), q.shape)
        options = {"implementation": implementation(cfg), "spec": spec, "zigzag": zigzag}
        return dot_product_attention(q, k, v, segment_ids=segment_ids, **options), None
    start, order = positions[:, 0], order_of_cache(cfg, q.shape[0])
    kv = write_cache(kv, k, v, start, order)
    return cached_attention(q, *kv, start, order=order, spec=cache_spec(cfg, q.shape[0])), kv


def implementation(cfg: ModelConfig) -> str | None:
    """What `ops.attention` calls the configured attention."""
    return None if cfg.attention == "auto" else cfg.attention


def cache_spec(cfg: ModelConfig, B: int) -> PartitionSpec | None:
    """How B rows of new queries, and a cache like them, are split over the mesh in context."""
    axes, shape = ("batch", None, "heads", "head_dim"), (B, 1, cfg.num_heads, cfg.head_dim)
    return spec_in_context(axes, shape)


def order_of_cache(cfg: ModelConfig, B: int) -> Order:
    """The axes of the keys of a cache of B rows, the same for the program that makes it and all
    that use it; those of the values follow (`cached_attention.VALUES`)."""
    N, K, H = cfg.num_heads, cfg.num_kv_heads, cfg.head_dim
    sizes = {"B": B, "N": N, "K": K, "H": H}
    with settings_refused(cfg):
        spec = cache_spec(cfg, B)
        return cache_order(implementation(cfg), **sizes, dtype=cfg.dtype, spec=spec)


@contextlib.contextmanager
def settings_refused(cfg: ModelConfig) -> Iterator[None]:
    """What a named attention cannot do, as the fault of the setting that named it."""
    try:
        yield
    except Unsupported as error:
        raise InputError(f"model.attention={cfg.attention}: {error}") from error


def write_cache(kv: Cache, k: Array, v: Array, start: Int[Array, " B"], order: Order) -> Cache:
    """Row b's new keys and values [T,K,H] at positions start[b] onwards of its cache.

    The cache has the order of axes in which attention reads it, so that no step transposes all of
    it.
    """
    place = jax.vmap(jax.lax.dynamic_update_slice_in_dim, (0, 0, 0, None))

    def write(cache, new, axes):
        new = new.transpose(["BSKH".index(axis) for axis in axes]).astype(cache.dtype)
        return place(cache, new, start, axes.index("S") - 1)

    # Without the barrier XLA writes once more into a copy, fused with what reads it.
    return jax.lax.optimization_barrier((write(kv[0], k, order), write(kv[1], v, VALUES[order])))
