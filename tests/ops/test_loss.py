from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_jax.ops.loss import chunk_length, cross_entropy, next_token_targets
from tests import oracle
from tests.comparison import assert_close, epsilon, quick_jit

B, T, D, V = 3, 12, 8, 40


def draw(dtype=jnp.float32, seed=0):
    """x, head, targets, mask; logits of a size that training sees."""
    rng = np.random.default_rng(seed)
    x = jnp.asarray(rng.standard_normal((B, T, D)), dtype)
    head = jnp.asarray(rng.standard_normal((D, V)), dtype)
    targets = jnp.asarray(rng.integers(0, V, (B, T)), jnp.int32)
    return x, head, targets, jnp.asarray(rng.random((B, T)) < 0.7)


@cache
def value_and_gradients(z_loss, chunk):
    """Compiled: (x, head, targets, mask) -> (loss, targets counted), (d_x, d_head)."""
    loss = partial(cross_entropy, z_loss=z_loss, chunk=chunk)
    return quick_jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))


def exact(x, head, targets, mask, z_loss):
    """The oracle's value, and the gradients by hand: softmax (1 + 2 z log Z) - onehot."""
    x, head = np.asarray(x, np.float64), np.asarray(head, np.float64)
    logits = x @ head
    log_z = np.log(np.exp(logits).sum(-1, keepdims=True))
    d_logits = np.exp(logits - log_z) * (1 + 2 * z_loss * log_z) - np.eye(V)[targets]
    d_logits *= np.asarray(mask)[..., None]
    value = oracle.cross_entropy(logits, np.asarray(targets), mask, z_loss)
    return value, d_logits @ head.T, np.einsum("btd,btv->dv", x, d_logits)


@pytest.mark.parametrize("z_loss", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_value_and_gradients_agree_with_float64(z_loss, dtype):
    arrays = draw(dtype)
    (loss, count), gradients = value_and_gradients(z_loss, 4)(*arrays)
    assert loss.dtype == count.dtype == jnp.float32
    assert count == np.asarray(arrays[3]).sum()
    value, *expected = exact(*arrays, z_loss)
    # Logits are float32 sums of exact products whatever the dtype, and so is the loss.
    assert float(loss) == pytest.approx(value, rel=1e-6)
    tolerance = 1e-6 if dtype == jnp.float32 else epsilon(dtype)
    for actual, wanted in zip(gradients, expected, strict=True):
        assert actual.dtype == dtype
        assert_close(actual, wanted, tolerance)


def test_the_value_alone_is_the_value_with_its_gradient():
    arrays = draw()
    (loss, _), _ = value_and_gradients(0.1, 4)(*arrays)
    alone, _ = quick_jit(partial(cross_entropy, z_loss=0.1, chunk=4))(*arrays)
    assert float(alone) == pytest.approx(float(loss), rel=1e-6)


def test_the_gradient_is_linear_in_its_cotangent():
    x, head, targets, mask = draw()

    def scaled(x, head):
        return -2.5 * cross_entropy(x, head, targets, mask, z_loss=0.1, chunk=4)[0]

    _, expected = value_and_gradients(0.1, 4)(x, head, targets, mask)
    for actual, wanted in zip(jax.grad(scaled, argnums=(0, 1))(x, head), expected, strict=True):
        assert_close(actual, -2.5 * wanted, 1e-6)


@pytest.mark.parametrize("chunk", [1, 3, 6, 12])
def test_the_chunk_changes_nothing(chunk):
    arrays = draw(seed=1)
    (loss, count), gradients = value_and_gradients(0.01, chunk)(*arrays)
    (expected, expected_count), expected_gradients = value_and_gradients(0.01, 4)(*arrays)
    assert count == expected_count
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)
    for actual, wanted in zip(gradients, expected_gradients, strict=True):
        assert_close(actual, wanted, 1e-6)


