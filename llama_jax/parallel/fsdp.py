"""FSDP: gathers weights for a device's own rows, and reduce-scatters their gradients.

Left to the compiler, a gradient that every device has a part of is all-reduced and then sliced, and
a sum of such gradients is all-reduced once for each term. Here each device adds up its own terms,
and the sum is reduce-scattered: half the bytes, and no device holds the whole gradient.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array

from llama_jax.parallel.devices import on_cpus
from llama_jax.parallel.rules import RULES, Axes, num_shards, partition_spec
from llama_jax.parallel.torus import gather


def by_rows(function: Callable[..., Any], w: Any, axes: Any, *rows: Any) -> Any:
    """function(w, *rows), computed by each device for its own rows.

    Inputs and outputs have a leading axis of rows, B; a sum over rows is returned as [1], which
    becomes one entry per device. The backward pass scatters the gradients of w before it continues
    to earlier operations, so nothing waits for them.

    Args:
      w: a tree of arrays, laid out by the rules; the function gets them whole, except for axes that
        are not row axes.
      axes: the logical axes of each array, a tuple in its place.
      rows: arrays, or None.
    """
    mesh, devices = jax.sharding.get_abstract_mesh(), num_shards("batch")
    if devices == 1 or rows[0].shape[0] % devices:
        return function(w, *rows)
    # Axes of one device too: Pallas kernels want all of them, or none, to be left to the compiler.
    own = {a for a, size in mesh.shape.items() if size == 1 or a in RULES["batch"]}

    def spec(axes: Axes, shape: Sequence[int] | None = None) -> PartitionSpec:
        entries = partition_spec(axes, mesh, shape)
        names = [(e,) if isinstance(e, str) else e or () for e in entries]
        return PartitionSpec(*(tuple(n for n in entry if n in own) or None for entry in names))

    arrays, tree = jax.tree.flatten(w)
    own_axes = jax.tree.leaves(axes, is_leaf=lambda a: isinstance(a, tuple))

    def local(parts, *rows):
        found = [whole(*part) for part in zip(parts, own_axes, shapes, specs, strict=True)]
        return function(tree.unflatten(found), *rows)

    def whole(part: Array, axes: Axes, shape: Sequence[int], spec: PartitionSpec) -> Array:
        left = partition_spec(axes, jax.sharding.get_abstract_mesh(), shape)
        for dim, entry in enumerate(spec):
            for axis in reversed((entry,) if isinstance(entry, str) else entry or ()):
                part = gather(part, axis, dim, left)
        return part

    shapes = [array.shape for array in arrays]
    specs, split = list(map(spec, own_axes, shapes)), spec(("batch",))
    first = rows[0]
    if jnp.issubdtype(first.dtype, jnp.inexact):
        # Integers have no gradient to wait for.
        floats = [n for n, a in enumerate(arrays) if jnp.issubdtype(a.dtype, jnp.inexact)]
        settled, first = _settled([arrays[n] for n in floats], first)
        for n, a in zip(floats, settled, strict=True):
            arrays[n] = a
    summed, values = _summed_in_float32(local, (arrays, first, *rows[1:]), own)
    return jax.shard_map(
        summed,
        in_specs=(specs, *(split,) * len(rows)),
        out_specs=split,
        axis_names=own,
        check_vma=False,
    )(*values)


def by_positions(function: Callable[..., Any], w: Mapping[str, Array], *rows: Array) -> Any:
    """function(w, *rows) of arrays [B,T,...], computed by each device for its own positions.

    Left to the compiler, a loop over chunks of positions gathers them first, and every device of
    the sequence axis processes all of them. Outputs have one entry per device, [1,1].
    """
    n = num_shards("seq")
    if n == 1 or rows[0].shape[1] % n:
        return function(w, *rows)
    (axis,), split = RULES["seq"], PartitionSpec(None, *RULES["seq"])
    summed, arrays = _summed_in_float32(function, (dict(w), *rows), {axis})
    return jax.shard_map(
        summed,
        in_specs=(PartitionSpec(), *(split,) * len(rows)),
        out_specs=split,
        axis_names={axis},
        check_vma=False,
    )(*arrays)


def _summed_in_float32(
    function: Callable[..., Any], arrays: tuple[Any, ...], manual: set[str]
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The same for a `jax.shard_map` over `manual`, where bfloat16 crosses its border as float32.

    Gradients are summed at that border. Where other axes are left to the compiler, the sum that
    jax asks for is one that XLA's CPU backend cannot widen from bfloat16 by itself: it ends the
    process ("Invalid binary instruction opcode copy"). Elsewhere, nothing is changed.
    """
    mesh = jax.sharding.get_abstract_mesh()
    manual = manual | set(mesh.manual_axes)
    left = any(size > 1 and axis not in manual for axis, size in mesh.shape.items())
    if not left or not on_cpus():
        return function, arrays
    types = jax.tree.map(lambda a: a.dtype, arrays)

    def narrow(*wide):
        return function(*jax.tree.map(lambda a, dtype: a.astype(dtype), wide, types))

    def widen(a):
        return a.astype(jnp.float32) if a.dtype == jnp.bfloat16 else a

    return narrow, jax.tree.map(widen, arrays)


@jax.custom_vjp
def _settled(w, x):
    """As they are; the gradient of x waits for those of w."""
    return w, x


def _settled_forward(w, x):
    return (w, x), None


def _settled_backward(_, gradients):
    return jax.lax.optimization_barrier(gradients)


_settled.defvjp(_settled_forward, _settled_backward)
