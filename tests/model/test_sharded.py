"""The loss and its gradients are the same on eight devices, however they are arranged."""

import math
from dataclasses import replace
from functools import cache, partial
from itertools import combinations

import jax
import jax.numpy as jnp
import pytest

from llama_jax.config import MeshConfig
from llama_jax.model.presets import TINY
from llama_jax.model.weights import abstract_params, logical_axes
from llama_jax.parallel.mesh import AXES, make_mesh
from llama_jax.parallel.rules import named_sharding
from tests.comparison import (
    assert_close,
    assert_trees_close,
    epsilon,
    quick_jit,
    random_params,
)
from tests.model.small import loss_and_gradient, packed, tokens_of

# Every axis of the mesh, every pair and every three of them; TINY has two key/value heads to split.
SINGLES = [{axis: 2 if axis == "tensor" else 8} for axis in AXES]
PAIRS = [
    {first: 4, second: 2} if second == "tensor" else {first: 2, second: 4}
    for first, second in combinations(AXES, 2)
]
TRIPLES = [dict.fromkeys(axes, 2) for axes in combinations(AXES, 3)]
FAST = ({"fsdp": 8}, {"fsdp": 4, "tensor": 2}, {"fsdp": 2, "sequence": 2, "tensor": 2})
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
    return loss_and_gradient(params, batch, cfg=TINY, z_loss=0.01)


jitted = quick_jit(gradient)


@cache
def on_one_device():
    return jitted(PARAMS, batch())


def name_of(sizes):
    return " x ".join(f"{axis} {size}" for axis, size in sizes.items())


def mesh_of(sizes):
    devices = jax.devices()[: math.prod(sizes.values())]
    return make_mesh(MeshConfig(**{"fsdp": 1, **sizes}), devices)


def row(sizes):
    marks = () if sizes in FAST else pytest.mark.slow
    return pytest.param(sizes, id=name_of(sizes), marks=marks)


@pytest.mark.parametrize("sizes", [row(sizes) for sizes in (*SINGLES, *PAIRS, *TRIPLES)])
def test_all_devices_together_agree_with_one(sizes):
    mesh = mesh_of(sizes)
    params = jax.tree.map(
        lambda leaf, axes: jax.device_put(leaf, named_sharding(axes, mesh, leaf.shape)),
        PARAMS,
        logical_axes(TINY),
    )
    rows = jax.device_put(batch(), named_sharding(("batch", "seq"), mesh, (8, 32)))
    with jax.set_mesh(mesh):
        loss, gradients = jitted(params, rows)
    expected, expected_gradients = on_one_device()
    assert len(loss.sharding.device_set) == mesh.size
    # The devices add the same numbers in another order. The loss is a mean of terms of one sign,
    # so it moves by a few units in the last place; an entry of a gradient is a sum over 256
    # positions of both signs after two layers forward and back, so it moves by a random walk of
    # sqrt(256) roundings of the largest, or so.
    assert_close(loss, expected, 4 * epsilon(jnp.float32), "loss")
    assert_trees_close(gradients, expected_gradients, 16 * epsilon(jnp.float32))


def test_a_wrong_sum_would_be_seen():
    """One position of one row left out of the loss moves every gradient far over the tolerance."""
    rows = batch()
    rows["loss_mask"] = rows["loss_mask"].at[3, 9].set(0)
    _, gradients = jitted(PARAMS, rows)
    _, expected = on_one_device()
    for leaf, whole in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected), strict=True):
        assert float(jnp.max(jnp.abs(leaf - whole))) > 1e-3 * float(jnp.max(jnp.abs(whole)))


@pytest.mark.parametrize("sizes", [FAST[0], FAST[2]], ids=name_of)
def test_no_device_holds_the_whole(sizes):
    mesh = mesh_of(sizes)
    parts = mesh.shape["fsdp"] * mesh.shape["tensor"]
    for leaf, axes in zip(
        jax.tree.leaves(PARAMS),
        jax.tree.leaves(logical_axes(TINY), is_leaf=lambda a: isinstance(a, tuple)),
        strict=True,
    ):
        if "norm" not in axes:
            here = named_sharding(axes, mesh, leaf.shape).shard_shape(leaf.shape)
            assert leaf.size == parts * math.prod(here), axes


@pytest.mark.parametrize("sizes", [row(sizes) for sizes in TRIPLES])
def test_bfloat16_is_summed_over_whatever_the_mesh_leaves_to_the_compiler(sizes):
    """XLA's CPU backend ends the process at a sum of bfloat16 that it was to widen itself."""
    narrow = quick_jit(partial(loss_and_gradient, cfg=replace(TINY, dtype="bfloat16"), z_loss=0.01))
    with jax.set_mesh(mesh_of(sizes)):
        loss, gradients = narrow(PARAMS, batch())
    expected, expected_gradients = on_one_device()
    # Eight bits of a significand, and a dozen products one after another.
    assert_close(loss, expected, 4 * epsilon(jnp.bfloat16), "loss")
    assert_trees_close(gradients, expected_gradients, 16 * epsilon(jnp.bfloat16))
