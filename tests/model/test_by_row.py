"""Adapters by row against W + scale A B in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax.config import LoraConfig
from llama_jax.model.by_row import Adapter, ByRow, taking, with_adapters
from llama_jax.model.cache import prepare
from llama_jax.model.matrix import gate_up, gated_down, project
from tests.infer.small import SMALL, params_of


def drawn_adapter(seed, rank, targets, config=SMALL):
    """Adapters that were never trained, but change much."""
    rng = np.random.default_rng(seed)
    table = jax.tree.map(np.shape, params_of(config)["layers"])
    layers = {}
    for name in targets:
        L, *shape = table[name]
        n = 2 if name == "o" else 1
        layers[name + "_a"] = rng.normal(size=(L, *shape[:n], rank)).astype(np.float32)
        layers[name + "_b"] = rng.normal(size=(L, rank, *shape[n:])).astype(np.float32) / 20
    return Adapter(LoraConfig(rank=rank, alpha=3.0, targets=tuple(targets)), layers)


ADAPTERS = [drawn_adapter(1, 2, ("q", "o", "down")), drawn_adapter(2, 5, ("q", "gate"))]
TAKEN = np.array([0, 1, 2, 1], np.int32)


def dense(adapter, name, layer, base):
    """W + scale A B of one matrix, float64."""
    if adapter is None or name not in adapter.lora.targets:
        return base
    a, b = (np.float64(adapter.layers[name + end][layer]) for end in ("_a", "_b"))
    flat = a.reshape(-1, a.shape[-1]) @ b.reshape(b.shape[0], -1)
    return base + adapter.lora.alpha / adapter.lora.rank * flat.reshape(base.shape)


@pytest.mark.parametrize("T", [1, 3])
@pytest.mark.parametrize("name", ["q", "o", "gate", "up", "down"])
def test_each_row_is_multiplied_by_its_own_matrix(name, T):
    w = prepare(params_of(SMALL), SMALL)
    adapted = taking(with_adapters(w, ADAPTERS, "float32"), jnp.asarray(TAKEN))
    matrix, base = adapted["layers"][1][name], np.float64(w["layers"][1][name])
    inputs = 2 if name == "o" else 1
    x = np.random.default_rng(0).normal(size=(4, T, *base.shape[:inputs]))
    out = jax.jit(project, static_argnums=2)(jnp.asarray(x, jnp.float32), matrix, inputs)
    for b, taken in enumerate(TAKEN):
        own = dense(None if taken == 0 else ADAPTERS[taken - 1], name, 1, base)
        expected = np.tensordot(x[b], own, axes=inputs)
        np.testing.assert_allclose(out[b], expected, rtol=2e-5, atol=2e-5)
    assert isinstance(matrix, ByRow) == (name != "up")


def test_the_gated_products_take_them_too():
    w = prepare(params_of(SMALL), SMALL)
    layer = taking(with_adapters(w, ADAPTERS, "float32"), jnp.asarray(TAKEN))["layers"][0]
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 1, SMALL.d_model))
    g, u = gate_up(jnp.asarray(x, jnp.float32), layer["gate"], layer["up"])
    out = gated_down(g, u, layer["down"])
    for b, taken in enumerate(TAKEN):
        adapter = None if taken == 0 else ADAPTERS[taken - 1]
        own = {n: dense(adapter, n, 0, np.float64(w["layers"][0][n])) for n in ("gate", "up")}
        np.testing.assert_allclose(g[b], x[b] @ own["gate"], rtol=2e-5, atol=2e-5)
        np.testing.assert_allclose(u[b], x[b] @ own["up"], rtol=2e-5, atol=2e-5)
        gate, up = np.float64(g[b]), np.float64(u[b])
        down = dense(adapter, "down", 0, np.float64(w["layers"][0]["down"]))
        expected = (gate / (1 + np.exp(-gate)) * up) @ down
        np.testing.assert_allclose(out[b], expected, rtol=2e-5, atol=2e-5)


def test_a_rows_bits_do_not_depend_on_its_neighbours(optimized):
    w = with_adapters(prepare(params_of(SMALL), SMALL), ADAPTERS, "float32")
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 1, SMALL.d_model)), jnp.float32)
    attend = jax.jit(project)
    whole = attend(x, taking(w, jnp.asarray(TAKEN))["layers"][0]["q"])
    for b in range(4):
        one = taking(w, jnp.asarray(TAKEN[b : b + 1]))["layers"][0]["q"]
        np.testing.assert_array_equal(attend(x[b : b + 1], one)[0], whole[b])


def test_parameters_without_adapters_stay_as_they_are():
    w = prepare(params_of(SMALL), SMALL)
    again = taking(w, jnp.asarray(TAKEN))
    assert jax.tree.structure(again) == jax.tree.structure(w)
    assert again["layers"][0]["q"] is w["layers"][0]["q"]
