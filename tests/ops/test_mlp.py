import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax.ops.mlp import swiglu
from tests import oracle
from tests.comparison import assert_close, epsilon

B, T, D, F = 2, 5, 12, 20


def draw(dtype):
    """x, gate, up, down and the cotangent of the output."""
    rng = np.random.default_rng(0)
    shapes = (B, T, D), (D, F), (D, F), (F, D), (B, T, D)
    return [jnp.asarray(2 * rng.standard_normal(s) / np.sqrt(s[-2]), dtype) for s in shapes]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_value_and_gradients_agree_with_float64(dtype):
    *inputs, cotangent = draw(dtype)
    out, pullback = jax.vjp(swiglu, *inputs)
    tolerance = 1e-6 if dtype == jnp.float32 else 2 * epsilon(dtype)
    exact = [np.asarray(a, np.float64) for a in inputs]
    assert_close(out, oracle.swiglu(*exact), tolerance, "output")
    rng = np.random.default_rng(1)
    for i, gradient in enumerate(pullback(cotangent)):
        assert gradient.dtype == out.dtype == dtype
        for _ in range(3):
            direction = rng.standard_normal(gradient.shape)
            ahead, behind = (
                oracle.swiglu(*exact[:i], exact[i] + step * direction, *exact[i + 1 :])
                for step in (1e-6, -1e-6)
            )
            slope = ((ahead - behind) * np.asarray(cotangent, np.float64)).sum() / 2e-6
            size = np.linalg.norm(np.asarray(gradient, np.float64)) * np.linalg.norm(direction)
            error = abs((np.asarray(gradient, np.float64) * direction).sum() - slope)
            assert error <= tolerance * size, f"argument {i}: {slope}, off by {error}"


def test_large_inputs_saturate():
    """silu(-1000) is 0 and silu(1000) is 1000, with finite gradients."""
    one = jnp.ones((1, 1))
    for x, expected in {-1000.0: 0.0, 1000.0: 1e6}.items():
        value, gradient = jax.value_and_grad(lambda x: swiglu(x, one, one, one).sum())(
            jnp.full((1, 1, 1), x)
        )
        assert value == expected
        assert float(gradient.item()) == pytest.approx(expected and 2000.0)
