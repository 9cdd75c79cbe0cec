"""Scalar heads: one number per position, the score of a reward model or the value of a critic.

The head computes in float32 whatever the decoder computes in: bfloat16 scores tie, and ties cannot
be ranked.
"""

from collections.abc import Mapping
from dataclasses import replace

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from llama_jax.config import ModelConfig, require
from llama_jax.model.weights import Weight, outer_weights

HEAD = ("score", "score_bias")
"""Names of its tensors, [D,1] and [1], among the parameters of a model with `head="score"`."""


def score_head(cfg: ModelConfig, *, zeros: bool = False) -> dict[str, Weight]:
    """Rows of the scalar head of a model of this width, whatever head its settings name.

    zeros: initial values for a value head that starts from nothing.
    """
    rows = outer_weights(replace(cfg, head="score"))
    table = {name: rows[name] for name in HEAD}
    if zeros:
        table["score"] = table["score"]._replace(init=jax.nn.initializers.zeros)
    return table


def init_head(key: Key[Array, ""], table: Mapping[str, Weight]) -> dict[str, Array]:
    """Fresh float32 values of the rows of a head."""
    keys = jax.random.split(key, len(table))
    return {
        name: w.init(k, w.shape, jnp.float32)
        for k, (name, w) in zip(keys, table.items(), strict=True)
    }


def apply_head(w: Mapping[str, Array], x: Float[Array, "... D"]) -> Float[Array, "..."]:
    """x score + bias of each vector, float32; x is the normed residual stream in any dtype."""
    # Products and a sum rather than a matrix product, which a TPU would make of bfloat16 parts.
    column = jnp.expand_dims(w["score"][:, 0].astype(jnp.float32), tuple(range(x.ndim - 1)))
    total = jnp.sum(x.astype(jnp.float32) * column, axis=-1)
    return total + jnp.reshape(w["score_bias"].astype(jnp.float32), (1,) * total.ndim)


def rescale_head(
    w: Mapping[str, Array], mu: float | Float[Array, ""], sigma: float | Float[Array, ""]
) -> dict[str, Array]:
    """The head whose output is (apply_head(w, x) - mu) / sigma.

    With the mean and standard deviation of a reward model's scores, a value head that starts from
    that model predicts whitened rewards from its first step.

    Raises:
      InputError: sigma is not positive.
    """
    require(sigma > 0, f"sigma={sigma} must be positive: the scores have no spread to divide by")
    return {"score": w["score"] / sigma, "score_bias": (w["score_bias"] - mu) / sigma}
