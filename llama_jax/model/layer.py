"""One decoder layer as a pure function of its weights: the page to read first.

    x -> norm -> q, k, v -> rotate -> attention -> o -> + x -> norm -> SwiGLU -> + x

Llama 2, section 2.2: pre-normalisation with RMSNorm, rotary embeddings, grouped-query attention,
SwiGLU. The residual stream and all matrix products have x's dtype; norms, rotary angles, attention
logits and softmax are float32.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from llama_jax.config import InputError, ModelConfig
from llama_jax.model.matrix import Matrix, gate_up, gated_down, matrices, project
from llama_jax.model.weights import layer_weights
from llama_jax.ops.attention import dot_product_attention
from llama_jax.ops.cached_attention import VALUES, Order, cache_order, cached_attention
from llama_jax.ops.capabilities import Unsupported
from llama_jax.ops.int8_cache import Int8Pages, rounded
from llama_jax.ops.norm import rms_norm
from llama_jax.ops.paged_attention import Pool, paged_attention, write_pages
from llama_jax.ops.rope import apply_rope, rope_frequencies
from llama_jax.parallel.fsdp import by_rows
from llama_jax.parallel.rules import constrain, relayout, spec_in_context

# The stream between two blocks, and what a block reads: under tensor parallelism its parts of the
# heads or of the MLP need all positions of a row, and leave sums that are scattered over them.
BY_POSITION = ("batch", "norm_seq", "act_embed")
WHOLE = ("batch", "seq", "act_embed")

Cache = tuple[Float[Array, "B x y z"], Float[Array, "B x2 y2 z2"]]
"""Keys and values, with axes as `order_of_cache` says."""


class Pages(NamedTuple):
    """A paged cache, see `ops.paged_attention`: P pages of keys and values, and the page table of
    the rows."""

    keys: Pool
    values: Pool
    table: Int[Array, "B pages"]


def decoder_layer(
    w: Mapping[str, Matrix],
    x: Float[Array, "B T D"],
    kv: Cache | Pages | None,
    positions: Int[Array, "B T"],
    segment_ids: Int[Array, "B T"] | None,
    *,
    cfg: ModelConfig,
    zigzag: bool = False,
) -> tuple[Float[Array, "B T D"], Cache | Pages | None]:
    """The layer's output and its updated cache.

    Args:
      w: the tensors of `layer_weights`, in x's dtype (norms may be float32); see `matrix.matrices`.
      kv: keys and values of this layer's earlier positions; the T new ones are written at
        positions[:, 0] onwards. None to attend within x alone.
      positions: of each token in its document; with a cache, of each token in its row.
      segment_ids: document of each token; tokens see their own document only. Not with a cache.
      zigzag: the tokens of a row are in zigzag order over the mesh's sequence axis (see
        `ops.ring_attention`), not in natural order.
    """
    axes = matrices({name: weight.axes for name, weight in layer_weights(cfg).items()}, cfg)

    def stage(function: Callable[..., Any], names: str, *rows: Any) -> Any:
        own = {name: w[name] for name in names.split()}
        # Generation leaves the weights split as they are; training has them whole for own rows.
        its = {name: axes[name] for name in own}
        return by_rows(function, own, its, *rows) if kv is None else function(own, *rows)

    with jax.named_scope("attention"):
        attend = partial(attention, cfg=cfg, zigzag=zigzag)
        out, kv_new = stage(attend, "attn_norm q k v", x, kv, positions, segment_ids)
        added = stage(attention_output, "o", out)
    x = constrain(x + added, BY_POSITION)
    with jax.named_scope("mlp"):
        g, u = stage(partial(mlp, cfg=cfg), "mlp_norm gate up", x)
        added = stage(mlp_output, "down", g, u)
    return constrain(x + added, BY_POSITION), kv_new


def attention(w, x, kv, positions, segment_ids, *, cfg: ModelConfig, zigzag: bool):
    """Norm, projections, rotation and attention: the heads' outputs [B,T,N,H], and the cache."""
    rotary = rope_frequencies(
        cfg.head_dim,
        theta=cfg.rope_theta,
        scaling=cfg.rope_scaling,
        factor=cfg.rope_factor,
        pretrained_len=cfg.pretrained_seq_len,
    )
    h = relayout(rms_norm(x, w["attn_norm"], eps=cfg.norm_eps), WHOLE, BY_POSITION)
    q = checkpoint_name(apply_rope(project(h, w["q"]), positions, *rotary), "q")
    k = checkpoint_name(apply_rope(project(h, w["k"]), positions, *rotary), "k")
    v = checkpoint_name(project(h, w["v"]), "v")
    in_pages = isinstance(kv, Pages) and isinstance(kv.keys, Int8Pages)  # rounds what it writes
    if cfg.quant is not None and cfg.quant.kv == "int8" and not in_pages:
        k, v = rounded(k), rounded(v)
    with settings_refused(cfg):
        if kv is None:
            return attend_within(q, k, v, segment_ids, cfg=cfg, zigzag=zigzag), None
        return attend_to_cache(q, k, v, kv, positions[:, 0], cfg=cfg)


