"""GPTQ by its definition: after each rounding, the rest is chosen again by least squares."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax.config import Quantization, QuantizedModel
from llama_jax.model.gptq import Rows, best_scale, calibrated, choose, nearest
from llama_jax.model.layer import decoder_layer
from llama_jax.model.llama import init_params
from llama_jax.model.matrix import matrices
from llama_jax.model.presets import TINY
from llama_jax.model.quantize import quantized


def case(n, m, seed=0):
    """Inputs that hang together, and a matrix."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(n, n)) * np.exp(-np.arange(n) / 20)[None]
    return rng.normal(size=(400, n)) @ mix.T, rng.normal(size=(n, m)) * 0.05


def dense(codes, scales, n):
    """The numbers of the first n inputs."""
    group = len(codes) // len(scales)
    return ((codes - 8.0) * np.repeat(scales.astype(np.float64), group, axis=0))[:n]


@pytest.mark.parametrize("group", [32, 128])
def test_each_rounding_is_made_good_by_the_rows_that_are_left(group):
    x, w = case(70, 3)
    h = x.T @ x
    codes, scales = choose(w, h, group)
    h = h + 0.01 * np.trace(h) / 70 * np.eye(70)
    left = w.copy()
    for i in range(70):
        if i % group == 0:
            scale = best_scale(left[i : i + group])
            np.testing.assert_array_equal(scale, scales[i // group])
        found = nearest(left[i], scale.astype(np.float64))
        np.testing.assert_array_equal(found, codes[i])
        error = left[i] - (found - 8.0) * scale.astype(np.float64)
        rest = slice(i + 1, None)
        left[rest] += np.outer(np.linalg.solve(h[rest, rest], h[rest, i]), error)
    assert np.all(codes[70:] == 8)  # what fills the last group up


@pytest.mark.parametrize("group", [32, 128])
def test_the_product_changes_less_than_by_rounding_to_the_nearest(group):
    x, w = case(160, 24, seed=1)
    codes, scales = choose(w, x.T @ x, group)
    plain = np.zeros_like(w)
    for start in range(0, 160, group):
        part = w[start : start + group]
        scale = np.broadcast_to(best_scale(part).astype(np.float64)[None], part.shape)
        plain[start : start + group] = (nearest(part, scale) - 8.0) * scale
    before, after = (np.linalg.norm(x @ (q - w)) for q in (plain, dense(codes, scales, 160)))
    assert after < 0.7 * before


def test_inputs_that_were_never_seen_and_zeros_are_rounded_all_the_same():
    codes, scales = choose(np.zeros((40, 2)), np.zeros((40, 40)), 32)
    assert np.all(codes == 8)
    assert np.all(scales == 0)


def test_a_layer_is_closer_to_itself_than_by_rounding_to_the_nearest():
    """On the rows that it was chosen for; rows of segment 0 count for nothing."""
    quant = Quantization(weights="int4", group=32)
    small = QuantizedModel.of(TINY, quant)
    params = init_params(jax.random.key(0), TINY)
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(TINY.d_model, TINY.d_model))
    x = jnp.asarray(rng.normal(size=(8, 32, TINY.d_model)) @ mix, jnp.float32)
    positions = jnp.tile(jnp.arange(32)[None], (8, 1))
    segments = jnp.ones((8, 32), jnp.int32).at[6:].set(0)
    heard = []
    beat = lambda *done: heard.append(done)  # noqa: E731
    rows = Rows(x, positions, segments)
    chosen = calibrated(params["layers"], [rows], small, 32, beat)
    assert heard == [(1, 2), (2, 2)]
    elsewhere = rows._replace(x=x.at[6:].set(7.0))
    again = calibrated(params["layers"], [elsewhere], small, 32)
    for a, b in zip(jax.tree.leaves(chosen), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)

    def layer(w, cfg):
        return decoder_layer(w, x, None, positions, segments, cfg=cfg)[0][:6]

    first = {name: a[0] for name, a in params["layers"].items()}
    plain = {name: a[0] for name, a in quantized(params, small)["layers"].items()}
    expected = layer(first, TINY)
    nearest_ = jnp.linalg.norm(layer(matrices(plain, small), small) - expected)
    own = jnp.linalg.norm(layer({**first, **chosen[0]}, small) - expected)
    assert own < 0.8 * nearest_
