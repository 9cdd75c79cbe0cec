"""From logits to a token: greedy, temperature, top-k, top-p.

Each row has its own key, so that what a row draws depends on its own logits and seed alone,
whatever its neighbours in the batch.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key


def sample(
    logits: Float[Array, "B V"],
    keys: Key[Array, " B"],
    *,
    temperature: Float[Array, " B"],
    top_k: Int[Array, " B"],
    top_p: Float[Array, " B"],
) -> Int[Array, " B"]:
    """One token for each row, int32.

    Temperature 0 takes the largest logit (the first of equals). Otherwise the logits are divided by
    it, the `top_k` largest are kept (0 for all), then the fewest of those whose probability reaches
    `top_p` (1 for all; Holtzman et al. 2020), and one is drawn in proportion.
    """
    greedy = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    warm = jnp.where(temperature > 0, temperature, 1.0)
    kept = truncate(logits / warm[:, None], top_k=top_k, top_p=top_p)
    drawn = jax.vmap(jax.random.categorical)(keys, kept).astype(jnp.int32)
    return jnp.where(temperature > 0, drawn, greedy)


def truncate(
    logits: Float[Array, "B V"], *, top_k: Int[Array, " B"], top_p: Float[Array, " B"]
) -> Float[Array, "B V"]:
    """The logits with everything outside top-k and top-p at -inf; the largest always stays."""
    order = jnp.argsort(logits, axis=-1, descending=True, stable=True)
    sorted_logits = jnp.take_along_axis(logits, order, axis=-1)
    rank = jnp.arange(logits.shape[-1])[None]
    limit = jnp.where(top_k > 0, top_k, logits.shape[-1])[:, None]
    sorted_logits = jnp.where(rank < limit, sorted_logits, -jnp.inf)
    probability = jax.nn.softmax(sorted_logits, axis=-1)
    before = jnp.cumsum(probability, axis=-1) - probability
    inside = jnp.logical_or(before < top_p[:, None], rank == 0)
    # top_p = 1 keeps everything: rounding of the running sum must not drop the tail.
    inside = jnp.logical_or(inside, top_p[:, None] >= 1)
    kept = jnp.where(inside, sorted_logits, -jnp.inf)
    return jnp.put_along_axis(jnp.empty_like(logits), order, kept, axis=-1, inplace=False)
