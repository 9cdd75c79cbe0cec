"""Whole weights for a device's own rows: values, gradients, and what travels for them."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import Mesh, PartitionSpec

from llama_jax.config import MeshConfig
from llama_jax.parallel import torus
from llama_jax.parallel.fsdp import by_rows
from llama_jax.parallel.mesh import make_mesh
from llama_jax.parallel.rules import named_sharding
from llama_jax.parallel.torus import _groups, extents, gather, on_torus, stages_of
from llama_jax.tpu.hlo import COLLECTIVES, Program
from tests.parallel.chips import chips, grid_of

AXES = {"first": ("embed", "mlp"), "second": ("mlp", "embed"), "scale": ("norm",)}


def inputs(B=8, T=4, D=16, F=24):
    rng = np.random.default_rng(0)
    shapes = {"first": (D, F), "second": (F, D), "scale": (D,)}
    w = {k: jnp.asarray(rng.normal(size=s), jnp.float32) for k, s in shapes.items()}
    return w, jnp.asarray(rng.normal(size=(B, T, D)), jnp.float32)


def block(w, x, ids):
    assert ids is None
    return jnp.sin(x * w["scale"][None, None] @ w["first"]) @ w["second"], None


def loss(w, x):
    out, _ = by_rows(block, w, AXES, x, None)
    return jnp.sum(jnp.square(out))


def placed(mesh):
    w, x = inputs()
    w = {k: jax.device_put(v, named_sharding(AXES[k], mesh, v.shape)) for k, v in w.items()}
    return w, jax.device_put(x, named_sharding(("batch",), mesh))


@pytest.mark.parametrize(
    "stages", [{}, {"fsdp": (2, 4)}, {"fsdp": (4, 2)}, {"fsdp": (2, 2, 2)}], ids=str
)
def test_in_stages_or_at_once_the_gradient_is_that_of_one_device(stages, monkeypatch):
    monkeypatch.setattr(torus, "GATHERED_AT_ONCE", 4)
    expected = jax.grad(loss, argnums=(0, 1))(*inputs())
    mesh = make_mesh(MeshConfig(fsdp=8))
    with jax.set_mesh(mesh), on_torus(stages):
        found = jax.jit(jax.grad(loss, argnums=(0, 1)))(*placed(mesh))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * float(jnp.max(jnp.abs(b))))


@pytest.mark.parametrize("sizes", [{"fsdp": 8}, {"fsdp": 4, "tensor": 2}, {"data": 2, "fsdp": 4}])
def test_only_what_the_mesh_calls_for_travels(sizes):
    mesh = make_mesh(MeshConfig(**sizes))
    with jax.set_mesh(mesh):
        text = jax.jit(jax.grad(loss)).lower(*placed(mesh)).compile().as_text()
    assert text is not None
    w, _ = inputs()
    whole = {k: v.size * 4 // sizes.get("tensor", 1) for k, v in w.items()}
    moved = {kind: [] for kind in COLLECTIVES}
    for _, i, _ in Program(text).scheduled():
        kind = i.opcode.removesuffix("-start")
        if kind in COLLECTIVES:
            moved[kind] += [array.size for array in i.arrays]
    matrices = sorted((whole["first"], whole["second"]))
    assert sorted(moved["all-gather"]) == matrices
    assert sorted(moved["reduce-scatter"]) == [n // sizes["fsdp"] for n in matrices]
    # Sums are over replicas, of what they have left of a gradient, or of activations.
    assert max(moved["all-reduce"]) < min(matrices)
    assert not moved["all-to-all"]


def test_rows_that_the_devices_do_not_divide_are_left_to_the_compiler():
    w, x = inputs(B=6)
    with jax.set_mesh(make_mesh(MeshConfig(fsdp=8))):
        np.testing.assert_allclose(jax.jit(loss)(w, x), loss(w, x), rtol=1e-5)


def test_stages_follow_the_torus():
    plane = [(x, y, 0) for x in range(2) for y in range(4)]
    assert extents(plane) == (2, 4)
    assert extents([(y, 3, 2 * x) for x, y, _ in plane]) == (2, 4)
    assert extents([(x, y, z) for x in range(2) for y in range(3) for z in range(4)]) == (2, 3, 4)
    assert extents([(x, 0, 0) for x in range(8)]) == (8,), "one ring"
    assert extents([(x, y if x % 2 else 3 - y, 0) for x, y, _ in plane]) == (), "a snake"
    assert extents([()] * 8) == (), "no torus"
    # As compiled: 8 chips of a plane are scattered over at once, 16 or a cube are not.
    for shape, sizes in ((2, 4), None), ((4, 4), (4, 4)), ((2, 2, 2), (2, 2, 2)), ((16, 1), None):
        mesh = Mesh(grid_of(chips(shape), -1, 1), ("fsdp", "tensor"))
        assert stages_of(mesh).get("fsdp") == sizes
    assert stages_of(make_mesh(MeshConfig(fsdp=8))) == {}, "no torus"


@given(st.lists(st.integers(1, 4), min_size=2, max_size=3))
def test_stages_join_parts_in_the_order_of_the_devices(sizes):
    n = math.prod(sizes)
    held = [[device] for device in range(n)]
    for groups in reversed(_groups(tuple(sizes))):
        assert sorted(itertools.chain(*groups)) == list(range(n))
        joined = {d: [part for g in group for part in held[g]] for group in groups for d in group}
        held = [joined[device] for device in range(n)]
    assert held == [list(range(n))] * n


def test_parts_come_together_in_the_order_of_the_devices(monkeypatch):
    monkeypatch.setattr(torus, "GATHERED_AT_ONCE", 4)
    x = jnp.arange(24.0)
    split = PartitionSpec("fsdp")

    def whole(part):
        return gather(part, "fsdp", 0, PartitionSpec())

    with jax.set_mesh(make_mesh(MeshConfig(fsdp=8))), on_torus({"fsdp": (2, 2, 2)}):
        for scale in (1.0, 2.0):
            out = jax.shard_map(
                lambda part, scale=scale: scale * whole(part),
                in_specs=split,
                out_specs=PartitionSpec(),
                check_vma=False,
            )(x)
            np.testing.assert_array_equal(out, scale * x)
