"""PPO and GRPO where every answer can be listed: gradients, what they reach, and cheating."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax.align.losses import (
    ScoreScale,
    gae,
    group_advantages,
    kl_terms,
    policy_terms,
    reward_hacking,
    score_scale,
    shaped_rewards,
    whiten_scores,
)
from tests.align.toy import (
    MASK,
    SO_FAR,
    STATES,
    TOKENS,
    T,
    V,
    bandit,
    grpo,
    log_policy,
    objective,
    objective_gradient,
    optimum,
    ppo,
    table_of,
    token_logprobs,
)

RNG = np.random.default_rng(0)
REFERENCE = 0.5 * RNG.standard_normal((T, STATES, V)).astype(np.float32)
SCORES = 4 * RNG.standard_normal(15)
BETA = 2.0


def test_the_fifteen_answers_are_all_there_are():
    assert len({tuple(y) for y in TOKENS}) == 15
    assert sorted(MASK.sum(1)) == [1, 2, 2, *[3] * 12]
    assert np.exp(log_policy(REFERENCE)).sum() == pytest.approx(1)


def ppo_gradient(logits, reference, scores, beta, values):
    """-d sum pi(y) policy_terms, at the policy that drew the answers: ratio 1, lambda 1."""
    with jax.enable_x64(True):
        tokens, so_far, mask = jnp.asarray(TOKENS), jnp.asarray(SO_FAR), jnp.asarray(MASK)
        logits, reference = jnp.asarray(logits), jnp.asarray(reference)
        old_logp = token_logprobs(logits, tokens, so_far)
        ref_logp = token_logprobs(reference, tokens, so_far)
        rewards = shaped_rewards(jnp.asarray(scores), old_logp, ref_logp, mask, beta=beta)
        old_values = jnp.asarray(values)[jnp.arange(T)[None], so_far]
        advantages, _ = gae(rewards, old_values, mask, gamma=1.0, lam=1.0)
        weights = jnp.exp(jnp.sum(jnp.where(mask, old_logp, 0), axis=1, keepdims=True))

        def loss(logits):
            logp = token_logprobs(logits, tokens, so_far)
            return jnp.sum(weights * policy_terms(logp, old_logp, advantages, mask, clip=0.2))

        return -np.asarray(jax.grad(loss)(logits))


@pytest.mark.parametrize("baseline", [0.0, 1.0], ids=["no values", "any values"])
def test_the_gradient_of_ppo_is_that_of_its_objective(baseline):
    """A value of the tokens so far is a baseline: with lambda 1 it changes no expectation."""
    rng = np.random.default_rng(1)
    logits, reference = rng.standard_normal((2, T, STATES, V))
    values = baseline * rng.standard_normal((T, STATES))
    found = ppo_gradient(logits, reference, SCORES, 0.3, values)
    expected = objective_gradient(logits, reference, SCORES, 0.3)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert np.abs(expected).max() > 0.1


def test_whitened_scores_give_the_gradient_of_a_larger_beta():
    """Scores in units of sigma are maximised as beta sigma would have them, sigma times slower."""
    rng = np.random.default_rng(2)
    logits, reference = rng.standard_normal((2, T, STATES, V))
    policy = np.exp(log_policy(logits))
    mean = policy @ SCORES
    variance = policy @ (SCORES - mean) ** 2
    with jax.enable_x64(True):
        scale = ScoreScale(jnp.float64(1), jnp.float64(mean), jnp.float64(variance))
        white = np.asarray(whiten_scores(jnp.asarray(SCORES), scale))
    found = ppo_gradient(logits, reference, white, 0.3, np.zeros((T, STATES)))
    sigma = np.sqrt(variance)
    expected = objective_gradient(logits, reference, SCORES, 0.3 * sigma) / sigma
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_the_optimum_is_where_the_gradient_ends():
    """The closed form itself: the policy pi0 exp(R/beta) reaches beta log Z, and none is better."""
    policy, best = optimum(REFERENCE, SCORES, BETA)
    log_ratio = np.log(policy) - log_policy(REFERENCE)
    assert policy @ (SCORES - BETA * log_ratio) == pytest.approx(best)
    np.testing.assert_allclose(SCORES - BETA * log_ratio, best)


@pytest.mark.parametrize("lam", [pytest.param(1.0, marks=pytest.mark.slow), 0.95])
def test_sampled_ppo_reaches_the_optimum(lam):
    keys = jax.random.split(jax.random.key(0), 3)
    reference = jnp.asarray(REFERENCE)
    policies = ppo(
        keys, reference, table_of(SCORES), beta=BETA, lam=lam, whiten=lambda s: s, iterations=200
    )
    start = objective(REFERENCE, REFERENCE, SCORES, BETA)
    best = optimum(REFERENCE, SCORES, BETA)[1]
    assert start < 0.1 * best
    for policy in policies:
        assert 0.99 * best <= objective(policy, REFERENCE, SCORES, BETA) <= best


def grpo_gradients(logits, old, reference):
    """-d of the surrogate over all pairs of answers that `old` draws for one prompt, and d of the
    KL, of a policy; both weighted by how likely the answers are. Groups of two, no clipping."""
    with jax.enable_x64(True):
        tokens, so_far, mask = jnp.asarray(TOKENS), jnp.asarray(SO_FAR), jnp.asarray(MASK)
        old_logp, ref_logp = (
            token_logprobs(jnp.asarray(table), tokens, so_far) for table in (old, reference)
        )
        weights = np.exp(log_policy(old))
        pairs = jnp.asarray(SCORES)[np.stack(np.meshgrid(*[np.arange(15)] * 2, indexing="ij"), -1)]
        advantages = group_advantages(pairs.reshape(-1, 2)).reshape(15, 15, 2)[..., 0]
        mean = advantages @ jnp.asarray(weights)  # of an answer, over who it is compared with

        def surrogate(logits):
            logp = token_logprobs(logits, tokens, so_far)
            gains = jnp.broadcast_to(mean[:, None], mask.shape)
            return -jnp.sum(weights[:, None] * policy_terms(logp, old_logp, gains, mask, clip=9.0))

        def kl(logits):
            logp = token_logprobs(logits, tokens, so_far)
            return jnp.sum(weights[:, None] * kl_terms(logp, old_logp, ref_logp, mask))

        at = jnp.asarray(logits)
        return np.asarray(jax.grad(surrogate)(at)), float(kl(at)), np.asarray(jax.grad(kl)(at))


def test_the_gradient_of_groups_is_that_of_winning_against_each_other():
    """Of two answers the better one has an advantage of sqrt(1/2), whatever the distance."""
    rng = np.random.default_rng(3)
    logits, reference = rng.standard_normal((2, T, STATES, V))
    policy = np.exp(log_policy(logits))
    wins = np.sign(SCORES[:, None] - SCORES[None]) @ policy * np.sqrt(0.5)
    expected = objective_gradient(logits, logits, wins, 0.0)
    found, _, _ = grpo_gradients(logits, logits, reference)
    np.testing.assert_allclose(found, expected, atol=1e-6)  # 1e-6 beside the standard deviation
    assert np.abs(expected).max() > 0.05


@pytest.mark.parametrize("moved", [0.0, 0.3], ids=["on policy", "after updates"])
def test_the_kl_of_the_loss_and_its_gradient_are_those_of_the_policy(moved):
    """KL(p_s || q_s) summed over the states that the old policy comes to, from the formula."""
    rng = np.random.default_rng(4)
    old, reference, step = rng.standard_normal((3, T, STATES, V))
    logits = old + moved * step
    visits = np.zeros((T, STATES))
    weights = np.exp(log_policy(old))
    for y, weight in enumerate(weights):
        for t in range(T):
            visits[t, SO_FAR[y, t]] += weight * MASK[y, t]
    log_p, log_q = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (logits, reference))
    p = np.exp(log_p)
    kl = (p * (log_p - log_q)).sum(-1)
    _, found, gradient = grpo_gradients(logits, old, reference)
    assert found == pytest.approx((visits * kl).sum(), rel=1e-12)
    expected = visits[..., None] * p * (log_p - log_q - kl[..., None])
    np.testing.assert_allclose(gradient, expected, atol=1e-12)
    assert np.abs(expected).max() > 0.05


def test_sampled_grpo_finds_the_best_answer():
    """Without a KL the best answer is all that is left: groups end when they have no difference."""
    keys = jax.random.split(jax.random.key(0), 3)
    policies = grpo(keys, jnp.asarray(REFERENCE), table_of(SCORES), beta=0.0, iterations=150)
    for policy in policies:
        assert objective(policy, REFERENCE, SCORES, 0.0) > 0.98 * SCORES.max()
    near = grpo(keys, jnp.asarray(REFERENCE), table_of(SCORES), beta=1.0, iterations=150)
    for policy, free in zip(near, policies, strict=True):
        kept, left = (
            np.exp(log_policy(x)) @ (log_policy(x) - log_policy(REFERENCE)) for x in (policy, free)
        )
        assert kept < 0.8 * left


def distance(p, q):
    """Total variation."""
    return np.abs(p - q).sum() / 2


def test_ppo_with_whitened_scores_reaches_an_optimum_of_its_own():
    """The best policy of beta sigma, where sigma is the spread of the scores under that policy."""
    own = np.exp(log_policy(REFERENCE))
    for _ in range(200):
        sigma = np.sqrt(own @ (SCORES - own @ SCORES) ** 2)
        own = (own + optimum(REFERENCE, SCORES, BETA * sigma)[0]) / 2
    plain = optimum(REFERENCE, SCORES, BETA)[0]
    policies = ppo(
        jax.random.split(jax.random.key(0), 3),
        jnp.asarray(REFERENCE),
        table_of(SCORES),
        beta=BETA,
        lam=0.95,
        whiten=lambda s: whiten_scores(s, score_scale(s)),
        iterations=200,
    )
    for policy in policies:
        reached = np.exp(log_policy(policy))
        assert distance(reached, own) < 0.06
        assert distance(reached, plain) > 0.3


def test_a_bandit_that_is_paid_for_length_is_caught():
    """Gold rises with the proxy, peaks, and falls while the proxy goes on rising."""
    proxy, gold = bandit(length_bonus=1.5, steps=100)
    best = int(np.argmax(gold))
    assert 0 < best < 40
    assert gold[-1] < gold[0]
    assert (np.diff(proxy) > 0).all()
    fires = [reward_hacking(proxy[:n], gold[:n], patience=10) for n in range(1, 101)]
    assert fires.index(True) == best + 10
    assert all(fires[best + 10 :])


def test_a_bandit_that_is_paid_for_quality_alone_is_not():
    proxy, gold = bandit(length_bonus=0.0, steps=100)
    assert not any(reward_hacking(proxy[:n], gold[:n], patience=10) for n in range(101))


def test_a_proxy_that_falls_as_well_is_no_hacking():
    gold = [0.0, 1.0, 0.5, 0.4, 0.3]
    assert reward_hacking([0.0, 1.0, 1.5, 1.6, 1.7], gold, patience=3)
    assert not reward_hacking([0.0, 1.0, 0.9, 0.8, 0.7], gold, patience=3)
    assert not reward_hacking([0.0, 1.0, 1.5, 1.6, 1.7], gold, patience=4)
    assert not reward_hacking([0.0, 1.0, 1.5, 1.6, 1.7], [0.0, 1.0, 1.0, 1.0, 1.0], patience=3)
    with pytest.raises(ValueError, match="proxy has 1 entries and gold 5"):
        reward_hacking([0.0], gold, patience=3)
