"""Top-k and top-p against float64 NumPy; greedy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_jax.ops.sampling import draw, log_probability, sampling_logits, truncate

V = 12
LAW = jax.jit(sampling_logits)


def law(logits, *, temperature=1.0, top_k=0, top_p=1.0, vocab_limit=None):
    """`sampling_logits` of rows that want the same, or (given lists) different things."""
    logits = jnp.asarray(logits, jnp.float32)
    rows = logits.shape[0]
    return LAW(
        logits,
        temperature=jnp.broadcast_to(jnp.asarray(temperature, jnp.float32), rows),
        top_k=jnp.broadcast_to(jnp.asarray(top_k, jnp.int32), rows),
        top_p=jnp.broadcast_to(jnp.asarray(top_p, jnp.float32), rows),
        vocab_limit=logits.shape[1] if vocab_limit is None else vocab_limit,
    )


def drawn(logits, *, temperature=1.0, seed=0, **options):
    """One token for each row."""
    kept = law(logits, temperature=temperature, **options)
    keys = jax.random.split(jax.random.key(seed), len(kept))
    return np.asarray(draw(kept, keys, temperature=jnp.broadcast_to(temperature, len(kept))))


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


def test_top_p_stops_where_the_mass_is_reached():
    """Four tokens of a quarter each: the first two make a half, and a third is not needed."""
    left = CUT(jnp.zeros((1, 4)), jnp.asarray([0]), jnp.asarray([0.5], jnp.float32))
    assert np.isfinite(left).tolist() == [[True, True, False, False]]


def test_the_same_stays_where_nothing_is_compiled():
    logits = jnp.asarray(np.random.default_rng(0).standard_normal((2, V)), jnp.float32)
    settings_ = logits, jnp.array([5, 0]), jnp.array([0.9, 0.7], jnp.float32)
    with jax.disable_jit():
        found = CUT(*settings_)
    np.testing.assert_array_equal(found, CUT(*settings_))


def test_rows_may_want_different_things():
    logits = np.random.default_rng(0).standard_normal((3, V))
    options = {"top_k": [0, 1, 0], "top_p": [1.0, 1.0, 1e-6]}
    tokens = drawn(logits, temperature=jnp.array([0.0, 5.0, 5.0]), **options)
    # Greedy, top-1 and a vanishing nucleus all take the largest logit.
    np.testing.assert_array_equal(tokens, np.argmax(logits, axis=-1))


@pytest.mark.parametrize("temperature", [0.0, 1e-45, 1e-40, 2e-38, 1e-6])
def test_almost_greedy_is_greedy_and_takes_the_first_of_equals(temperature):
    logits = np.zeros((1, V)) + 30
    logits[0, [3, 7]] = 32, 32
    if temperature:
        logits[0, 7] = 31.9
    assert drawn(logits, temperature=temperature) == [3]


def test_tokens_are_drawn_in_proportion():
    n, temperature = 4096, 2.0
    logits = np.random.default_rng(1).standard_normal(7)
    weights = np.exp(logits / temperature)
    expected = n * weights / weights.sum()
    counts = np.bincount(drawn(np.tile(logits, (n, 1)), temperature=temperature), minlength=7)
    statistic = np.sum((counts - expected) ** 2 / expected)
    assert 0 < statistic < 22.5  # chi-square, 6 degrees of freedom: 999 of 1000 seeds pass


@pytest.mark.parametrize(
    "options",
    [{}, {"top_k": 40}, {"top_p": 0.999}, {"temperature": 1e38}, {"temperature": 0.0}],
)
def test_rows_of_the_table_that_spell_nothing_are_never_drawn(options):
    logits = np.zeros((512, V))
    logits[:, 9:] = 5  # the padding is the most likely
    tokens = drawn(logits, **{"temperature": 3.0, **options}, vocab_limit=9)
    assert tokens.max() < 9
    if options.get("temperature") != 0:
        assert set(tokens) == set(range(9))
    assert drawn(np.full((1, V), np.nan), vocab_limit=9, **options) < 9


@given(
    st.lists(st.floats(-20, 20, width=32), min_size=V, max_size=V),
    st.sampled_from([0.0, 0.3, 1.0, 1.7]),
    st.sampled_from([0, 4]),
    st.sampled_from([0.6, 1.0]),
    st.integers(1, V),
)
@settings(deadline=None, max_examples=60)
def test_a_log_probability_is_that_of_the_distribution_drawn_from(
    logits, temperature, top_k, top_p, limit
):
    options = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "vocab_limit": limit}
    kept = law([logits] * V, **options)
    found = np.asarray(log_probability(kept, jnp.arange(V)))
    warm = np.array(logits[:limit], np.float64) / (temperature or 1.0)
    stay = sorted(np.flatnonzero(np.isfinite(kept[0])).tolist())
    if temperature == 0 or (top_k, top_p) == (0, 1.0):
        assert stay == list(range(limit))
    expected = np.full(V, -np.inf)
    expected[stay] = warm[stay] - warm.max()
    expected[stay] -= np.log(np.sum(np.exp(expected[stay])))
    np.testing.assert_allclose(found, expected, atol=1e-5)
