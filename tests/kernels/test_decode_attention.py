"""Decoding against a ragged cache, interpreted, against the float64 oracle."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax.kernels import decode_attention as module
from llama_jax.kernels.decode_attention import decode_attention, paged_decode_attention
from tests.kernels import oracle
from tests.kernels.test_flash_attention import check, jit

LENGTHS = np.array([0, 1, 130, 300], np.int32)


def cache(T, S, N, K, H, dtype="float32", seed=0):
    """Queries and a cache whose unused part is NaN: reading it would show."""
    rng = np.random.default_rng(seed)
    B = len(LENGTHS)
    q = rng.standard_normal((B, T, N, H))
    k, v = rng.standard_normal((2, B, S, K, H))
    for row, length in enumerate(LENGTHS):
        k[row, length:] = v[row, length:] = np.nan
    return [jnp.asarray(x, dtype) for x in (q, k, v)]


def expected(q, k, v):
    """Row by row over its valid keys; queries at negative positions see nothing."""
    out = np.zeros(q.shape)
    for b, length in enumerate(LENGTHS):
        T = q.shape[1]
        seen = oracle.visible(T, length, q_offset=length - T)
        if length:
            rows = (np.asarray(x[b : b + 1], np.float64) for x in (q, k[:, :length], v[:, :length]))
            out[b] = oracle.attention(*rows, seen)[0][0]
    return out


@pytest.mark.parametrize(
    ("T", "N", "K", "dtype", "splits"),
    [
        pytest.param(1, 16, 8, "float32", 1, id="gqa"),
        pytest.param(3, 2, 1, "bfloat16", 1, id="mqa-three-tokens-bf16"),
        pytest.param(1, 4, 4, "float32", 2, id="mha-split"),
        # Two heads in a word; two groups of eight heads, and halves of S to be merged.
        pytest.param(1, 16, 16, "bfloat16", 2, id="many-heads-split-bf16"),
    ],
)
def test_ragged_cache(T, N, K, dtype, splits, monkeypatch):
    monkeypatch.setattr(module, "STEP_ROWS", 1)
    q, k, v = cache(T, 400, N, K, 64, dtype)
    got = jit(functools.partial(decode_attention, splits=splits, interpret=True))(q, k, v, LENGTHS)
    check(got, expected(q, k, v), dtype, "out")


def quantized(x):
    """int8 and scales [B,K,S]; what is unused stays NaN in the scales."""
    x = np.asarray(x, np.float64)
    scale = np.abs(x).max(-1) / 127
    filled = np.where(np.isfinite(scale), scale, 1.0)
    whole = np.round(np.nan_to_num(x / filled[..., None])).astype(np.int8)
    return jnp.asarray(whole), jnp.asarray(scale.transpose(0, 2, 1), jnp.float32)


@pytest.mark.parametrize("K", [2, 8])
def test_int8_cache(K, monkeypatch):
    """Exactly the attention over the dequantised cache, not merely close to the original.

    With two heads a word of the cache holds two tokens, with eight half of one.
    """
    monkeypatch.setattr(module, "STEP_ROWS", 1)
    q, k, v = cache(1, 384, 2 * K, K, 64)
    (k8, k_scale), (v8, v_scale) = quantized(k), quantized(v)
    got = jit(functools.partial(decode_attention, interpret=True))(
        q, k8, v8, LENGTHS, k_scale=k_scale, v_scale=v_scale
    )
    k, v = (
        np.asarray(x, np.float64) * np.asarray(s, np.float64).transpose(0, 2, 1)[..., None]
        for x, s in ((k8, k_scale), (v8, v_scale))
    )
    check(got, expected(np.asarray(q), k, v), "float32", "out")


def test_page_table():
    """Pages in any order and shared places give what the contiguous cache gives."""
    q, k, v = cache(2, 384, 4, 2, 64)
    page, order = 128, np.random.default_rng(3).permutation(12)
    table = order.reshape(4, 3).astype(np.int32)
    pools = []
    for x in (k, v):
        pool = np.full((14, page, 2, 64), np.nan, np.float32)
        pool[order] = np.asarray(x).reshape(12, page, 2, 64)
        pools.append(jnp.asarray(pool))
    # Entries beyond a row's length may name any page.
    table[1, 1:] = 13
    got = jit(functools.partial(paged_decode_attention, interpret=True))(q, *pools, table, LENGTHS)
    check(got, expected(q, k, v), "float32", "out")


def test_errors_hold_the_values():
    q, k, v = cache(1, 128, 4, 2, 64)
    with pytest.raises(ValueError, match="N=3 must be a multiple of K=2"):
        decode_attention(q[:, :, :3], k, v, jnp.asarray(LENGTHS))
    with pytest.raises(ValueError, match="needs k_scale"):
        decode_attention(q, k.astype(jnp.int8), v.astype(jnp.int8), jnp.asarray(LENGTHS))
    with pytest.raises(ValueError, match="int8 or float32 as q, not bfloat16"):
        decode_attention(q, k.astype(jnp.bfloat16), v.astype(jnp.bfloat16), jnp.asarray(LENGTHS))
    with pytest.raises(ValueError, match="width H=32"):
        decode_attention(q[..., :32], k[..., :32], v[..., :32], jnp.asarray(LENGTHS))
    # In tests the annotations are checked before; users get these lines.
    scale = jnp.zeros((4, 128, 2))
    whole = [q, k.astype(jnp.int8), v.astype(jnp.int8), jnp.asarray(LENGTHS)]
    with pytest.raises(ValueError, match=r"k_scale \(4, 128, 2\) must be \(4, 2, 128\)"):
        module._validate(*whole, scale, scale)
    with pytest.raises(ValueError, match=r"lengths \(3,\) must be \(4,\)"):
        module._validate(q, k, v, whole[3][:3], None, None)
