import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_jax.ops.norm import rms_norm
from tests import oracle
from tests.comparison import assert_close


def draw(shape, seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(scale * rng.standard_normal(shape), jnp.float32)


@pytest.mark.parametrize("shape", [(8,), (3, 8), (2, 3, 5, 16)])
def test_agrees_with_the_formula(shape):
    x, scale = draw(shape), 1 + draw(shape[-1:], 1)
    assert_close(rms_norm(x, scale, eps=1e-5), oracle.rms_norm(x, scale, 1e-5), 1e-6)


@pytest.mark.parametrize("width", [40, 288, 512, 4096])
def test_one_position_is_normed_alike_among_any_number_of_rows(optimized, width):
    rng = np.random.default_rng(width)
    x = rng.standard_normal((33, 1, width)).astype(np.float32)
    scale = jnp.asarray(rng.standard_normal(width), jnp.float32)
    run = jax.jit(lambda x: rms_norm(x, scale, eps=1e-5))
    found = np.asarray(run(jnp.asarray(x)))
    np.testing.assert_allclose(found, oracle.rms_norm(x, scale, eps=1e-5), rtol=2e-6, atol=2e-6)
    for B in (1, 2, 4, 5, 8, 16):
        np.testing.assert_array_equal(
            np.asarray(run(jnp.asarray(x[:B]))), found[:B], err_msg=f"{B} rows"
        )


def test_eps_stands_inside_the_root():
    x = jnp.full((1, 4), 1e-3)  # mean square 1e-6: small against eps
    expected = 1e-3 / np.sqrt(1e-6 + 1e-2)
    np.testing.assert_allclose(rms_norm(x, jnp.ones(4), eps=1e-2), expected, rtol=1e-6)


@settings(deadline=None, max_examples=20)
@given(exponent=st.integers(-4, 12), seed=st.integers(0, 1000))
def test_the_scale_of_the_input_drops_out(exponent, seed):
    x, scale = draw((3, 16), seed), 1 + draw((16,), seed + 1)
    plain = rms_norm(x, scale, eps=1e-30)
    # Powers of two commute with rounding, squares included.
    np.testing.assert_array_equal(rms_norm(x * 2.0**exponent, scale, eps=1e-30), plain)


def test_bfloat16_is_the_float32_result_rounded_once():
    x, scale = draw((64, 64)).astype(jnp.bfloat16), 1 + draw((64,), 1)
    out = rms_norm(x, scale, eps=1e-5)
    assert out.dtype == jnp.bfloat16
    expected = rms_norm(x.astype(jnp.float32), scale, eps=1e-5).astype(jnp.bfloat16)
    np.testing.assert_array_equal(out, expected)


def test_gradients_agree_with_float64():
    x, scale, g = draw((4, 8)), 1 + draw((8,), 1), draw((4, 8), 2)
    _, pullback = jax.vjp(lambda x, s: rms_norm(x, s, eps=1e-5), x, scale)
    for argument, gradient in enumerate(pullback(g)):
        direction = np.asarray(draw(gradient.shape, 3 + argument), np.float64)

        def along(step, argument=argument, direction=direction):
            arguments = [np.asarray(x, np.float64), np.asarray(scale, np.float64)]
            arguments[argument] = arguments[argument] + step * direction
            return (oracle.rms_norm(*arguments, 1e-5) * np.asarray(g)).sum()

        slope = (along(1e-5) - along(-1e-5)) / 2e-5
        np.testing.assert_allclose((np.asarray(gradient) * direction).sum(), slope, rtol=1e-4)


def test_a_row_of_zeros_has_finite_gradients():
    gradient = jax.grad(lambda x: rms_norm(x, jnp.ones(4), eps=1e-5).sum())(jnp.zeros((1, 4)))
    np.testing.assert_allclose(gradient, 1e-5**-0.5, rtol=1e-6)
