"""Top-k and top-p against float64 NumPy; greedy."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_jax.ops.sampling import sample, truncate

V = 12
CUT = jax.jit(lambda x, k, p: truncate(x, top_k=k, top_p=p))


def kept_by_definition(logits, top_k, top_p):
    """Ids that stay: the top_k largest, then the fewest of them that reach top_p."""
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    order = order[:top_k] if top_k else order
    weights = np.exp(np.array([logits[i] for i in order], np.float64) - max(logits))
    weights /= weights.sum()
    if top_p >= 1:
        return set(order)
    total, kept = 0.0, []
    for i, w in zip(order, weights, strict=True):
        kept.append(i)
        total += w
        if total >= top_p:
            break
    return set(kept)


@given(
    # Quarters: ties are common and sums of probabilities stay away from the thresholds.
    st.lists(st.integers(-12, 12), min_size=V, max_size=V),
    st.integers(0, V + 3),
    st.sampled_from([0.013, 0.31, 0.57, 0.83, 0.991, 1.0]),
)
@settings(deadline=None, max_examples=100)
def test_what_stays_is_what_the_definition_keeps(quarters, top_k, top_p):
    logits = np.array(quarters, np.float32) / 4
    cut = CUT(jnp.asarray(logits)[None], jnp.array([top_k]), jnp.array([top_p], jnp.float32))
    cut = np.asarray(cut)[0]
    kept = set(np.flatnonzero(np.isfinite(cut)).tolist())
    assert kept == kept_by_definition(logits.tolist(), top_k, top_p)
    assert all(cut[i] == logits[i] for i in kept)


def test_rows_may_want_different_things():
    logits = jnp.asarray(np.random.default_rng(0).standard_normal((3, V)), jnp.float32)
    keys = jax.random.split(jax.random.key(0), 3)
    tokens = sample(
        logits,
        keys,
        temperature=jnp.array([0.0, 5.0, 5.0]),
        top_k=jnp.array([0, 1, 0]),
        top_p=jnp.array([1.0, 1.0, 1e-6]),
    )
    # Greedy, top-1 and a vanishing nucleus all take the largest logit.
    np.testing.assert_array_equal(tokens, np.argmax(np.asarray(logits), axis=-1))


def test_greedy_takes_the_first_of_equals():
    logits = jnp.zeros((1, V)).at[0, 3].set(2.0).at[0, 7].set(2.0)
    options = {"temperature": jnp.zeros(1), "top_k": jnp.zeros(1, int), "top_p": jnp.ones(1)}
    assert int(sample(logits, jax.random.split(jax.random.key(0), 1), **options)[0]) == 3


def test_tokens_are_drawn_in_proportion():
    n, temperature = 4096, 2.0
    logits = np.random.default_rng(1).standard_normal(7)
    weights = np.exp(logits / temperature)
    expected = n * weights / weights.sum()
    tokens = sample(
        jnp.broadcast_to(jnp.asarray(logits, jnp.float32), (n, 7)),
        jax.random.split(jax.random.key(0), n),
        temperature=jnp.full(n, temperature),
        top_k=jnp.zeros(n, int),
        top_p=jnp.ones(n),
    )
    counts = np.bincount(np.asarray(tokens), minlength=7)
    statistic = np.sum((counts - expected) ** 2 / expected)
    assert 0 < statistic < 22.5  # chi-square, 6 degrees of freedom: 999 of 1000 seeds pass
