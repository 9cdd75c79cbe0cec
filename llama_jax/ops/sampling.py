"""Samples tokens from logits: greedy, temperature, top-k, top-p.

Each row has its own key, so that what a row draws depends on its own logits and seed alone,
whatever its neighbours in the batch.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from llama_jax.ops.ordered_sum import ordered_sum


def sampling_logits(
    logits: Float[Array, "B V"],
    *,
    temperature: Float[Array, " B"],
    top_k: Int[Array, " B"],
    top_p: Float[Array, " B"],
    vocab_limit: int | Int[Array, ""],
) -> Float[Array, "B V"]:
    """Logits of the distribution that each row samples from, with a maximum of 0.

    Tokens from `vocab_limit` on are padding rows of the table and stand for no text: -inf. The
    others are divided by the temperature; then the `top_k` largest are kept (0 for all), and of
    those the fewest whose probability reaches `top_p` (1 for all; Holtzman et al. 2020); the rest
    is -inf. Of equal logits those with the lower ids count as larger. A greedy row (temperature 0)
    keeps its logits as at temperature 1. Work that no row asks for is skipped.
    """
    spelled = jnp.arange(logits.shape[-1])[None] < vocab_limit
    largest = jnp.max(jnp.where(spelled, logits, -jnp.inf), axis=-1, keepdims=True)
    drawn = temperature > 0
    # From the largest down: a tiny temperature makes -inf of the others, and never inf.
    warm = (logits - largest) / jnp.where(drawn, temperature, 1.0)[:, None]
    warm = jnp.where(spelled, warm, -jnp.inf)
    top_k, top_p = jnp.where(drawn, top_k, 0), jnp.where(drawn, top_p, 1.0)
    return jax.lax.cond(
        jnp.any(jnp.logical_or(top_k > 0, top_p < 1)),
        lambda: truncate(warm, top_k=top_k, top_p=top_p),
        lambda: warm,
    )


def draw(
    logits: Float[Array, "B V"], keys: Key[Array, " B"], *, temperature: Float[Array, " B"]
) -> Int[Array, " B"]:
    """One token for each row of `sampling_logits`, int32, sampled by its probability; at
    temperature 0 the most probable one (the first of equals)."""
    greedy = _first_largest(logits)

    def noisy():
        # The largest after adding Gumbel noise is a draw in proportion (Gumbel 1954).
        noise = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[1:], jnp.float32))(keys)
        return jnp.where(temperature > 0, _first_largest(logits + noise), greedy)

    return jax.lax.cond(jnp.any(temperature > 0), noisy, lambda: greedy)


def log_probability(logits: Float[Array, "B V"], tokens: Int[Array, " B"]) -> Float[Array, " B"]:
    """Log-probability of one token in each row of `sampling_logits`, in nats."""
    chosen = jnp.take_along_axis(logits, tokens[:, None], axis=-1)[:, 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)


def _first_largest(x: Float[Array, "B V"]) -> Int[Array, " B"]:
    """The lowest index of the largest value: argmax, of which XLA's CPU backend makes a loop over
    single elements. It has fast ones for a maximum of floats and a minimum of integers."""
    V = x.shape[-1]
    largest = jnp.max(x, axis=-1, keepdims=True)
    # Where x is not a number nothing is smaller, and the answer is 0.
    found = jnp.where(x < largest, V - 1, jnp.arange(V, dtype=jnp.int32)[None])
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
    weight = jnp.exp(jnp.where(inside, descending - descending[:, :1], -jnp.inf))
    probability = weight / ordered_sum(weight)[:, None]
    before = jnp.cumsum(probability, axis=-1) - probability
    # top_p = 1 keeps everything: rounding of the running sum must not drop the tail.
    wanted = jnp.logical_or(before < top_p[:, None], top_p[:, None] >= 1)
    count = jnp.maximum(jnp.sum(jnp.logical_and(inside, wanted), axis=-1, keepdims=True), 1)
    smallest = jnp.take_along_axis(descending, count - 1, axis=-1)
    above, equal = logits > smallest, logits == smallest
    ties = count - jnp.sum(above, axis=-1, keepdims=True)
    first = jnp.logical_and(equal, jnp.cumsum(equal, axis=-1) <= ties)
    return jnp.where(jnp.logical_or(above, first), logits, -jnp.inf)
