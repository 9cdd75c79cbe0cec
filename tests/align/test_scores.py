"""Scores of reward models: the rule of two models, whitening, best of N."""

import itertools
import math

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_jax.align.losses import (
    MARGINS,
    SAFETY_THRESHOLD,
    best_of_n_kl,
    combined_score,
    max_of_k,
    merge_scales,
    score_scale,
    whiten_scores,
)
from llama_jax.data.records import RATINGS


def test_the_margins_are_those_of_table_27():
    by_rating = {name: dict(zip(RATINGS, m, strict=True)) for name, m in MARGINS.items()}
    assert by_rating["small"] == {
        "significantly": 1, "better": 2 / 3, "slightly": 1 / 3, "negligibly": 0,
    }  # fmt: skip
    assert by_rating["large"] == {
        "significantly": 3, "better": 2, "slightly": 1, "negligibly": 0,
    }  # fmt: skip
    assert set(by_rating["none"].values()) == {0}


def test_safety_prompts_and_unsafe_answers_get_the_safety_score():
    assert pytest.approx(-1.734601, abs=5e-7) == SAFETY_THRESHOLD
    safe = jnp.asarray([5.0, -1.7347, -1.7346, -1.73460, 3.0])
    helpful = jnp.asarray([1.0, 2.0, 3.0, 4.0, -5.0])
    asked = jnp.asarray([True, False, False, False, False])
    found = combined_score(safe, helpful, asked)
    np.testing.assert_array_equal(found, jnp.asarray([5.0, -1.7347, 3.0, 4.0, -5.0]))


def test_the_threshold_itself_is_not_unsafe():
    at, below = np.float32(SAFETY_THRESHOLD), np.nextafter(np.float32(SAFETY_THRESHOLD), -2)
    found = combined_score(jnp.asarray([at, below]), jnp.ones(2), jnp.zeros(2, bool))
    np.testing.assert_array_equal(found, [1, below])


SCORES = st.lists(st.floats(-20, 20, width=32), min_size=2, max_size=40)


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 1000), gain=st.floats(0.1, 10), offset=st.floats(-5, 5))
def test_the_unit_of_both_models_changes_no_whitened_score(seed, gain, offset):
    rng = np.random.default_rng(seed)
    safe, helpful = (jnp.asarray(a, jnp.float32) for a in 2 * rng.standard_normal((2, 64)))
    asked = jnp.asarray(rng.random(64) < 0.3)

    def whitened(safe, helpful, threshold):
        scores = combined_score(safe, helpful, asked, threshold=threshold)
        return np.asarray(whiten_scores(scores, score_scale(scores)))

    expected = whitened(safe, helpful, SAFETY_THRESHOLD)
    other = whitened(
        gain * safe + offset, gain * helpful + offset, gain * SAFETY_THRESHOLD + offset
    )
    np.testing.assert_allclose(other, expected, atol=2e-4)
    assert expected.mean() == pytest.approx(0, abs=1e-5)
    assert expected.std() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("size", [1, 3, 7, 511])
@pytest.mark.parametrize("score", [0.1, -12.3, 1e4])
def test_equal_scores_whiten_to_zero(size, score):
    """Rounding of the mean, divided by itself, would be noise of unit size."""
    scores = jnp.full(size, score)
    np.testing.assert_array_equal(whiten_scores(scores, score_scale(scores)), np.zeros(size))


@settings(deadline=None, max_examples=15)
@given(first=SCORES, second=SCORES, third=SCORES)
def test_a_running_scale_is_that_of_all_scores_together(first, second, third):
    scale = score_scale(jnp.asarray(first))
    for batch in (second, third):
        scale = merge_scales(scale, score_scale(jnp.asarray(batch)))
    together = np.concatenate([first, second, third])
    assert float(scale.count) == len(together)
    assert float(scale.mean) == pytest.approx(together.mean(), abs=1e-4)
    assert float(scale.variance) == pytest.approx(together.var(), abs=2e-3)


def test_a_fixed_scale_is_applied_as_it_is():
    scale = score_scale(jnp.asarray([1.0, 5.0]))
    np.testing.assert_allclose(whiten_scores(jnp.asarray([3.0, 7.0]), scale), [0, 2])


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_the_maximum_of_k_is_the_mean_over_all_choices(k):
    scores = np.random.default_rng(k).standard_normal((2, 5))
    expected = [np.mean([max(c) for c in itertools.combinations(row, k)]) for row in scores]
    np.testing.assert_allclose(max_of_k(jnp.asarray(scores), k), expected, rtol=1e-5)
    np.testing.assert_allclose(max_of_k(jnp.asarray(scores[0]), k), expected[0], rtol=1e-5)


@pytest.mark.parametrize(("k", "expected"), [(4, 1.02), (16, 1.76), (100, 2.51)])
def test_the_maximum_of_k_normal_scores(k, expected):
    # Mean scores of equal shares of a normal distribution: what many samples look like.
    ranks = (np.arange(20_000) + 0.5) / 20_000
    grid = np.linspace(-6, 6, 200_001)
    density = np.exp(-(grid**2) / 2)
    scores = np.interp(ranks, np.cumsum(density) / density.sum(), grid)
    assert float(max_of_k(jnp.asarray(scores), k)) == pytest.approx(expected, abs=0.02)


def test_a_maximum_of_more_than_there_are_is_refused():
    for k in (0, 4):
        with pytest.raises(
            ValueError, match=f"k={k} must be between 1 and the number of scores, 3"
        ):
            max_of_k(jnp.zeros(3), k)


@pytest.mark.parametrize(("n", "nats"), [(1, 0), (4, 0.64), (16, 1.84), (100, 3.62)])
def test_the_best_of_n_is_not_far_from_the_policy(n, nats):
    assert best_of_n_kl(n) == pytest.approx(nats, abs=0.005)
    assert best_of_n_kl(n) <= math.log(n)
