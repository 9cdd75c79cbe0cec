import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from llama_jax.config import InputError, MeshConfig
from llama_jax.model.presets import LLAMA2_70B
from llama_jax.model.weights import logical_axes
from llama_jax.parallel.mesh import AXES, make_mesh
from llama_jax.parallel.rules import (
    RULES,
    constrain,
    named_sharding,
    num_shards,
    partition_spec,
    relayout,
)


def mesh_of(**sizes):
    shape = tuple(sizes.get(axis, 1) for axis in AXES)
    return AbstractMesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES))


@pytest.mark.parametrize(
    ("axes", "sizes", "spec"),
    [
        (("embed", "heads", "head_dim"), {"fsdp": 8}, PartitionSpec("fsdp", None, None)),
        (("embed", "mlp"), {"fsdp": 4, "tensor": 2}, PartitionSpec("fsdp", "tensor")),
        (("layers", "vocab", "embed"), {"tensor": 2}, PartitionSpec(None, "tensor", None)),
        (("batch", "seq"), {"fsdp": 8}, PartitionSpec("fsdp", None)),
        (
            ("batch", "seq"),
            {"slice": 2, "data": 2, "fsdp": 2, "sequence": 4},
            PartitionSpec(("slice", "data", "fsdp"), "sequence"),
        ),
        (("batch", None), {"data": 2, "tensor": 4}, PartitionSpec("data", None)),
        (
            ("batch", "norm_seq", "act_embed"),
            {"fsdp": 2, "sequence": 2, "tensor": 2},
            PartitionSpec("fsdp", ("sequence", "tensor"), None),
        ),
        (("norm",), {"fsdp": 8, "tensor": 8}, PartitionSpec(None)),
        (("embed", "mlp"), {}, PartitionSpec(None, None)),
    ],
)
def test_axes_are_split_as_the_table_says(axes, sizes, spec):
    assert partition_spec(axes, mesh_of(**sizes)) == spec


def test_the_table_names_mesh_axes_only():
    assert {a for axes in RULES.values() for a in axes} <= set(AXES)


def test_every_axis_of_the_model_has_a_rule_that_no_mesh_makes_collide():
    everything = mesh_of(**dict.fromkeys(AXES, 2))
    axes = jax.tree.leaves(logical_axes(LLAMA2_70B), is_leaf=lambda a: isinstance(a, tuple))
    for tensor in axes:
        partition_spec(tensor, everything)


def test_an_axis_without_a_rule_is_named():
    with pytest.raises(InputError, match=r"q: no sharding rule for axis 'expert'; known: \['act"):
        partition_spec(("embed", "expert"), mesh_of(), name="q")


def test_two_axes_on_one_mesh_axis_are_named():
    with pytest.raises(InputError) as error:
        partition_spec(("mlp", "heads"), mesh_of(tensor=4), name="fused")
    assert str(error.value) == (
        "fused ('mlp', 'heads'): axes 'mlp' and 'heads' both map to mesh axis 'tensor'"
    )
    partition_spec(("mlp", "heads"), mesh_of(fsdp=4))  # a mesh axis of size 1 splits nothing


def test_a_dimension_that_does_not_divide_is_named_with_its_values():
    with pytest.raises(InputError) as error:
        partition_spec(("embed", "kv_heads"), mesh_of(fsdp=2, tensor=16), (64, 8), name="k")
    assert str(error.value) == (
        "k: kv_heads=8 is not divisible by 16 (mesh tensor=16); "
        "choose a mesh whose tensor divides 8"
    )
    with pytest.raises(InputError, match=r"batch=6 is not divisible by 4 \(mesh data=2, fsdp=2\)"):
        partition_spec(("batch", "seq"), mesh_of(data=2, fsdp=2), (6, 8))


def test_a_named_sharding_cuts_an_array():
    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2))
    x = jax.device_put(jnp.zeros((8, 6)), named_sharding(("embed", "mlp"), mesh, (8, 6)))
    assert {shard.data.shape for shard in x.addressable_shards} == {(2, 3)}


def test_constrain_lays_out_under_a_mesh_and_is_nothing_without():
    x = jnp.zeros((8, 4, 6))
    axes = ("batch", "seq", "act_embed")
    assert constrain(x, axes) is x
    mesh = make_mesh(MeshConfig(fsdp=4, sequence=2))
    with jax.set_mesh(mesh):
        out = jax.jit(lambda x: constrain(x, axes))(x)
        assert (num_shards("batch"), num_shards("seq"), num_shards("mlp")) == (4, 2, 1)
    assert {shard.data.shape for shard in out.addressable_shards} == {(2, 2, 6)}
    with jax.set_mesh(mesh):  # one position of one row, as a decoder has
        one = jax.jit(lambda x: constrain(x, axes))(x[:1, :1])
    assert one.sharding.is_fully_replicated
    assert num_shards("batch") == 1


def test_relayout_lays_out_the_value_and_its_gradient_apart():
    mesh = make_mesh(MeshConfig(fsdp=2, sequence=2, tensor=2))
    whole, by_position = ("batch", "seq", "act_embed"), ("batch", "norm_seq", "act_embed")

    def both(x):
        value, pull = jax.vjp(lambda x: relayout(x, whole, by_position), x)
        return value, *pull(2 * value)

    x = jnp.arange(2 * 8 * 3, dtype=jnp.float32).reshape(2, 8, 3)
    with jax.set_mesh(mesh):
        value, gradient = jax.jit(both)(x)
    assert {shard.data.shape for shard in value.addressable_shards} == {(1, 4, 3)}
    assert {shard.data.shape for shard in gradient.addressable_shards} == {(1, 2, 3)}
    assert jnp.array_equal(gradient, 2 * x)
