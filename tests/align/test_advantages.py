"""Shaped rewards, GAE, whitening and groups, against numbers of other programs and NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_jax.align.losses import (
    explained_variance,
    gae,
    group_advantages,
    masked_whiten,
    penalize_truncated,
    shaped_rewards,
    varied_groups,
)
from tests.align.test_losses import MASK, OLD_VALUES, REWARDS, kept
from tests.comparison import assert_close

BOTH = [[0.43675, 0.565, 0.7, 0, 0], [1.627861, 1.713538, 2.01425, 2.015, 1.7]]
RETURNS = [[0.93675, 0.965, 1, 0, 0], [1.827861, 1.813538, 2.01425, 1.915, 2]]


@pytest.mark.parametrize(
    ("gamma", "lam", "expected"),
    [
        (1.0, 0.95, BOTH[0]),
        (1.0, 1.0, [0.5, 0.6, 0.7, 0, 0]),
        (0.9, 0.0, [-0.14, -0.13, 0.7, 0, 0]),
    ],
)
def test_gae_is_that_of_verl(gamma, lam, expected):
    advantages, returns = gae(REWARDS, OLD_VALUES, MASK, gamma=gamma, lam=lam)
    np.testing.assert_allclose(advantages[0], expected, atol=1e-6)
    np.testing.assert_allclose(returns, advantages + jnp.where(MASK, OLD_VALUES, 0), atol=1e-6)
    if (gamma, lam) == (1.0, 0.95):
        np.testing.assert_allclose(advantages, BOTH, atol=1e-6)
        np.testing.assert_allclose(returns, RETURNS, atol=1e-6)


def gae_by_hand(rewards, values, mask, gamma, lam):
    """Sums of discounted errors, position by position, as the paper's equation 16."""
    B, T = mask.shape
    advantages = np.zeros((B, T))

    def error(b, t):
        follows = t + 1 < T and mask[b, t + 1]
        return rewards[b, t] + (gamma * values[b, t + 1] if follows else 0) - values[b, t]

    for b, t in zip(*np.nonzero(mask), strict=True):
        weight, s = 1.0, t
        while s < T and mask[b, s]:
            advantages[b, t] += weight * error(b, s)
            weight, s = weight * gamma * lam, s + 1
    return advantages


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 10_000), gamma=st.sampled_from([0.9, 1.0]), lam=st.floats(0, 1))
def test_gae_agrees_with_its_definition(seed, gamma, lam):
    rng = np.random.default_rng(seed)
    rewards, values = rng.standard_normal((2, 4, 6))
    mask = rng.random((4, 6)) < 0.7
    arrays = [jnp.asarray(a, jnp.float32) for a in (rewards, values)]
    advantages, returns = gae(*arrays, jnp.asarray(mask), gamma=gamma, lam=lam)
    expected = gae_by_hand(rewards, values, mask, gamma, lam)
    assert_close(advantages, expected, 1e-5, scale=1)
    assert_close(returns, expected + np.where(mask, values, 0), 1e-5, scale=1)


def test_whitening_is_that_of_trl_but_for_the_population_variance():
    white = masked_whiten(REWARDS, MASK)
    # TRL and verl divide the squares by n - 1 = 7, and leave something outside the mask.
    theirs = np.sqrt(7 / 8) * np.asarray(white[0])
    np.testing.assert_allclose(theirs, [-0.544331, -0.544331, 0.816497, 0, 0], atol=1e-6)
    assert kept(white).mean() == pytest.approx(0, abs=1e-6)
    assert kept(white).std() == pytest.approx(1, abs=1e-6)
    flat = jnp.asarray([3.0, 5.0, 7.0, 9.0])
    np.testing.assert_allclose(
        masked_whiten(flat, jnp.asarray([1.0, 0.0, 1.0, 0.0])), [-1, 0, 1, 0], atol=1e-6
    )


def test_one_token_or_none_whitens_to_zero():
    alone = jnp.zeros_like(MASK).at[0, 1].set(True)
    np.testing.assert_array_equal(masked_whiten(REWARDS + 0.3, alone), np.zeros((2, 5)))
    np.testing.assert_array_equal(masked_whiten(REWARDS, alone & False), np.zeros((2, 5)))


def test_the_score_stands_at_the_last_token_of_the_answer_and_kl_at_each():
    old = jnp.asarray([[-1.0, -2.0, -0.5, 8.0], [-1.0, -1.0, -1.0, -1.0], [3.0, 3.0, 3.0, 3.0]])
    reference = jnp.asarray(
        [[-1.5, -1.0, -0.5, 2.0], [-1.0, -1.0, -1.0, -2.0], [1.0, 1.0, 1.0, 1.0]]
    )
    mask = jnp.asarray([[0, 1, 1, 0], [0, 0, 1, 1], [0, 0, 0, 0]], bool)
    found = shaped_rewards(jnp.asarray([2.0, -1.0, 5.0]), old, reference, mask, beta=0.1)
    expected = [[0, 0.1, 2, 0], [0, 0, 0, -1.1], [0, 0, 0, 0]]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_an_answer_that_was_cut_off_pays():
    found = penalize_truncated(jnp.asarray([0.5, 0.5]), jnp.asarray([False, True]), penalty=1.0)
    np.testing.assert_allclose(found, [0.5, -0.5])


def test_group_advantages_are_those_of_verl():
    rewards = jnp.asarray([[1.0, 0.0], [0.3, 0.3], [2.0, -2.0]])
    half = np.sqrt(0.5)
    expected = [[half, -half], [0, 0], [half, -half]]
    np.testing.assert_allclose(group_advantages(rewards), expected, atol=1e-5)
    np.testing.assert_array_equal(varied_groups(rewards), [True, False, True])
    four = np.array([[0.1, 0.4, -0.3, 2.0]])
    expected = (four - four.mean()) / (four.std(ddof=1) + 1e-6)
    np.testing.assert_allclose(group_advantages(jnp.asarray(four)), expected, rtol=1e-5)


def test_equal_rewards_give_exactly_no_advantage():
    """The mean of three times 0.1 is not 0.1 in floating point."""
    rewards = jnp.asarray([[0.1, 0.1, 0.1], [12.3, 12.3, 12.3]])
    np.testing.assert_array_equal(group_advantages(rewards), np.zeros((2, 3)))


def test_a_single_answer_is_no_group():
    with pytest.raises(ValueError, match=r"\(4, 1\) needs two or more answers"):
        group_advantages(jnp.zeros((4, 1)))


def test_explained_variance_is_that_of_its_formula():
    values, returns = kept(OLD_VALUES), kept(REWARDS)
    expected = 1 - np.var(returns - values) / np.var(returns)
    found = explained_variance(OLD_VALUES, REWARDS, MASK)
    assert float(found) == pytest.approx(expected, rel=1e-5)
    assert float(explained_variance(REWARDS, REWARDS, MASK)) == 1
    assert float(explained_variance(REWARDS, jnp.ones_like(REWARDS), MASK)) == 0
