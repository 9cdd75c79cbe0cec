"""Matrices with adapters: products, gradients and merging against the dense matrix W + s A B."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax.config import MATRICES, AdaptedModel, InputError, LoraConfig, MeshConfig, plain
from llama_jax.model.llama import apply, init_params
from llama_jax.model.matrix import LowRank, gated_down, matrices, merged, project
from llama_jax.model.presets import TINY
from llama_jax.model.weights import layer_weights, model_weights, parameter_count
from llama_jax.parallel.arrays import shard_batch
from llama_jax.parallel.mesh import make_mesh
from llama_jax.train.next_token import NextToken
from llama_jax.train.state import param_shardings, select, trained_table
from llama_jax.train.step import mean_loss_and_gradient
from tests.train.test_step import make_batch

LORA = LoraConfig(rank=3, alpha=5.0)
ADAPTED = AdaptedModel.of(TINY, LORA)
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, TINY.vocab_size, (2, 16)), jnp.int32)


def random_params(cfg, seed=1):
    """Fresh ones, with an adapter that does something."""
    params = init_params(jax.random.key(0), cfg)
    rng = np.random.default_rng(seed)
    layers = {
        name: jnp.asarray(rng.normal(size=w.shape) * 0.1, jnp.float32) if name[-2:] == "_b" else w
        for name, w in params["layers"].items()
    }
    return params | {"layers": layers}


def dense(w, inputs):
    """W + s A B in float64, as one matrix."""
    a, b = (np.asarray(m, np.float64) for m in (w.a, w.b))
    delta = np.tensordot(a, b, axes=1)
    return np.asarray(w.base, np.float64) + w.scale * delta.reshape(w.base.shape), inputs


@pytest.mark.parametrize(("name", "inputs"), [("q", 1), ("o", 2), ("down", 1)])
def test_a_product_is_that_of_the_dense_matrix(name, inputs):
    w = matrices({k: v[0] for k, v in random_params(ADAPTED)["layers"].items()}, ADAPTED)[name]
    assert isinstance(w, LowRank)
    assert w.scale == pytest.approx(5 / 3)
    x = np.random.default_rng(2).normal(size=(2, 4, *w.base.shape[:inputs]))
    expected = np.tensordot(x, dense(w, inputs)[0], axes=inputs)
    found = project(jnp.asarray(x, jnp.float32), w, inputs)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_the_gated_product_is_that_of_the_dense_matrix():
    w = matrices({k: v[0] for k, v in random_params(ADAPTED)["layers"].items()}, ADAPTED)["down"]
    g, u = np.random.default_rng(3).normal(size=(2, 2, 4, TINY.d_ff))
    expected = (g / (1 + np.exp(-g)) * u) @ dense(w, 1)[0]
    found = gated_down(*(jnp.asarray(a, jnp.float32) for a in (g, u)), w)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_fresh_adapters_change_no_bit_and_merged_ones_give_the_same_logits():
    base = init_params(jax.random.key(0), TINY)
    beside = init_params(jax.random.key(1), ADAPTED)["layers"]
    fresh = {**base, "layers": {**beside, **base["layers"]}}
    np.testing.assert_array_equal(
        apply(fresh, TOKENS, config=ADAPTED), apply(base, TOKENS, config=TINY)
    )
    params = random_params(ADAPTED)
    together = merged(params, ADAPTED)
    assert set(together["layers"]) == set(layer_weights(TINY))
    unmerged = apply(params, TOKENS, config=ADAPTED)
    assert float(jnp.max(jnp.abs(unmerged - apply(base, TOKENS, config=TINY)))) > 0.01
    np.testing.assert_allclose(apply(together, TOKENS, config=TINY), unmerged, rtol=1e-5, atol=1e-5)


def test_gradients_are_those_of_the_dense_matrix_by_the_chain_rule():
    params, batch = random_params(ADAPTED), make_batch()
    batch = {k: jnp.asarray(v) for k, v in batch.items()}
    (loss, _), found = mean_loss_and_gradient(
        params, batch, objective=NextToken(ADAPTED), accumulate=2
    )
    (same, _), whole = mean_loss_and_gradient(
        merged(params, ADAPTED), batch, objective=NextToken(TINY), accumulate=2
    )
    assert float(loss) == pytest.approx(float(same), rel=1e-5)
    assert set(found) == {"layers"}
    assert set(found["layers"]) == {n + end for n in MATRICES for end in ("_a", "_b")}
    for name in MATRICES:
        a, b, dw = (
            np.asarray(t, np.float64)
            for t in (
                params["layers"][name + "_a"],
                params["layers"][name + "_b"],
                whole["layers"][name],
            )
        )
        layers, rank = a.shape[0], a.shape[-1]
        a2, b2 = a.reshape(layers, -1, rank), b.reshape(layers, rank, -1)
        dw = dw.reshape(layers, a2.shape[1], b2.shape[2]) * LORA.scale
        expected = {"_a": dw @ b2.swapaxes(1, 2), "_b": a2.swapaxes(1, 2) @ dw}
        for end, gradient in expected.items():
            of = np.asarray(found["layers"][name + end], np.float64).reshape(gradient.shape)
            assert np.abs(of - gradient).max() < 1e-4 * np.abs(gradient).max(), name + end


def test_a_mesh_gives_the_same_loss_and_gradients():
    params, batch = random_params(ADAPTED), make_batch()
    run = jax.jit(
        lambda p, b: mean_loss_and_gradient(p, b, objective=NextToken(ADAPTED), accumulate=1)
    )
    (loss, _), alone = run(params, {k: jnp.asarray(v) for k, v in batch.items()})
    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2))
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, param_shardings(ADAPTED, mesh))
        (split, _), found = run(placed, shard_batch(batch, mesh))
    assert float(split) == pytest.approx(float(loss), rel=1e-5)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6)


def test_a_base_in_bfloat16_keeps_adapters_in_float32():
    cfg = AdaptedModel.of(replace(TINY, dtype="bfloat16", param_dtype="bfloat16"), LORA)
    params = random_params(cfg)
    types = {k: w.dtype.name for k, w in params["layers"].items()}
    assert {types[k] for k in types if k[-2:] in ("_a", "_b")} == {"float32"}
    assert types["q"] == types["attn_norm"] == "bfloat16"
    batch = {k: jnp.asarray(v) for k, v in make_batch().items()}
    _, found = mean_loss_and_gradient(params, batch, objective=NextToken(cfg), accumulate=1)
    assert {g.dtype.name for g in jax.tree.leaves(found)} == {"float32"}


def test_what_is_trained_and_counted():
    few = AdaptedModel.of(TINY, LoraConfig(rank=2, targets=("o", "q")))
    assert set(trained_table(NextToken(few))["layers"]) == {"o_a", "o_b", "q_a", "q_b"}
    D, N, H, L = TINY.d_model, TINY.num_heads, TINY.head_dim, TINY.num_layers
    assert parameter_count(few) - parameter_count(TINY) == L * 2 * 2 * (D + N * H)
    assert plain(few) == TINY
    scorer = AdaptedModel.of(replace(TINY, head="score"), LORA)
    trained = select(model_weights(scorer), NextToken(scorer))
    assert set(trained) == {"layers", "score", "score_bias"}  # the base has no such head


def test_adapters_that_cannot_be_are_refused():
    with pytest.raises(InputError, match=r"no matrix 'gates'; did you mean gate\?"):
        LoraConfig(rank=2, targets=("gates",))
    with pytest.raises(InputError, match=r"lora.targets names q twice"):
        LoraConfig(rank=2, targets=("q", "q"))
    with pytest.raises(InputError, match=r"lora.alpha=0.0 must be positive"):
        LoraConfig(rank=2, alpha=0.0)
    with pytest.raises(InputError, match=r"lora.rank=-1 must not be negative"):
        LoraConfig(rank=-1)
