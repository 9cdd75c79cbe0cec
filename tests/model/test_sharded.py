"""The loss and its gradients are the same on eight devices, however they are arranged."""

import math
from functools import cache

import jax
import jax.numpy as jnp
import pytest

from llama_jax.config import MeshConfig
from llama_jax.model.presets import TINY
from llama_jax.model.weights import abstract_params, logical_axes
from llama_jax.parallel.mesh import make_mesh
from llama_jax.parallel.rules import named_sharding
from llama_jax.train.step import mean_loss_and_gradient
from tests.comparison import assert_trees_close, quick_jit, random_params
from tests.model.small import packed, tokens_of

MESHES = {
    "fsdp 8": MeshConfig(fsdp=8),
    "data 2 x fsdp 2 x tensor 2": MeshConfig(data=2, fsdp=2, tensor=2),
    "fsdp 2 x sequence 2 x tensor 2": MeshConfig(fsdp=2, sequence=2, tensor=2),
    "slice 2 x fsdp 4": MeshConfig(slice=2, fsdp=4),
}
PARAMS = random_params(abstract_params(TINY))


def batch():
    segment_ids, positions = packed(*4 * [(20, 12), (32,)])
    return {
        "tokens": tokens_of(TINY, 8, 32),
        "segment_ids": segment_ids,
        "positions": positions,
        "loss_mask": jnp.ones((8, 32), jnp.uint8).at[:, :5].set(0),
    }


def gradient(params, batch):
    return mean_loss_and_gradient(params, batch, cfg=TINY, accumulate=1, z_loss=0.01)


jitted = quick_jit(gradient)


@cache
def on_one_device():
    return jitted(PARAMS, batch())


@pytest.mark.parametrize("name", MESHES)
def test_eight_devices_agree_with_one(name):
    mesh = make_mesh(MESHES[name])
    params = jax.tree.map(
        lambda leaf, axes: jax.device_put(leaf, named_sharding(axes, mesh, leaf.shape)),
        PARAMS,
        logical_axes(TINY),
    )
    rows = jax.device_put(batch(), named_sharding(("batch", "seq"), mesh, (8, 32)))
    with jax.set_mesh(mesh):
        loss, gradients = jitted(params, rows)
    expected, expected_gradients = on_one_device()
    assert len(loss.sharding.device_set) == 8
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)
    assert_trees_close(gradients, expected_gradients, 1e-5)


@pytest.mark.parametrize("name", ["fsdp 8", "fsdp 2 x sequence 2 x tensor 2"])
def test_no_device_holds_the_whole(name):
    mesh = make_mesh(MESHES[name])
    parts = mesh.shape["fsdp"] * mesh.shape["tensor"]
    for leaf, axes in zip(
        jax.tree.leaves(PARAMS),
        jax.tree.leaves(logical_axes(TINY), is_leaf=lambda a: isinstance(a, tuple)),
        strict=True,
    ):
        if "norm" not in axes:
            here = named_sharding(axes, mesh, leaf.shape).shard_shape(leaf.shape)
            assert leaf.size == parts * math.prod(here), axes