def test_a_masked_position_counts_for_nothing():
    x, head, targets, mask = draw()
    other = jnp.where(mask, targets, (targets + 1) % V)
    louder = jnp.where(mask[..., None], x, 100 * x)
    (loss, _), (d_x, d_head) = value_and_gradients(0.1, 4)(x, head, targets, mask)
    (same, _), (_, same_head) = value_and_gradients(0.1, 4)(louder, head, other, mask)
    assert loss == same
    np.testing.assert_array_equal(d_head, same_head)
    assert not np.asarray(d_x)[~np.asarray(mask)].any()


def test_nothing_to_predict_gives_zero_and_finite_gradients():
    x, head, targets, mask = draw()
    (loss, count), gradients = value_and_gradients(0.1, 4)(x, head, targets, mask & False)
    assert (loss, count) == (0, 0)
    for gradient in gradients:
        np.testing.assert_array_equal(gradient, jnp.zeros_like(gradient))


def test_huge_logits_stay_finite():
    x, head, targets, mask = draw()
    (loss, _), gradients = value_and_gradients(0.0, 4)(1e4 * x, head, targets, mask)
    logits = np.asarray(1e4 * x, np.float64) @ np.asarray(head, np.float64)
    expected = oracle.cross_entropy(logits, np.asarray(targets), mask)
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert all(np.isfinite(np.asarray(g)).all() for g in gradients)


def test_what_does_not_fit_is_refused_with_its_values():
    x, head, targets, mask = draw()
    with pytest.raises(ValueError, match="T=12 must be divisible by chunk=5"):
        cross_entropy(x, head, targets, mask, z_loss=0.0, chunk=5)
    with pytest.raises(ValueError, match=r"one dtype, not x.dtype=.*float32.*bfloat16"):
        cross_entropy(x, head.astype(jnp.bfloat16), targets, mask, z_loss=0.0, chunk=4)


def test_targets_as_drawn():
    #           two documents    padding   one document to the row's end
    segments = [[1, 1, 1, 2, 2, 2, 0, 0], [1, 1, 1, 1, 1, 1, 1, 1]]
    tokens = [[5, 6, 7, 8, 9, 4, 0, 0], [1, 2, 3, 4, 5, 6, 7, 8]]
    counted = [[1, 1, 1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1, 1, 1]]
    wanted = [[1, 1, 0, 1, 0, 0, 0, 0], [0, 0, 1, 1, 1, 1, 1, 0]]
    answers = [[6, 7, 0, 9, 0, 0, 0, 0], [0, 0, 4, 5, 6, 7, 8, 0]]
    targets, mask = next_token_targets(
        jnp.asarray(tokens), jnp.asarray(segments), jnp.asarray(counted, bool)
    )
    np.testing.assert_array_equal(mask, np.asarray(wanted, bool))
    np.testing.assert_array_equal(targets * mask, answers)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10_000), packed=st.booleans(), chosen=st.booleans())
def test_targets_agree_with_their_definition(seed, packed, chosen):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 9, (2, 10))
    segment_ids = np.sort(rng.integers(0, 4, (2, 10)))[:, ::-1] if packed else None
    loss_mask = rng.random((2, 10)) < 0.5 if chosen else None
    optional = [None if a is None else jnp.asarray(a) for a in (segment_ids, loss_mask)]
    targets, mask = next_token_targets(jnp.asarray(tokens), *optional)
    expected, expected_mask = oracle.next_token_targets(tokens, segment_ids, loss_mask)
    np.testing.assert_array_equal(mask, expected_mask)
    np.testing.assert_array_equal(targets * mask, expected * expected_mask)


@settings(deadline=None, max_examples=30)
@given(
    rows=st.sampled_from([1, 8, 1024]),
    T=st.sampled_from([1, 2, 509, 512, 4096]),
    V=st.sampled_from([256, 32_000]),
)
def test_chunks_divide_the_row_and_are_less_than_it(rows, T, V):
    chunk = chunk_length(rows, T, V)
    assert T % chunk == 0
    assert chunk < T or T == 1
