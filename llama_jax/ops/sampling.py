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
    `top_p` (1 for all; Holtzman et al. 2020), and one is drawn in proportion. Of equal logits those
    with the lower ids count as larger. Work that no row asks for is not done.
    """
    greedy = _first_largest(logits)

    def draw():
        warm = logits / jnp.where(temperature > 0, temperature, 1.0)[:, None]
        kept = jax.lax.cond(
            jnp.any(jnp.logical_or(top_k > 0, top_p < 1)),
            lambda: truncate(warm, top_k=top_k, top_p=top_p),
            lambda: warm,
        )
        # The largest after adding Gumbel noise is a draw in proportion (Gumbel 1954).
        noise = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[1:]))(keys)
        return jnp.where(temperature > 0, _first_largest(kept + noise), greedy)

    return jax.lax.cond(jnp.any(temperature > 0), draw, lambda: greedy)


def _first_largest(x: Float[Array, "B V"]) -> Int[Array, " B"]:
    """The lowest index of the largest value: argmax, of which XLA's CPU backend makes a loop over
    single elements. It has fast ones for a maximum of floats and a minimum of integers."""
    V = x.shape[-1]
    largest = jnp.max(x, axis=-1, keepdims=True)
    found = jnp.where(x == largest, jnp.arange(V, dtype=jnp.int32)[None], V - 1)
    return jnp.min(found, axis=-1)


def truncate(
    logits: Float[Array, "B V"], *, top_k: Int[Array, " B"], top_p: Float[Array, " B"]
) -> Float[Array, "B V"]:
    """The logits with everything outside top-k and top-p at -inf; the largest always stays."""
    V = logits.shape[-1]
    # How many stay is read off the sorted values; sorting indices along would cost several times
    # as much. Which stay is then a comparison with the smallest of them.
    descending = jnp.sort(logits, axis=-1, descending=True)
    limit = jnp.where(top_k > 0, jnp.minimum(top_k, V), V)[:, None]
    inside = jnp.arange(V)[None] < limit
    probability = jax.nn.softmax(jnp.where(inside, descending, -jnp.inf), axis=-1)
    before = jnp.cumsum(probability, axis=-1) - probability
    # top_p = 1 keeps everything: rounding of the running sum must not drop the tail.
    wanted = jnp.logical_or(before < top_p[:, None], top_p[:, None] >= 1)
    count = jnp.maximum(jnp.sum(jnp.logical_and(inside, wanted), axis=-1, keepdims=True), 1)
    smallest = jnp.take_along_axis(descending, count - 1, axis=-1)
    above, equal = logits > smallest, logits == smallest
    ties = count - jnp.sum(above, axis=-1, keepdims=True)
    first = jnp.logical_and(equal, jnp.cumsum(equal, axis=-1) <= ties)
    return jnp.where(jnp.logical_or(above, first), logits, -jnp.inf)
