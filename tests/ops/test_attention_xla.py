"""What `attention_xla` promises beyond the contract: its tiles, and what never exists."""

import math
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AbstractMesh

from llama_jax.ops import attention_xla
from tests import oracle
from tests.comparison import assert_close, quick_jit


def tiling(**changes):
    values = {"causal": True, "q_offset": 0, "scale": 1.0, "queries": 4, "keys": 4}
    return attention_xla.Tiling(**values | changes)


@given(
    T=st.integers(1, 20),
    S=st.integers(1, 20),
    queries=st.integers(1, 6),
    keys=st.integers(1, 6),
    causal=st.booleans(),
    q_offset=st.none() | st.integers(-25, 25),
)
def test_tiles_are_those_in_which_a_query_may_see_a_key(T, S, queries, keys, causal, q_offset):
    expected = {
        (t // queries, s // keys)
        for t in range(T)
        for s in range(S)
        if not causal or q_offset is None or s <= q_offset + t
    }
    cut = tiling(causal=causal, q_offset=q_offset, queries=queries, keys=keys)
    visited = list(zip(*map(np.ndarray.tolist, attention_xla._tiles(T, S, cut)), strict=True))
    assert len(visited) == len(set(visited))
    assert set(visited) == expected


@settings(deadline=None, max_examples=10)
@given(
    T=st.integers(1, 13),
    S=st.integers(1, 13),
    queries=st.integers(1, 5),
    keys=st.integers(1, 5),
    causal=st.booleans(),
    q_offset=st.integers(-4, 8),
    packed=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_tiles_give_the_values_and_gradients_of_float64(
    T, S, queries, keys, causal, q_offset, packed, seed
):
    B, N, K, H = 2, 4, 2, 4
    rng = np.random.default_rng(seed)
    shapes = ((B, T, N, H), (B, S, K, H), (B, S, K, H), (B, T, N, H))
    # Logits of some tens: a query's largest one moves from tile to tile.
    *arrays, cotangent = (4 * rng.standard_normal(s).astype(np.float32) for s in shapes)
    ids = [np.sort(rng.integers(0, 3, (B, n)), axis=1) if packed else None for n in (T, S)]
    cut = tiling(causal=causal, q_offset=q_offset, scale=0.5, queries=queries, keys=keys)

    @quick_jit
    def run(*arrays):
        attend = partial(attention_xla._attend, masks=(*ids, None), tiling=cut)
        out, pullback = jax.vjp(attend, *arrays)
        return out, pullback(jnp.asarray(cotangent))

    out, gradients = run(*arrays)
    options = {"causal": causal, "q_offset": q_offset, "scale": 0.5}
    options |= {"segment_ids": ids[0], "kv_segment_ids": ids[1]}
    assert_close(out, oracle.attention(*arrays, **options), 1e-5)
    expected = oracle.attention_gradients(*arrays, cotangent, **options)
    scale = max(np.abs(e).max() for e in expected)
    for actual, wanted in zip(gradients, expected, strict=True):
        assert_close(actual, wanted, 2e-5, scale=scale)


def test_no_weights_and_no_mask_of_a_whole_sequence_exist_in_a_stack_of_layers():
    B, T, N, H = 32, 256, 8, 8
    segment_ids = jnp.ones((B, T), jnp.int32)

    def loss(x):
        def layer(x, _):
            out = attention_xla.attend(x, x, x, True, segment_ids, segment_ids, 0, 1.0)
            return x + out, None

        return jnp.sum(jax.lax.scan(layer, x, length=3)[0])

    compiled = jax.jit(jax.grad(loss)).lower(jnp.ones((B, T, N, H))).compile()
    shapes = re.findall(r"\w+\[([\d,]+)\]", compiled.as_text())
    largest = max(math.prod(map(int, shape.split(","))) for shape in shapes)
    # Tiles of 64 x 64 are a sixteenth; the ten that are visited would be more than a half.
    assert largest < B * N * T * T // 4


@pytest.mark.parametrize(("shape", "expected"), [((32, 256, 8, 8), 64), ((2, 1024, 8, 64), 256)])
def test_a_tile_fits_the_cache_of_one_device(shape, expected):
    find = partial(attention_xla._tile_shape, S=shape[1], q_offset=0)
    assert find(shape) == (expected, expected)
    with jax.sharding.use_abstract_mesh(AbstractMesh((4, 2), ("data", "tensor"))):
        assert find((4 * shape[0], shape[1], 2 * shape[2], shape[3])) == (expected, expected)


def test_generation_cuts_alike_whatever_the_batch():
    shapes = {attention_xla._tile_shape((B, 300, 8, 64), 4096, None) for B in (1, 8, 512)}
    assert shapes == {(60, 4096)}
