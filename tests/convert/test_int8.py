import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_jax.convert.int8 import Dequantized, quantize

RNG = np.random.default_rng(0)


def test_nearest_multiples_of_a_127th_of_the_largest():
    rows = RNG.standard_normal((6, 8)).astype(np.float32)
    rows[2] = 0
    values, scales = quantize(rows, 4)
    for group, q, scale in zip(rows.reshape(-1, 4), values, scales, strict=True):
        assert scale == np.float32(np.abs(group).max() / np.float32(127))
        assert np.abs(q).max() == (127 if scale else 0)
        assert np.all(np.abs(group - q * scale) <= scale * 0.5001)


def test_what_was_multiplied_out_is_quantised_to_the_same_again():
    rows = Dequantized(*quantize(RNG.standard_normal((64, 256)).astype(np.float32), 32), (64, 256))
    values, scales = quantize(rows[:], 32)
    assert np.array_equal(values, rows.values)
    assert np.array_equal(scales, rows.scales)


def test_a_127th_times_127_keeps_its_127th():
    """Every mantissa of float32: why the test above is no luck. It does not hold for all scales."""
    whole = np.arange(1 << 23, 1 << 24, dtype=np.uint32).astype(np.float32)
    c = np.float32(127)
    scale = whole / c
    assert np.array_equal(scale * c / c, scale)
    assert not np.array_equal(whole * c / c, whole)


@given(
    size=st.sampled_from([2, 4, 8, 12]), a=st.integers(0, 6), b=st.integers(0, 6),
    c=st.integers(0, 8), d=st.integers(0, 8),
)  # fmt: skip
def test_a_part_is_cut_out_of_groups_that_may_cross_rows(size, a, b, c, d):
    values = np.arange(-24, 24).astype(np.int8).reshape(-1, size)
    scales = np.linspace(0.5, 2, len(values)).astype(np.float32)
    whole = (values.astype(np.float32) * scales[:, None]).reshape(6, 8)
    lazy = Dequantized(values, scales, (6, 8))
    assert np.array_equal(lazy[...], whole)
    assert np.array_equal(lazy[a:b], whole[a:b])
    assert np.array_equal(lazy[a:b, c:d], whole[a:b, c:d])
    assert lazy[a:b, c:d].shape == whole[a:b, c:d].shape
    assert lazy[:, c:d].dtype == lazy.dtype == np.float32


def test_scales_that_are_not_finite_give_numbers_that_are_not():
    lazy = Dequantized(np.zeros((1, 2), np.int8), np.array([np.inf], np.float32), (1, 2))
    assert np.isnan(lazy[...]).all()


@pytest.mark.parametrize("rows", [1, 3])
def test_many_groups_at_a_time(monkeypatch, rows):
    whole = RNG.standard_normal((7, 8)).astype(np.float32)
    expected = quantize(whole, 4)
    monkeypatch.setattr("llama_jax.convert.int8._CHUNK", rows)
    for found, wanted in zip(quantize(whole, 4), expected, strict=True):
        assert np.array_equal(found, wanted)
