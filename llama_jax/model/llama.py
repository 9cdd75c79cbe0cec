"""The Flax shell: it declares parameters and scans the layer; the functions do the computing."""

from dataclasses import replace
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from llama_jax.config import ModelConfig
from llama_jax.model.layer import BY_POSITION, WHOLE, decoder_layer
from llama_jax.model.matrix import dense, matrices, outer_matrices, rows
from llama_jax.model.precision import compute_weights, keep_master_weights
from llama_jax.model.weights import Weight, layer_weights, outer_weights
from llama_jax.ops.norm import rms_norm
from llama_jax.parallel.fsdp import by_rows
from llama_jax.parallel.rules import constrain, relayout

_policies = jax.checkpoint_policies
# "out" and "lse" are named by attention itself: what its backward pass reads.
_NAMES = ("q", "k", "v", "out", "lse")
REMAT_POLICIES = {
    "full": _policies.nothing_saveable,
    "dots": _policies.dots_with_no_batch_dims_saveable,
    "qkvo": _policies.save_only_these_names(*_NAMES),
    "offload": _policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=list(_NAMES),
        offload_src="device",
        offload_dst="pinned_host",
    ),
}


def declare(module: nn.Module, table: dict[str, Weight], cfg: ModelConfig) -> dict[str, Array]:
    """The one place where weights are declared, in the dtype that they are stored in."""
    return {
        name: module.param(name, w.init, w.shape, jnp.dtype(w.dtype or cfg.param_dtype))
        for name, w in table.items()
    }


class DecoderLayer(nn.Module):
    """`decoder_layer` with declared weights, the body of a scan; decoding with a cache uses
    cache.py."""

    cfg: ModelConfig
    zigzag: bool = False

    @nn.compact
    def __call__(self, x, positions, segment_ids):
        """See `decoder_layer`."""
        cfg = self.cfg
        table = layer_weights(cfg)
        weights = declare(self, table, cfg)
        if cfg.dtype != cfg.param_dtype:
            weights, x = keep_master_weights(weights, x)
        w = compute_weights(weights, table, self.variables.get("slots", {}), cfg.dtype)
        w = matrices(w, cfg)
        return decoder_layer(w, x, None, positions, segment_ids, cfg=cfg, zigzag=self.zigzag)


class Llama(nn.Module):
    """Embedding, a scanned stack of layers, last norm; the head is left to the caller."""

    cfg: ModelConfig
    zigzag: bool = False

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"] | None = None,
        segment_ids: Int[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T D"], Any]:
        """Normed residual stream and the head: [D,V], or the weights of a score (model/heads.py).

        Logits are x @ head; they are left to the loss and to sampling, which take few positions at
        a time. Positions default to 0..T-1.
        """
        cfg = self.cfg
        outer = outer_weights(cfg)
        weights = declare(self, outer, cfg)
        w = compute_weights(weights, outer, self.variables.get("slots", {}), cfg.dtype)
        w = outer_matrices(w, cfg)
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(tokens.shape[1])[None], tokens.shape)
        axes = outer_matrices({name: weight.axes for name, weight in outer.items()}, cfg)
        x = by_rows(partial(rows, dtype=cfg.dtype), w["embed"], axes["embed"], tokens)
        x = constrain(x, BY_POSITION)
        layer = DecoderLayer
        if cfg.remat != "none":
            layer = nn.remat(layer, prevent_cse=False, policy=REMAT_POLICIES[cfg.remat])
        stack = nn.scan(
            layer,
            length=cfg.num_layers,
            variable_axes={"params": 0, "slots": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
        )(cfg, self.zigzag, name="layers")
        x, _ = stack(x, positions, segment_ids)
        # Each part of the vocabulary is multiplied with all positions.
        x = relayout(rms_norm(x, w["norm"], eps=cfg.norm_eps), WHOLE, BY_POSITION)
        if cfg.head == "score":
            return x, {name: w[name] for name in ("score", "score_bias")}
        return x, dense(w["embed"].T if cfg.tie_embeddings else w["head"], cfg.dtype)


@partial(jax.jit, static_argnames="cfg")
def init_params(key: Array, cfg: ModelConfig) -> dict:
    """Fresh parameters: the tree of `weights.abstract_params`."""
    # One token declares them all; no mesh splits it, which some attentions would ask for.
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    variables: Any = Llama(replace(cfg, attention="xla")).lazy_init(key, tokens)
    return variables["params"]


def hidden(
    params: dict,
    tokens: Array,
    *,
    config: ModelConfig,
    positions=None,
    segment_ids=None,
    zigzag=False,
    slots: dict | None = None,
):
    """Normed residual stream [B,T,D] and head of a forward pass without a cache, see `Llama`.

    With `zigzag` the positions of all arrays are in the order of `ops.ring_attention.zigzag`;
    `slots` as in `precision.gradient_slots`.
    """
    variables = {"params": params} if slots is None else {"params": params, "slots": slots}
    out: Any = Llama(config, zigzag).apply(variables, tokens, positions, segment_ids)
    return out


def apply(
    params: dict,
    tokens: Int[Array, "B T"],
    *,
    config: ModelConfig,
    positions: Int[Array, "B T"] | None = None,
    segment_ids: Int[Array, "B T"] | None = None,
) -> Float[Array, "B T V"]:
    """Logits of every position, float32. Packed rows need positions and segment ids."""
    x, head = hidden(params, tokens, config=config, positions=positions, segment_ids=segment_ids)
    return jnp.einsum("BTD,DV->BTV", x, head, preferred_element_type=jnp.float32)