def attention_output(w, out):
    """The heads' outputs [B,T,N,H], projected for the residual stream."""
    return relayout(project(out, w["o"], inputs=2), BY_POSITION, WHOLE)


def mlp(w, x, *, cfg: ModelConfig):
    """Norm and the first two projections of SwiGLU (silu(gate) * up) down: gate and up [B,T,F]."""
    h = relayout(rms_norm(x, w["mlp_norm"], eps=cfg.norm_eps), WHOLE, BY_POSITION)
    return gate_up(h, w["gate"], w["up"])


def mlp_output(w, g, u):
    """SwiGLU's second half (Shazeer 2020), for the residual stream."""
    return relayout(gated_down(g, u, w["down"]), BY_POSITION, WHOLE)


def attend_within(q, k, v, segment_ids, *, cfg: ModelConfig, zigzag: bool):
    """Causal attention within each document of a row."""
    return dot_product_attention(
        q,
        k,
        v,
        segment_ids=segment_ids,
        implementation=implementation(cfg),
        spec=spec_in_context(("batch", "seq", "heads", "head_dim"), q.shape),
        zigzag=zigzag,
    )


def attend_to_cache(q, k, v, kv: Cache | Pages, start: Int[Array, " B"], *, cfg: ModelConfig):
    """Causal attention to a cache, to which the new keys and values are written first."""
    B = q.shape[0]
    if isinstance(kv, Pages):
        order = order_of_cache(cfg, kv.keys.shape[0])
        pool = write_pages(kv.keys, kv.values, k, v, kv.table, start, order=order)
        out = paged_attention(q, *pool, kv.table, start, order=order, spec=cache_spec(cfg, B))
        return out, Pages(*pool, kv.table)
    order = order_of_cache(cfg, B)
    kv = write_cache(kv, k, v, start, order)
    return cached_attention(q, *kv, start, order=order, spec=cache_spec(cfg, B)), kv


def implementation(cfg: ModelConfig) -> str | None:
    """The name that `ops.attention` has for the configured attention."""
    return None if cfg.attention == "auto" else cfg.attention


def cache_spec(cfg: ModelConfig, B: int) -> PartitionSpec | None:
    """The sharding of B rows of new queries, and of a cache like them, over the mesh in context."""
    axes, shape = ("batch", None, "heads", "head_dim"), (B, 1, cfg.num_heads, cfg.head_dim)
    return spec_in_context(axes, shape)


def order_of_cache(cfg: ModelConfig, B: int) -> Order:
    """The axes of the keys of a cache of B rows, the same for the program that makes it and all
    that use it; the axes of the values follow from it (`cached_attention.VALUES`)."""
    N, K, H = cfg.num_heads, cfg.num_kv_heads, cfg.head_dim
    sizes = {"B": B, "N": N, "K": K, "H": H}
    with settings_refused(cfg):
        spec = cache_spec(cfg, B)
        return cache_order(implementation(cfg), **sizes, dtype=cfg.dtype, spec=spec)


@contextlib.contextmanager
def settings_refused(cfg: ModelConfig) -> Iterator[None]:
    """Context that reports what a named attention cannot do as a fault of the setting that names
    it."""
    try:
        yield
    except Unsupported as error:
        raise InputError(f"model.attention={cfg.attention}: {error}") from error


def write_cache(kv: Cache, k: Array, v: Array, start: Int[Array, " B"], order: Order) -> Cache:
    """Row b's new keys and values [T,K,H] at positions start[b] onwards of its cache.

    The cache has the axis order in which attention reads it, so that no step transposes all of it.
    """
    place = jax.vmap(jax.lax.dynamic_update_slice_in_dim, (0, 0, 0, None))

    def write(cache, new, axes):
        new = new.transpose(["BSKH".index(axis) for axis in axes]).astype(cache.dtype)
        return place(cache, new, start, axes.index("S") - 1)

    # Without the barrier XLA writes once more into a copy, fused with what reads it.
    return jax.lax.optimization_barrier((write(kv[0], k, order), write(kv[1], v, VALUES[order])))
