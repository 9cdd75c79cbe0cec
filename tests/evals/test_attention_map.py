"""The probabilities of attention, against the float64 oracle."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax.evals.attention_map import attention_weights, farthest_looking
from llama_jax.model.llama import init_params
from llama_jax.model.presets import TINY
from tests import oracle


@pytest.mark.parametrize("changes", [{}, {"tie_embeddings": True, "dtype": "bfloat16"}])
def test_weights_are_those_of_the_oracle(changes):
    """In float32 whatever the run computes in; grouped heads, two layers."""
    cfg = replace(TINY, num_layers=2, num_kv_heads=2, **changes)
    params = init_params(jax.random.key(0), cfg)
    tokens = np.random.default_rng(0).integers(0, cfg.vocab_size, 9).astype(np.int32)
    found = attention_weights(params, jnp.asarray(tokens), config=cfg)
    (D, N, K, H), T = (cfg.d_model, cfg.num_heads, cfg.num_kv_heads, cfg.head_dim), len(tokens)
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    x, positions = p["embed"][tokens][None], np.arange(T)[None]
    rotary = oracle.rope_frequencies(H)
    for layer in range(2):
        w = {name: stacked[layer] for name, stacked in p["layers"].items()}
        h = oracle.rms_norm(x, w["attn_norm"], cfg.norm_eps)
        q = oracle.rope((h @ w["q"].reshape(D, N * H)).reshape(1, T, N, H), positions, *rotary)
        k = oracle.rope((h @ w["k"].reshape(D, K * H)).reshape(1, T, K, H), positions, *rotary)
        v = (h @ w["v"].reshape(D, K * H)).reshape(1, T, K, H)
        expected = np.zeros((N, T, T))
        for (_, t, n), (_, seen, _), weights in oracle._attention_weights(q, k):
            expected[n, t, seen] = weights
        np.testing.assert_allclose(found[layer], expected, atol=2e-6)
        x = x + oracle.attention(q, k, v).reshape(1, T, N * H) @ w["o"].reshape(N * H, D)
        h = oracle.rms_norm(x, w["mlp_norm"], cfg.norm_eps)
        x = x + oracle.swiglu(h, w["gate"], w["up"], w["down"])


def test_the_head_that_looks_farthest_ignores_its_neighbours_and_the_beginning():
    weights = np.zeros((2, 2, 5, 5))
    weights[0, 0, :, 0] = 1.0  # all at the beginning
    weights[0, 1] = np.eye(5)  # all at itself
    weights[1, 0] = np.eye(5, k=-1)  # all at the one before
    weights[1, 1, :, 0] = 0.9
    weights[1, 1, 4, 1] = 0.1
    assert farthest_looking(weights) == (1, 1)
    assert farthest_looking(weights[..., :2, :2]) == (0, 0)
