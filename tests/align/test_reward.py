"""A reward model in small: a head on frozen features, and pairs whose better side is known."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from llama_jax.align.losses import MARGINS, pairwise_loss, safety_loss
from llama_jax.model.heads import apply_head

D = 4


def train(chosen, rejected, margin, *, steps, learning_rate):
    """A head after so many steps of gradient descent on all pairs, from zeros."""
    chosen, rejected, margin = (jnp.asarray(a, jnp.float32) for a in (chosen, rejected, margin))
    tx = optax.sgd(learning_rate, momentum=0.9)

    def loss(head):
        return pairwise_loss(apply_head(head, chosen), apply_head(head, rejected), margin)

    @jax.jit
    def run(head):
        def step(carry, _):
            head, state = carry
            updates, state = tx.update(jax.grad(loss)(head), state)
            return (optax.apply_updates(head, updates), state), None

        return jax.lax.scan(step, (head, tx.init(head)), length=steps)[0][0]

    return run({"score": jnp.zeros((D, 1)), "score_bias": jnp.zeros(1)})


def newton(features, margin=0.0):
    """Logistic regression of "features . w > margin" being always true, by Newton's method."""
    w = np.zeros(D)
    for _ in range(30):
        wrong = 1 / (1 + np.exp(features @ w - margin))
        curvature = (features * (wrong * (1 - wrong))[:, None]).T @ features
        w = w + np.linalg.solve(curvature, features.T @ wrong)
    return w


@pytest.mark.parametrize("margin", [0.0, 2 / 3])
def test_a_head_on_frozen_features_is_logistic_regression(margin):
    rng = np.random.default_rng(0)
    chosen, rejected = rng.standard_normal((2, 300, D))
    # The better answer is usually preferred, never surely: the optimum is finite.
    wrong = rng.random(300) > 1 / (1 + np.exp(-(chosen - rejected) @ [1.0, -0.5, 0.3, 0.0]))
    chosen[wrong], rejected[wrong] = rejected[wrong], chosen[wrong].copy()
    head = train(chosen, rejected, np.full(300, margin), steps=300, learning_rate=1.0)
    expected = newton(chosen - rejected, margin)
    np.testing.assert_allclose(head["score"][:, 0], expected, atol=1e-4)
    # Only differences of scores are learnt.
    np.testing.assert_allclose(head["score_bias"], 0, atol=1e-6)


def test_separable_pairs_are_told_apart():
    rng = np.random.default_rng(1)
    quality = rng.standard_normal((2, 400, D))
    good = quality @ [1.0, 2.0, -1.0, 0.5]
    order = np.argsort(good, axis=0)[:, :, None]
    rejected, chosen = np.take_along_axis(quality, order, axis=0)
    head = train(chosen[:200], rejected[:200], np.zeros(200), steps=200, learning_rate=0.5)
    gap = apply_head(head, jnp.asarray(chosen[200:])) - apply_head(
        head, jnp.asarray(rejected[200:])
    )
    assert float(jnp.mean(gap > 0)) > 0.95


@pytest.mark.parametrize("table", ["none", "small", "large"])
def test_margins_set_ratings_apart(table):
    """Each rating has a feature of its own, so that its margin alone decides about its gap."""
    rng = np.random.default_rng(2)
    ratings = np.repeat(np.arange(4), 50)
    rejected = rng.standard_normal((200, D))
    chosen = rejected + np.eye(4)[ratings]
    head = train(chosen, rejected, np.array(MARGINS[table])[ratings], steps=200, learning_rate=0.5)
    gap = np.asarray(
        apply_head(head, jnp.asarray(chosen)) - apply_head(head, jnp.asarray(rejected))
    )
    means = [gap[ratings == rating].mean() for rating in range(4)]
    if table == "none":
        assert np.ptp(means) < 1e-3
    else:
        assert (np.diff(means) > 0.1).all()


def test_the_safety_loss_gives_zero_a_meaning():
    """Pairs alone fix no zero; with labels, unsafe answers score below it and safe ones above."""
    rng = np.random.default_rng(3)
    features = jnp.asarray(rng.standard_normal((200, D)), jnp.float32)
    safe = features[:, 0] > 0.4
    labelled = jnp.asarray(rng.random(200) < 0.5)
    head = {"score": jnp.zeros((D, 1)), "score_bias": jnp.full(1, 5.0)}

    def loss(head):
        return safety_loss(apply_head(head, features), safe, labelled)

    @jax.jit
    def run(head):
        def step(head, _):
            return jax.tree.map(lambda p, g: p - g, head, jax.grad(loss)(head)), None

        return jax.lax.scan(step, head, length=300)[0]

    right = (apply_head(run(head), features) > 0) == safe
    assert float(jnp.mean(right[~labelled])) > 0.95
