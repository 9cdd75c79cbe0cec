from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax.model.layer import decoder_layer, order_of_cache
from llama_jax.model.llama import hidden
from llama_jax.model.weights import abstract_params
from llama_jax.ops.cached_attention import VALUES
from llama_jax.ops.norm import rms_norm
from tests.comparison import assert_close, assert_trees_close, quick_jit, random_params
from tests.model.small import SMALL, packed, tokens_of

PARAMS = random_params(abstract_params(SMALL))


def layer_of(index):
    return {name: stacked[index] for name, stacked in PARAMS["layers"].items()}


def test_the_scan_is_a_loop_over_the_layer():
    tokens = tokens_of(SMALL, 2, 16)
    segment_ids, positions = packed((9, 7), (2, 14))

    def loop(params):
        x = params["embed"][tokens]
        for index in range(SMALL.num_layers):
            w = {name: stacked[index] for name, stacked in params["layers"].items()}
            x, _ = decoder_layer(w, x, None, positions, segment_ids, cfg=SMALL)
        return rms_norm(x, params["norm"], eps=SMALL.norm_eps)

    def scan(params):
        layout = {"positions": positions, "segment_ids": segment_ids}
        return hidden(params, tokens, config=SMALL, **layout)[0]

    weights = jnp.cos(jnp.arange(2 * 16 * SMALL.d_model, dtype=jnp.float32))

    def value_and_gradient(f):
        def total(params):
            x = f(params)
            return x.ravel() @ weights, x

        gradient, x = quick_jit(jax.grad(total, has_aux=True))(PARAMS)
        return {"residual stream": x, **gradient}

    assert_trees_close(value_and_gradient(scan), value_and_gradient(loop), 1e-5)


def test_the_layers_differ_and_stand_in_order():
    tokens = tokens_of(SMALL, 1, 8)
    run = quick_jit(lambda params: hidden(params, tokens, config=SMALL)[0])
    swapped = {**PARAMS, "layers": jax.tree.map(lambda a: a[::-1], PARAMS["layers"])}
    assert float(jnp.abs(run(PARAMS) - run(swapped)).max()) > 0.1


@pytest.mark.parametrize("starts", [(0, 0), (4, 1)], ids=["fresh", "ragged"])
def test_a_cache_continues_the_layer(starts):
    """Rows of 4 and 1 cached positions; 3 new ones, then 1: as one row computed whole."""
    B, S, T = 2, 12, 8
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((B, T, SMALL.d_model)), jnp.float32)
    run = quick_jit(partial(decoder_layer, cfg=SMALL))
    positions = jnp.tile(jnp.arange(T)[None], (B, 1))
    whole, none = run(layer_of(0), x, None, positions, None)
    assert none is None

    # A cache full of what an earlier, longer prompt left: none of it may be seen.
    sizes = {"B": B, "K": SMALL.num_kv_heads, "S": S, "H": SMALL.head_dim}
    order = order_of_cache(SMALL, B)
    shapes = [[sizes[axis] for axis in axes] for axes in (order, VALUES[order])]
    kv = tuple(jnp.asarray(100 * rng.standard_normal(shape), jnp.float32) for shape in shapes)
    before = np.asarray(starts)
    if before.any():
        _, kv = run(layer_of(0), x[:, :4], kv, positions[:, :4], None)
    for length in (3, 1):
        rows = before[:, None] + np.arange(length)[None]
        new = jnp.take_along_axis(x, jnp.asarray(rows)[:, :, None], axis=1)
        out, kv = run(layer_of(0), new, kv, jnp.asarray(rows), None)
        expected = np.take_along_axis(np.asarray(whole), rows[:, :, None], axis=1)
        assert_close(out, expected, 1e-5)
        before = before + length


def test_a_bfloat16_stream_stays_bfloat16():
    w = {k: v.astype(jnp.bfloat16) if v.ndim > 1 else v for k, v in layer_of(0).items()}
    x = jnp.ones((1, 3, SMALL.d_model), jnp.bfloat16)
    out, _ = decoder_layer(w, x, None, jnp.arange(3)[None], None, cfg=SMALL)
    assert out.dtype == jnp.bfloat16
