"""Scalar heads: what they compute, how they start, how they are laid out."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax.config import InputError, MeshConfig
from llama_jax.model.heads import apply_head, init_head, rescale_head, score_head
from llama_jax.model.llama import hidden, init_params
from llama_jax.model.presets import TINY
from llama_jax.parallel.mesh import make_mesh
from llama_jax.parallel.rules import named_sharding
from tests.comparison import assert_close, epsilon

WIDE = replace(TINY, d_model=4096)


def draw(dtype=jnp.float32, D=32):
    rng = np.random.default_rng(0)
    head = {
        "score": jnp.asarray(rng.standard_normal((D, 1)), jnp.float32),
        "score_bias": jnp.asarray([0.5], jnp.float32),
    }
    return head, jnp.asarray(rng.standard_normal((8, 6, D)), dtype)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_head_computes_in_float32(dtype):
    head, x = draw(dtype)
    exact = np.asarray(x, np.float64) @ np.asarray(head["score"], np.float64)[:, 0] + 0.5
    for inputs, expected in ((x, exact), (x[:, 2], exact[:, 2]), (x[1, 2], exact[1, 2])):
        found = apply_head(head, inputs)
        assert found.dtype == jnp.float32
        assert_close(found, expected, 1e-6, scale=np.abs(exact).max())


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gradients_agree_with_float64(dtype):
    head, x = draw(dtype)
    g = np.random.default_rng(1).standard_normal((8, 6))

    def loss(head, x):
        return jnp.sum(jnp.asarray(g, jnp.float32) * apply_head(head, x))

    d_head, d_x = jax.grad(loss, argnums=(0, 1))(head, x)
    assert d_head["score"].dtype == d_head["score_bias"].dtype == jnp.float32
    assert d_x.dtype == dtype
    wide = np.asarray(x, np.float64)
    assert_close(d_head["score"], np.einsum("bt,btd->d", g, wide)[:, None], 1e-6)
    assert_close(d_head["score_bias"], [g.sum()], 1e-6)
    exact = g[..., None] * np.asarray(head["score"], np.float64)[:, 0]
    assert_close(d_x, exact, max(epsilon(dtype), 1e-6))


def test_scores_of_a_fresh_head_have_unit_variance():
    head = init_head(jax.random.key(0), score_head(WIDE))
    assert {a.dtype.name for a in head.values()} == {"float32"}
    assert head["score"].shape == (4096, 1)
    assert float(jnp.std(head["score"])) == pytest.approx(1 / math.sqrt(4097), rel=0.05)
    np.testing.assert_array_equal(head["score_bias"], [0])


def test_the_head_that_a_model_declares_is_this_one():
    model = replace(TINY, head="score")
    params = init_params(jax.random.key(0), model)
    tokens = jnp.arange(12)[None] % TINY.vocab_size
    x, head = hidden(params, tokens, config=model)
    assert jax.tree.map(jnp.shape, head) == {k: w.shape for k, w in score_head(TINY).items()}
    scores = apply_head(head, x)
    assert scores.shape == (1, 12)
    exact = np.asarray(x[0], np.float64) @ np.asarray(params["score"], np.float64)[:, 0]
    assert_close(scores[0], exact, 1e-5)


def test_a_value_head_may_start_from_zeros():
    head = init_head(jax.random.key(0), score_head(TINY, zeros=True))
    _, x = draw(D=TINY.d_model)
    np.testing.assert_array_equal(apply_head(head, x), np.zeros((8, 6)))


def test_a_rescaled_head_gives_whitened_scores():
    head, x = draw()
    scores = np.asarray(apply_head(head, x), np.float64)
    white = apply_head(rescale_head(head, scores.mean(), jnp.float32(scores.std())), x)
    assert_close(white, (scores - scores.mean()) / scores.std(), 1e-5)
    with pytest.raises(InputError, match=r"sigma=0.0 must be positive"):
        rescale_head(head, 1.0, 0.0)


@pytest.mark.parametrize("axes", [{"fsdp": 8}, {"fsdp": 4, "tensor": 2}], ids=str)
def test_every_mesh_holds_a_head_and_computes_the_same(axes):
    head, x = draw()
    mesh = make_mesh(MeshConfig(**axes))
    table = score_head(replace(TINY, d_model=32))
    placed = {
        name: jax.device_put(head[name], named_sharding(w.axes, mesh, w.shape, name))
        for name, w in table.items()
    }
    assert {s.data.shape for s in placed["score"].addressable_shards} == {(32 // axes["fsdp"], 1)}

    def loss(head, x):
        return jnp.sum(jnp.square(apply_head(head, x)))

    rows = jax.device_put(x, named_sharding(("batch",), mesh))
    with jax.set_mesh(mesh):
        found = jax.jit(jax.value_and_grad(loss))(placed, rows)
    for a, b in zip(
        jax.tree.leaves(found), jax.tree.leaves(jax.value_and_grad(loss)(head, x)), strict=True
    ):
        assert_close(a, b, 1e-5)
