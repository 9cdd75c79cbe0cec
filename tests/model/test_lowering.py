"""The gradient of every published size lowers for TPU pods that this machine has not."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding

from llama_jax.config import InputError
from llama_jax.model.presets import PRESETS
from llama_jax.model.weights import abstract_params, logical_axes
from llama_jax.parallel.mesh import AXES
from llama_jax.parallel.rules import partition_spec
from tests.model.small import loss_and_gradient

MESHES = {
    "fsdp 64 x tensor 4": {"fsdp": 64, "tensor": 4},
    "fsdp 256": {"fsdp": 256},
    "2 slices of fsdp 32 x sequence 2 x tensor 8": {
        "slice": 2, "fsdp": 32, "sequence": 2, "tensor": 8
    },
}  # fmt: skip


def abstract_mesh(**sizes):
    shape = tuple(sizes.get(axis, 1) for axis in AXES)
    return AbstractMesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def abstract_with_shardings(cfg, mesh):
    """The parameters as ShapeDtypeStructs, laid out by the rules."""
    return jax.tree.map(
        lambda leaf, axes: jax.ShapeDtypeStruct(
            leaf.shape,
            leaf.dtype,
            sharding=NamedSharding(mesh, partition_spec(axes, mesh, leaf.shape)),
        ),
        abstract_params(cfg),
        logical_axes(cfg),
    )


def lower_gradient(cfg, mesh, B, T):
    spec = partition_spec(("batch", "seq"), mesh, (B, T))
    batch = {
        name: jax.ShapeDtypeStruct((B, T), dtype, sharding=NamedSharding(mesh, spec))
        for name, dtype in {
            "tokens": jnp.int32, "segment_ids": jnp.int32, "positions": jnp.int32,
            "loss_mask": jnp.uint8,
        }.items()
    }  # fmt: skip

    def gradient(params, batch):
        return loss_and_gradient(params, batch, cfg=cfg)

    with jax.sharding.use_abstract_mesh(mesh):
        traced = jax.jit(gradient).trace(abstract_with_shardings(cfg, mesh), batch)
        return traced.lower(lowering_platforms=("tpu",))


@pytest.mark.parametrize(
    ("preset", "mesh"),
    [
        ("llama2-70b", "fsdp 64 x tensor 4"),
        ("llama2-70b", "2 slices of fsdp 32 x sequence 2 x tensor 8"),
        ("llama2-7b", "fsdp 256"),
        pytest.param("llama2-13b", "fsdp 64 x tensor 4", marks=pytest.mark.slow),
        pytest.param("llama1-65b", "fsdp 64 x tensor 4", marks=pytest.mark.slow),
    ],
)
def test_the_gradient_lowers_for_a_pod(preset, mesh):
    cfg = replace(PRESETS[preset], remat="full")
    lowered = lower_gradient(cfg, abstract_mesh(**MESHES[mesh]), 256, 4096)
    loss, gradients = lowered.out_info
    assert loss.shape == ()
    assert jax.tree.map(lambda g: g.shape, gradients) == jax.tree.map(
        lambda p: p.shape, abstract_params(cfg)
    )
    text = lowered.as_text()
    assert f"{json.dumps('fsdp')}={MESHES[mesh]['fsdp']}" in text
    # A whole stack of layers is one loop: the program does not grow with depth.
    assert len(text) < 2_000_000


def test_what_a_mesh_cannot_split_is_refused():
    with pytest.raises(InputError, match="kv_heads=8 is not divisible by 16"):
        lower_gradient(PRESETS["llama2-70b"], abstract_mesh(fsdp=16, tensor=16), 256, 4096)
    with pytest.raises(InputError, match="batch=255 is not divisible by 64"):
        lower_gradient(PRESETS["llama2-7b"], abstract_mesh(fsdp=64), 255, 4096)
