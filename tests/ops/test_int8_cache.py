"""Keys and values in int8 against the formula in float64."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_jax.ops.int8_cache import rounded, to_int8


def expected(x):
    """Numbers, and the scale of each vector."""
    scale = np.abs(x).max(-1) / 127
    return np.rint(x / np.where(scale > 0, scale, 1)[..., None]), scale


@given(st.integers(0, 2**32 - 1), st.integers(-6, 4), st.sampled_from([(3,), (2, 5), (1, 2, 3)]))
@settings(deadline=None, max_examples=30)
def test_each_vector_has_its_scale_and_each_number_is_the_nearest(seed, magnitude, rows):
    x = np.random.default_rng(seed).normal(size=(*rows, 16)) * 10.0**magnitude
    x.reshape(-1, 16)[0] = 0
    numbers, scale = to_int8(jnp.asarray(x, jnp.float32))
    wanted, wanted_scale = expected(x)
    np.testing.assert_allclose(scale, wanted_scale, rtol=1e-6)
    # One that lies between two numbers may go to either in float32.
    assert np.abs(np.asarray(numbers) - wanted).max() <= 1
    assert (np.asarray(numbers) != wanted).mean() < 0.02
    assert np.abs(np.asarray(numbers)).max() == 127
    again = np.asarray(rounded(jnp.asarray(x, jnp.float32)))
    assert np.all(np.abs(again - x) <= scale[..., None] * 0.5001)
    assert not np.any(again.reshape(-1, 16)[0])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rounding_twice_is_rounding_once_but_for_the_last_bit(dtype):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(64, 32)), dtype)
    once = rounded(x)
    assert once.dtype == dtype
    np.testing.assert_allclose(
        np.float32(rounded(once)), np.float32(once), rtol=1e-6 if dtype == "float32" else 1e-2
    )
