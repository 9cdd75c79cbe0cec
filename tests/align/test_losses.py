"""Losses, against numbers of other programs and against float64 NumPy from the formulas."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_jax.align.losses import (
    MARGINS,
    dpo_loss,
    gae,
    implicit_rewards,
    kl_estimates,
    masked_mean,
    pairwise_loss,
    policy_clipped,
    policy_loss,
    policy_terms,
    safety_loss,
    value_clipped,
    value_loss,
    value_terms,
)
from tests.comparison import assert_close

MASK = jnp.asarray([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], bool)


def rows(short, long):
    """[2,5]: an answer of three tokens, with something else after it, and one of five."""
    return jnp.asarray([[*short, 9.0, -7.0], long], jnp.float32)


REWARDS = rows([0, 0, 1], [0.1, -0.1, 0.2, 0, 2])
OLD_VALUES = rows([0.5, 0.4, 0.3], [0.2, 0.1, 0, -0.1, 0.3])
LOGP = rows([-1, -2, -0.5], [-1.2, -0.3, -2, -1, -0.1])
OLD_LOGP = rows([-1.1, -1.5, -0.7], [-1, -0.5, -1.5, -1.2, -0.2])
ADVANTAGES = rows([1, -1, 0.5], [-0.5, 2, -1.5, 0.3, 0.7])


def kept(array):
    """What the mask keeps, as one row."""
    return np.asarray(array, np.float64)[np.asarray(MASK)]


def test_the_policy_loss_is_that_of_openrlhf_and_verl():
    arguments = (LOGP, OLD_LOGP, ADVANTAGES, MASK)
    assert float(policy_loss(*arguments, clip=0.2)) == pytest.approx(-0.353678, abs=1e-6)
    share = masked_mean(policy_clipped(*arguments, clip=0.2), MASK)
    assert float(share) == pytest.approx(0.625)
    assert float(masked_mean(OLD_LOGP - LOGP, MASK)) == pytest.approx(0.05)
    # The mean of the two rows' means is another number, biased towards short answers.
    terms = policy_terms(*arguments, clip=0.2)
    by_row = np.mean(np.asarray(terms).sum(1) / [3, 5])
    assert by_row == pytest.approx(-0.343287, abs=1e-6)


def test_the_value_loss_is_that_of_openrlhf_and_verl():
    values = rows([0.9, 0.1, 0.3], [0.2, 0.6, 0, -0.5, 0.3])
    _, returns = gae(REWARDS, OLD_VALUES, MASK, gamma=1.0, lam=0.95)
    arguments = (values, OLD_VALUES, returns, MASK)
    assert float(value_loss(*arguments, clip=0.2)) == pytest.approx(1.188402, abs=1e-6)
    assert float(masked_mean(value_clipped(*arguments, clip=0.2), MASK)) == pytest.approx(0.25)
    plain = np.mean((kept(values) - kept(returns)) ** 2) / 2
    assert float(value_loss(*arguments, clip=None)) == pytest.approx(plain)
    assert not np.asarray(value_clipped(*arguments, clip=None)).any()


def test_the_pairwise_loss_is_that_of_openrlhf():
    chosen, rejected, margin = map(
        jnp.asarray, ([1.2, 0.3, -0.5], [0.7, 0.5, -1.5], [1.0, 1 / 3, 0.0])
    )
    assert float(pairwise_loss(chosen, rejected, margin)) == pytest.approx(0.760765, abs=1e-6)
    without = pairwise_loss(chosen, rejected, jnp.zeros(3))
    assert float(without) == pytest.approx(0.528493, abs=1e-6)


@pytest.mark.parametrize(
    ("table", "losses"),
    [
        ("none", [0.6931, 0.6931, 0.6931, 0.6931]),
        ("small", [0.6931, 0.8736, 1.0810, 1.3133]),
        ("large", [0.6931, 1.3133, 2.1269, 3.0486]),
    ],
)
def test_an_untrained_reward_model_has_the_loss_of_its_margins(table, losses):
    zero = jnp.zeros(1)
    for margin, loss in zip(MARGINS[table], losses, strict=True):
        found = pairwise_loss(zero, zero, jnp.asarray([margin]))
        assert float(found) == pytest.approx(loss, abs=5e-5)


def test_far_scores_have_a_finite_loss_and_gradient():
    scores = jnp.asarray([3e4, -3e4])
    loss, slope = jax.value_and_grad(pairwise_loss)(scores, -scores, jnp.zeros(2))
    assert float(loss) == pytest.approx(3e4)
    np.testing.assert_allclose(slope, [0, -0.5])


def test_the_safety_loss_is_the_cross_entropy_of_the_labelled():
    scores = jnp.asarray([2.0, -1.0, 0.5, 7.0])
    safe = jnp.asarray([True, True, False, False])
    labelled = jnp.asarray([1.0, 1.0, 1.0, 0.0])
    p = 1 / (1 + np.exp(-np.array([2.0, -1.0, 0.5])))
    expected = -np.mean(np.log([p[0], p[1], 1 - p[2]]))
    assert float(safety_loss(scores, safe, labelled)) == pytest.approx(expected)
    assert float(safety_loss(scores, safe, jnp.zeros(4))) == 0
    slope = jax.grad(safety_loss)(scores, safe, labelled)
    np.testing.assert_allclose(slope, [*(p - [1, 1, 0]) / 3, 0], atol=1e-7)


PAIRS = [jnp.asarray(p) for p in ([-10.0, -20.0], [-12.0, -18.0], [-11.0, -19.0], [-11.5, -18.5])]


def test_the_dpo_loss_is_that_of_open_instruct():
    losses = dpo_loss(*PAIRS, beta=0.1)
    np.testing.assert_allclose(losses, [0.620957, 0.770957], atol=1e-6)
    chosen, rejected, ref_chosen, ref_rejected = PAIRS
    np.testing.assert_allclose(
        implicit_rewards(chosen, ref_chosen, beta=0.1), [0.1, -0.1], atol=1e-7
    )
    np.testing.assert_allclose(
        implicit_rewards(rejected, ref_rejected, beta=0.1), [-0.05, 0.05], atol=1e-7
    )


def test_the_dpo_gradient_is_its_closed_form():
    loss = partial(dpo_loss, beta=0.1)
    d_chosen, d_rejected = jax.grad(lambda *a: jnp.sum(loss(*a)), argnums=(0, 1))(*PAIRS)
    difference = np.array([1.5, -1.5])
    expected = -0.1 / (1 + np.exp(0.1 * difference))
    np.testing.assert_allclose(d_chosen, expected, rtol=1e-5)
    np.testing.assert_allclose(d_rejected, -expected, rtol=1e-5)


def test_a_policy_that_is_its_reference_has_a_dpo_loss_of_ln_2():
    chosen, rejected, *_ = PAIRS
    losses = dpo_loss(chosen, rejected, chosen, rejected, beta=0.5)
    np.testing.assert_array_equal(losses, np.full(2, np.log(2), np.float32))


def test_variants_of_the_dpo_loss_agree_with_their_formulas():
    difference, e = np.array([1.5, -1.5]), 0.1
    sigmoid = 1 / (1 + np.exp(-0.1 * difference))
    smoothed = -(1 - e) * np.log(sigmoid) - e * np.log(1 - sigmoid)
    np.testing.assert_allclose(dpo_loss(*PAIRS, beta=0.1, label_smoothing=e), smoothed, rtol=1e-6)
    ipo = (difference - 1 / (2 * 0.1)) ** 2
    np.testing.assert_allclose(dpo_loss(*PAIRS, beta=0.1, kind="ipo"), ipo, rtol=1e-6)
    with pytest.raises(ValueError, match="kind='ipo' takes no label_smoothing"):
        dpo_loss(*PAIRS, beta=0.1, label_smoothing=0.1, kind="ipo")
    with pytest.raises(ValueError, match=r"label_smoothing=0.5 must be"):
        dpo_loss(*PAIRS, beta=0.1, label_smoothing=0.5)


def policy_by_hand(logp, old, advantage, clip):
    """Loss of one token and d loss / d logp: the gradient stops where the clipped term decides."""
    ratio = math.exp(logp - old)
    clipped = min(max(ratio, 1 - clip), 1 + clip)
    if -advantage * clipped > -advantage * ratio:
        return -advantage * clipped, 0.0
    return -advantage * ratio, -advantage * ratio


def value_by_hand(value, old, target, clip):
    """Loss of one token and d loss / d value."""
    near = old + min(max(value - old, -clip), clip)
    if (near - target) ** 2 > (value - target) ** 2:
        return (near - target) ** 2 / 2, 0.0
    return (value - target) ** 2 / 2, value - target


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 10_000), clip=st.sampled_from([0.1, 0.2, 0.5]))
@pytest.mark.parametrize(
    ("loss", "by_hand"), [(policy_loss, policy_by_hand), (value_loss, value_by_hand)]
)
def test_clipped_losses_and_gradients_agree_with_their_definition(loss, by_hand, seed, clip):
    rng = np.random.default_rng(seed)
    old = rng.standard_normal((3, 4))
    new, other = old + 0.4 * rng.standard_normal((3, 4)), rng.standard_normal((3, 4))
    mask = rng.random((3, 4)) < 0.7
    mask[0, 0] = True
    expected, slope = 0.0, np.zeros((3, 4))
    for place in zip(*np.nonzero(mask), strict=True):
        term, slope[place] = by_hand(new[place], old[place], other[place], clip)
        expected += term
    arrays = [jnp.asarray(a, jnp.float32) for a in (new, old, other)]
    found = jax.value_and_grad(partial(loss, clip=clip))(*arrays, jnp.asarray(mask))
    assert_close(found[0], expected / mask.sum(), 1e-5, scale=1)
    assert_close(found[1], slope / mask.sum(), 1e-5, scale=1)


def test_at_the_old_policy_the_gradient_is_that_of_the_policy_gradient():
    """Where ratio and clipped ratio are equal, half of each must not be lost."""
    slope = jax.grad(partial(policy_loss, clip=0.2))(LOGP, LOGP, ADVANTAGES, MASK)
    np.testing.assert_allclose(slope[MASK], -kept(ADVANTAGES) / 8, rtol=1e-6)


def test_the_kl_estimators_are_those_of_openrlhf_and_verl():
    found = kl_estimates(LOGP, OLD_LOGP, MASK)
    np.testing.assert_allclose(found.k1[0], [0.1, -0.5, 0.2, 0, 0], atol=1e-6)
    np.testing.assert_allclose(found.k2[0], [0.005, 0.125, 0.02, 0, 0], atol=1e-6)
    np.testing.assert_allclose(found.k3[0], [0.004837, 0.148721, 0.018731, 0, 0], atol=1e-6)


def test_the_kl_estimators_as_losses_have_the_gradients_that_the_docstring_says():
    """Over 7 tokens, exactly: sums weighted by the policy that draws them."""
    rng = np.random.default_rng(0)
    logits, reference = rng.standard_normal((2, 7))
    p, q = (np.exp(a) / np.exp(a).sum() for a in (logits, reference))
    # d KL(p||q) = p (log p/q - KL) and d KL(q||p) = p - q, by the logits of p.
    to_reference = p * (np.log(p / q) - p @ np.log(p / q))
    from_reference = p - q
    with jax.enable_x64(True):
        mask, ref_logp = jnp.ones((1, 7), bool), jnp.asarray(np.log(q))[None]

        def expected(name, weight):
            def loss(logits):
                logp = jax.nn.log_softmax(logits)[None]
                term = getattr(kl_estimates(logp, ref_logp, mask), name)
                return jnp.sum(jnp.asarray(p)[None] * weight(logp) * term)

            return np.asarray(jax.grad(loss)(jnp.asarray(logits)))

        def ratio(logp):
            return jnp.exp(logp - jax.lax.stop_gradient(logp))

        gradients = {name: expected(name, jnp.ones_like) for name in ("k1", "k2", "k3")}
        gradients["k3 ratio"] = expected("k3", ratio)
    np.testing.assert_allclose(gradients["k1"], np.zeros(7), atol=1e-12)
    np.testing.assert_allclose(gradients["k2"], to_reference, atol=1e-12)
    np.testing.assert_allclose(gradients["k3"], from_reference, atol=1e-12)
    np.testing.assert_allclose(gradients["k3 ratio"], to_reference, atol=1e-12)


def test_terms_of_micro_batches_add_up_to_the_loss():
    halves = [
        value_terms(*(a[i : i + 1] for a in (LOGP, OLD_LOGP, ADVANTAGES, MASK)), clip=0.2)
        for i in range(2)
    ]
    total = sum(float(jnp.sum(h)) for h in halves)
    whole = value_loss(LOGP, OLD_LOGP, ADVANTAGES, MASK, clip=0.2)
    assert total / 8 == pytest.approx(float(whole), rel=1e-6)
