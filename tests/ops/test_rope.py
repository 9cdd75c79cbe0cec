import math

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_jax.ops.rope import apply_rope, rope_frequencies
from tests import oracle
from tests.comparison import assert_close, epsilon

SCALINGS = [("none", 1.0), ("linear", 8.0), ("ntk", 4.0), ("yarn", 8.0), ("yarn", 2.5)]
FLOAT32 = epsilon(jnp.float32)


def frequencies_of(H, scaling="none", factor=1.0, theta=10_000.0, pretrained_len=4096.0):
    return rope_frequencies(
        H, theta=theta, scaling=scaling, factor=factor, pretrained_len=pretrained_len
    )


def draw(shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


@pytest.mark.parametrize(("scaling", "factor"), SCALINGS)
@pytest.mark.parametrize(("H", "pretrained_len"), [(128, 4096.0), (64, 2048.0), (8, 64.0)])
def test_frequencies_agree_with_the_formulas(scaling, factor, H, pretrained_len):
    frequencies, amplitude = frequencies_of(H, scaling, factor, pretrained_len=pretrained_len)
    expected, expected_amplitude = oracle.rope_frequencies(
        H, scaling=scaling, factor=factor, pretrained_len=pretrained_len
    )
    assert frequencies.dtype == np.float32
    np.testing.assert_allclose(frequencies, expected, rtol=FLOAT32)
    assert amplitude == pytest.approx(expected_amplitude, rel=1e-12)


def test_ntk_slows_the_slowest_plane_by_the_factor_and_leaves_the_fastest():
    plain, _ = frequencies_of(128)
    slowed, _ = frequencies_of(128, "ntk", 8.0)
    assert slowed[0] == plain[0] == 1
    assert slowed[-1] == pytest.approx(plain[-1] / 8, rel=1e-6)
    assert (np.diff(plain / slowed) > 0).all()


@pytest.mark.parametrize("theta", [10_000.0, 500_000.0])
def test_yarn_keeps_what_turns_often_and_interpolates_what_turns_less_than_once(theta):
    plain, _ = frequencies_of(128, theta=theta)
    yarn, amplitude = frequencies_of(128, "yarn", 8.0, theta=theta)
    turns = 4096 * plain / (2 * np.pi)
    np.testing.assert_allclose(yarn[turns > 32], plain[turns > 32], rtol=FLOAT32)
    np.testing.assert_allclose(yarn[turns < 1], plain[turns < 1] / 8, rtol=FLOAT32)
    ratio = yarn / plain
    assert (ratio >= 1 / 8 - 1e-6).all()
    assert (ratio <= 1 + 1e-6).all()
    assert (np.diff(ratio) < 1e-6).all()
    # Between the thresholds, but for the plane next to each, a frequency is neither.
    between = (turns < 25) & (turns > 1.25)
    assert (ratio[between] > 1 / 8 + 1e-3).all()
    assert (ratio[between] < 1 - 1e-3).all()
    assert amplitude == pytest.approx(0.1 * math.log(8) + 1)


def test_an_unknown_scaling_is_refused_by_name():
    with pytest.raises(ValueError, match="scaling='dynamic' must be one of none, linear"):
        frequencies_of(8, "dynamic", 2.0)


def test_planes_are_the_two_halves():
    x = jnp.asarray([1.0, 0.0, 0.0, 0.0]).reshape(1, 1, 1, 4)  # first axis of plane (0, 2)
    turned = apply_rope(x, jnp.asarray([[3]]), np.asarray([0.5, 0.1], np.float32), 1.0)
    expected = [math.cos(1.5), 0, math.sin(1.5), 0]
    np.testing.assert_allclose(turned.reshape(4), expected, atol=FLOAT32)


@pytest.mark.parametrize(("scaling", "factor"), SCALINGS)
def test_agrees_with_rotation_matrices(scaling, factor):
    x = draw((2, 5, 3, 8))
    positions = np.asarray([[0, 1, 2, 3, 4], [7, 63, 64, 100, 511]])
    rotary = frequencies_of(8, scaling, factor, pretrained_len=64.0)
    expected = oracle.rope(
        x,
        positions,
        *oracle.rope_frequencies(8, scaling=scaling, factor=factor, pretrained_len=64.0),
    )
    # A float32 angle of p radians is off by up to p * 2^-23: frequency and product are rounded.
    tolerance = FLOAT32 * (positions.max() + 8)
    assert_close(apply_rope(x, jnp.asarray(positions), *rotary), expected, tolerance)


def test_bfloat16_is_rotated_in_float32():
    x = draw((1, 4, 2, 8)).astype(jnp.bfloat16)
    positions = jnp.asarray([[0, 257, 515, 1001]])  # none but 0 is a bfloat16
    out = apply_rope(x, positions, *frequencies_of(8))
    assert out.dtype == jnp.bfloat16
    expected = oracle.rope(x, np.asarray(positions), *oracle.rope_frequencies(8))
    assert_close(out, expected, 0.6 * epsilon(jnp.bfloat16))


@settings(deadline=None, max_examples=25)
@given(
    m=st.integers(0, 2000),
    n=st.integers(0, 2000),
    shift=st.integers(0, 2000),
    scaling=st.sampled_from(SCALINGS),
    seed=st.integers(0, 100),
)
def test_inner_products_depend_on_the_distance_only(m, n, shift, scaling, seed):
    rotary = frequencies_of(16, *scaling)
    pair = jnp.tile(draw((1, 2, 1, 16), seed), (2, 1, 1, 1))
    near, far = apply_rope(pair, jnp.asarray([[m, n], [m + shift, n + shift]]), *rotary)
    size = rotary[1] ** 2 * float(jnp.linalg.norm(pair[0, 0]) * jnp.linalg.norm(pair[0, 1]))
    products = [float((row[0, 0] * row[1, 0]).sum()) for row in (near, far)]
    assert products[0] == pytest.approx(products[1], abs=2 * FLOAT32 * 4000 * size)


@settings(deadline=None, max_examples=15)
@given(position=st.integers(0, 4000), scaling=st.sampled_from(SCALINGS), seed=st.integers(0, 100))
def test_lengths_grow_by_the_amplitude(position, scaling, seed):
    rotary = frequencies_of(16, *scaling)
    x = draw((1, 1, 1, 16), seed)
    out = apply_rope(x, jnp.asarray([[position]]), *rotary)
    expected = (0.1 * math.log(scaling[1]) + 1) if scaling[0] == "yarn" else 1.0
    assert np.linalg.norm(out) / np.linalg.norm(x) == pytest.approx(expected, rel=1e-6)
