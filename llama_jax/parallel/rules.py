"""Sharding rules: the mesh axes that each logical axis of a tensor is split over.

A tensor names its axes by meaning ("embed", "heads"); this table maps meanings to the mesh axes of
`MeshConfig`. Axis sizes alone decide the parallelism: an axis of size 1 splits nothing.
"""

import math
from collections.abc import Sequence
from functools import partial

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from llama_jax.config import InputError

RULES: dict[str, tuple[str, ...]] = {
    # Activations.
    "batch": ("slice", "data", "fsdp"),
    "seq": ("sequence",),
    # Between its products a layer works on single positions: what is added up over `tensor` there
    # is scattered over positions and gathered for the next product, the bytes of one all-reduce,
    # and every device keeps and norms only its share of the residual stream.
    "norm_seq": ("sequence", "tensor"),
    "act_embed": (),
    # Weights: fsdp splits the model width, tensor splits what the layer computes in parallel.
    "embed": ("fsdp",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "head_dim": (),
    "mlp": ("tensor",),
    "vocab": ("tensor",),
    "norm": (),
    "score": (),
    "rank": (),
    # Of a quantised matrix: groups of inputs, split as those are where they divide, and a group.
    "embed_groups": ("fsdp",),
    "heads_groups": ("tensor",),
    "mlp_groups": ("tensor",),
    "group": (),
    "layers": (),
}
Axes = Sequence[str | None]


def partition_spec(
    axes: Axes, mesh: Mesh | AbstractMesh, shape: Sequence[int] | None = None, name: str = "array"
) -> PartitionSpec:
    """The PartitionSpec of a tensor with these logical axes on this mesh.

    Given the shape, groups that are not divisible by the devices stay whole.

    Raises:
      InputError: two axes of the tensor ask for one mesh axis, an axis has no rule, or (given the
        shape) a dimension is not divisible by the devices that split it.
    """
    entries: list[tuple[str, ...] | None] = []
    taken: dict[str, str] = {}
    for position, axis in enumerate(axes):
        if axis is not None and axis not in RULES:
            raise InputError(f"{name}: no sharding rule for axis {axis!r}; known: {sorted(RULES)}")
        split = tuple(a for a in RULES[axis] if _size(mesh, a) > 1) if axis else ()
        parts = math.prod(mesh.shape[a] for a in split)
        divides = shape is None or shape[position] % parts == 0
        if not divides and str(axis).endswith("_groups"):
            split, divides = (), True
        for mesh_axis in split:
            if mesh_axis in taken:
                raise InputError(
                    f"{name} {tuple(axes)}: axes {taken[mesh_axis]!r} and {axis!r} both map to "
                    f"mesh axis {mesh_axis!r}"
                )
            taken[mesh_axis] = str(axis)
        if shape is not None and not divides:
            sizes = ", ".join(f"{a}={mesh.shape[a]}" for a in split)
            raise InputError(
                f"{name}: {axis}={shape[position]} is not divisible by {parts} (mesh {sizes}); "
                f"choose a mesh whose {' x '.join(split)} divides {shape[position]}"
            )
        entries.append(split or None)
    return PartitionSpec(*(e[0] if e is not None and len(e) == 1 else e for e in entries))


def named_sharding(
    axes: Axes, mesh: Mesh, shape: Sequence[int] | None = None, name: str = "array"
) -> NamedSharding:
    """`partition_spec` bound to a mesh of devices."""
    return NamedSharding(mesh, partition_spec(axes, mesh, shape, name))


def constrain(x: jax.Array, axes: Axes) -> jax.Array:
    """Constrain x to the layout of the rules; without a mesh in context, returns x itself."""
    spec = spec_in_context(axes, x.shape)
    return x if spec is None else jax.lax.with_sharding_constraint(x, spec)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def relayout(x: jax.Array, axes: Axes, before: Axes) -> jax.Array:
    """`constrain` x, laid out as `before`, to axes, and its gradient back to `before`.

    Otherwise the compiler lays a gradient out like its value and multiplies it in that sharding: it
    would gather weights where the activations should be gathered.
    """
    return constrain(x, axes)


def _relayout_forward(x, axes, before):
    return constrain(x, axes), None


def _relayout_backward(axes, before, _, gradient):
    return (constrain(gradient, before),)


relayout.defvjp(_relayout_forward, _relayout_backward)


def spec_in_context(axes: Axes, shape: Sequence[int]) -> PartitionSpec | None:
    """`partition_spec` on the mesh in context; None without a mesh or with one of one device.

    A dimension that is not divisible by the devices stays whole. Batches are checked earlier
    (`arrays.check_batch`), so this concerns the single position or the few rows of a decoder.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or all(_size(mesh, a) == 1 for a in mesh.axis_names):
        return None
    fitting = [a if a and shape[i] % num_shards(a) == 0 else None for i, a in enumerate(axes)]
    return partition_spec(fitting, mesh)


def num_shards(axis: str) -> int:
    """Devices that a logical axis is split over by the mesh in context; 1 without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else math.prod(_size(mesh, a) for a in RULES[axis])


def _size(mesh: Mesh | AbstractMesh, axis: str) -> int:
    """Devices along an axis; 1 inside a `jax.shard_map` over it, where it has split all it can."""
    inside = mesh.manual_axes if isinstance(mesh, AbstractMesh) else ()
    return 1 if axis in inside else mesh.shape.get(axis, 1)
