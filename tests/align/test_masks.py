"""What a mask leaves out changes nothing; what has a wrong shape or type is refused."""

from functools import partial

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_jax.align import losses

GARBAGE = [1e30, -1e30, 3e4, -90.0, 0.0]
TOKENWISE = {
    "policy_loss": (3, {"clip": 0.2}),
    "policy_terms": (3, {"clip": 0.2}),
    "policy_clipped": (3, {"clip": 0.2}),
    "value_loss": (3, {"clip": 0.2}),
    "value_terms": (3, {"clip": None}),
    "value_clipped": (3, {"clip": 0.2}),
    "gae": (2, {"gamma": 1.0, "lam": 0.95}),
    "kl_estimates": (2, {}),
    "explained_variance": (2, {}),
    "masked_whiten": (1, {}),
    "masked_sum": (1, {}),
    "masked_mean": (1, {}),
    "masked_variance": (1, {}),
}
"""Functions of so many arrays [B,T] and a mask, and their keywords."""
TAKES_SCORES = {"shaped_rewards": (2, {"beta": 0.1})}
PAIRWISE = {"pairwise_loss": (3, {}), "dpo_loss": (4, {"beta": 0.1})}


@pytest.fixture
def unchecked(monkeypatch):
    """Functions as users run them: the tests' check of annotations comes before their own."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def call(name, mask, arrays, scores=None):
    """Outputs of the function, and the gradients of their sum by the arrays."""
    keywords = (TOKENWISE | TAKES_SCORES)[name][1]
    first = () if scores is None else (scores,)

    def total(arrays):
        found = getattr(losses, name)(*first, *arrays, mask, **keywords)
        return sum(jnp.sum(a) for a in jax.tree.leaves(found)), found

    gradients, found = jax.grad(total, has_aux=True)(arrays)
    return jax.tree.leaves(found), gradients


def draw(seed, count, B=4, T=6):
    rng = np.random.default_rng(seed)
    arrays = [jnp.asarray(rng.standard_normal((B, T)), jnp.float32) for _ in range(count)]
    mask = rng.random((B, T)) < 0.6
    mask[0, :2] = True
    return rng, arrays, jnp.asarray(mask)


@settings(deadline=None, max_examples=4)
@given(seed=st.integers(0, 10_000))
@pytest.mark.parametrize("name", TOKENWISE | TAKES_SCORES)
def test_finite_garbage_under_the_mask_changes_nothing(name, seed):
    rng, arrays, mask = draw(seed, (TOKENWISE | TAKES_SCORES)[name][0])
    scores = jnp.asarray(rng.standard_normal(4), jnp.float32) if name in TAKES_SCORES else None
    filled = [
        jnp.where(mask, a, jnp.asarray(rng.choice(GARBAGE, a.shape), jnp.float32)) for a in arrays
    ]
    expected, found = call(name, mask, arrays, scores), call(name, mask, filled, scores)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)
    for gradient in found[1]:
        assert not np.asarray(gradient)[~np.asarray(mask)].any()


@settings(deadline=None, max_examples=3)
@given(seed=st.integers(0, 10_000))
@pytest.mark.parametrize("name", TOKENWISE)
def test_rows_may_come_in_any_order_and_with_rows_of_nothing(name, seed):
    rng, arrays, mask = draw(seed, TOKENWISE[name][0])
    order = rng.permutation(5)
    empty = jnp.full((1, 6), 7.0)
    longer = [jnp.concatenate([a, empty])[order] for a in arrays]
    masks = jnp.concatenate([mask, jnp.zeros((1, 6), bool)])[order]
    found, gradients = call(name, masks, longer)
    expected, expected_gradients = call(name, mask, arrays)
    back = np.argsort(order)[:4]

    def in_order(a):
        return a[back] if np.ndim(a) == 2 else a

    for a, b in zip((*found, *gradients), (*expected, *expected_gradients), strict=True):
        np.testing.assert_allclose(in_order(a), b, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", TOKENWISE)
def test_a_mask_of_ones_and_zeros_is_the_same_mask(name):
    _, arrays, mask = draw(0, TOKENWISE[name][0])
    found, expected = (call(name, m, arrays) for m in (mask.astype(jnp.float32), mask))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", TOKENWISE)
def test_an_empty_mask_gives_zeros(name):
    _, arrays, mask = draw(0, TOKENWISE[name][0])
    found, gradients = call(name, mask & False, arrays)
    for a in (*found, *gradients):
        np.testing.assert_array_equal(a, np.zeros(a.shape))


@pytest.mark.parametrize("name", TOKENWISE)
def test_narrow_arrays_are_computed_in_float32(name):
    count, keywords = TOKENWISE[name]
    _, arrays, mask = draw(0, count)
    narrow = [a.astype(jnp.bfloat16) for a in arrays]
    found = jax.tree.leaves(getattr(losses, name)(*narrow, mask, **keywords))
    assert {a.dtype.name for a in found} == {"float32"}


def test_scores_with_an_axis_too_many_are_refused(unchecked):
    """[B,1] against [B] would broadcast to [B,B], and the mean hide it."""
    scores, margin, tokens = jnp.zeros((3, 1)), jnp.zeros(3), jnp.zeros((3, 4))
    with pytest.raises(ValueError, match=r"chosen must have the axes \[B\], not the shape \(3, 1"):
        losses.pairwise_loss(scores, scores, margin)
    with pytest.raises(ValueError, match=r"margin must have the axes \[B\]"):
        losses.pairwise_loss(margin, margin, jnp.zeros((3, 1)))
    with pytest.raises(ValueError, match=r"margin has the shape \(1,\), but chosen has \(3,\)"):
        losses.pairwise_loss(margin, margin, jnp.zeros(1))
    with pytest.raises(ValueError, match=r"scores must have the axes \[B\]"):
        losses.safety_loss(scores, margin > 0, margin > 0)
    with pytest.raises(ValueError, match=r"score_help has the shape \(2,\)"):
        losses.combined_score(margin, jnp.zeros(2), margin > 0)
    with pytest.raises(ValueError, match=r"is_safety has the shape \(3, 1\)"):
        losses.combined_score(margin, margin, scores > 0)
    with pytest.raises(ValueError, match=r"scores has the shape \(2,\), but mask has \(3, 4\)"):
        losses.shaped_rewards(jnp.zeros(2), tokens, tokens, tokens > 0, beta=0.1)


@pytest.mark.parametrize("name", PAIRWISE)
def test_pairs_of_integers_or_of_other_shapes_are_refused(name, unchecked):
    count, keywords = PAIRWISE[name]
    for place in range(count):
        arrays = [jnp.zeros(3) for _ in range(count)]
        arrays[place] = jnp.zeros(3, int)
        with pytest.raises(TypeError, match="must hold floating-point numbers, not int32"):
            getattr(losses, name)(*arrays, **keywords)
        arrays[place] = jnp.zeros((3, 3))
        with pytest.raises(ValueError, match=r"axes \[B\], not the shape \(3, 3\)"):
            getattr(losses, name)(*arrays, **keywords)


@pytest.mark.parametrize("name", TOKENWISE)
def test_tokens_of_integers_or_of_other_shapes_are_refused(name, unchecked):
    count, keywords = TOKENWISE[name]
    _, arrays, mask = draw(0, count)
    run = partial(getattr(losses, name), **keywords)
    for place in range(count):
        integers = [a.astype(int) if i == place else a for i, a in enumerate(arrays)]
        with pytest.raises(TypeError, match="must hold floating-point numbers, not int32"):
            run(*integers, mask)
        swapped = [mask if i == place else a for i, a in enumerate(arrays)]
        with pytest.raises(TypeError, match="must hold floating-point numbers, not bool"):
            run(*swapped, arrays[place])
        shorter = [a[:, :1] if i == place else a for i, a in enumerate(arrays)]
        with pytest.raises(ValueError, match="has the shape"):
            run(*shorter, mask)
    with pytest.raises(ValueError, match=r"mask has the shape \(4,\)"):
        run(*arrays, mask[:, 0])
    with pytest.raises(TypeError, match="mask must be boolean, or 0 and 1 as floats, not int32"):
        run(*arrays, mask.astype(int))


def test_groups_of_integer_rewards_are_refused(unchecked):
    with pytest.raises(TypeError, match="rewards must hold floating-point numbers, not int32"):
        losses.group_advantages(jnp.ones((2, 3), int))
    with pytest.raises(ValueError, match=r"rewards must have the axes \[P N\]"):
        losses.group_advantages(jnp.ones(3))


def test_double_precision_stays():
    with jax.enable_x64(True):
        _, arrays, mask = draw(0, 3)
        wide = [a.astype(jnp.float64) for a in arrays]
        assert losses.policy_loss(*wide, mask, clip=0.2).dtype == jnp.float64
        assert losses.gae(*wide[:2], mask, gamma=1.0, lam=0.9)[0].dtype == jnp.float64
