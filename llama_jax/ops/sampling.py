"""Samples tokens from logits: greedy, temperature, top-k, top-p.

Each row has its own key, so that what a row draws depends on its own logits and seed alone,
whatever its neighbours in the batch.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

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
    rank = _ranks(logits)
    everything = jnp.ones(logits.shape, bool)
    inside = jax.lax.cond(
        jnp.any(top_k > 0), lambda: _most_probable(rank, top_k), lambda: everything
    )
    kept = jax.lax.cond(
        jnp.any(top_p < 1), lambda: _nucleus(logits, rank, inside, top_p), lambda: inside
    )
    return jnp.where(kept, logits, -jnp.inf)


def _ranks(x: Float[Array, "B V"]) -> UInt32[Array, "B V"]:
    """Numbers in the order of x: its bits, those of negative numbers turned over."""
    bits = jax.lax.bitcast_convert_type(x + 0.0, jnp.uint32)  # -0.0 equals 0.0
    return jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))


def _largest_reaching(
    rank: UInt32[Array, "B V"],
    reaches: Callable[[Bool[Array, "B V"]], Bool[Array, " B"]],
) -> UInt32[Array, "B 1"]:
    """The largest rank of each row such that those from it upwards are enough: bit by bit, where
    sorting would order all that nobody asks for.

    reaches: whether some tokens of each row are enough.
    """

    def body(n, found):
        tried = found | jnp.uint32(1) << (31 - jnp.asarray(n, jnp.uint32))
        return jnp.where(reaches(rank >= tried[:, None]), tried, found)

    return jax.lax.fori_loop(0, 32, body, jnp.zeros(len(rank), jnp.uint32))[:, None]


def _most_probable(rank, top_k):
    """The top_k largest of each row; all where it is 0."""
    V = rank.shape[1]
    count = jnp.where(top_k > 0, jnp.minimum(top_k, V), V)
    smallest = _largest_reaching(rank, lambda some: jnp.sum(some, axis=-1) >= count)
    above = rank > smallest
    ties = count - jnp.sum(above, axis=-1)
    return jnp.logical_or(above, _first(rank == smallest, ties))


def _nucleus(logits, rank, inside, top_p):
    """The fewest of those inside that reach top_p of their probability; all where it is 1."""
    largest = jnp.max(logits, axis=-1, keepdims=True)
    weight = jnp.where(inside, jnp.exp(logits - largest), 0.0)

    def mass(some):
        return ordered_sum(jnp.where(some, weight, 0.0))

    wanted = top_p * mass(inside)
    smallest = _largest_reaching(rank, lambda some: mass(some) >= wanted)
    above = rank > smallest
    equal = jnp.logical_and(inside, rank == smallest)
    each = jnp.max(jnp.where(equal, weight, 0.0), axis=-1)
    ties = jnp.ceil((wanted - mass(above)) / each).astype(jnp.int32)
    kept = jnp.logical_or(jnp.logical_and(inside, above), _first(equal, jnp.maximum(ties, 1)))
    # Rounding of the sums must not drop the tail.
    return jnp.where(top_p[:, None] < 1, kept, inside)


def _first(some, count):
    """The first `count` of some tokens in each row."""
    return jnp.logical_and(some, jnp.cumsum(some, axis=-1) <= count[:, None])
