"""Gathers and scatters along a mesh axis that lies on several axes of a TPU's torus.

The TPU compiler scatters over one ring of a torus or a plane of a few chips, and gathers over a
plane or a few chips of a cube. Over more it sums instead, at twice the bytes: a gradient scattered
over the 16 or 256 chips of a v5e becomes an all-reduce of the whole, a weight gathered over the 64
chips of a v5p-128 an all-reduce of zeros around the part that each chip has. Asked in stages, it
does as asked; but each stage has the links of its own torus axes only.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array

LANES = 128
# Most devices, as compiled: more than one plane is never scattered over, a plane always gathered.
SCATTERED_AT_ONCE = 8
GATHERED_AT_ONCE = 32
Stages = Mapping[str, tuple[int, ...]]
"""Devices along each torus axis that a mesh axis covers, the slowest first."""
_stages: ContextVar[Stages] = ContextVar("_stages", default={})  # noqa: B039


def stages_of(mesh: Mesh) -> Stages:
    """The placement of mesh axes on the torus; axes that need no stages or lie on none are left
    out."""
    found = {a: stages(coordinates(mesh.devices, k)) for k, a in enumerate(mesh.axis_names)}
    return {axis: sizes for axis, sizes in found.items() if sizes}


def stages(line: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """`extents` of devices if a scatter over them needs stages, else ()."""
    sizes = extents(line)
    few = len(sizes) == 2 and math.prod(sizes) <= SCATTERED_AT_ONCE
    return () if len(sizes) == 1 or few else sizes


def coordinates(grid: np.ndarray, k: int) -> list[Sequence[int]]:
    """Coordinates of the first devices along axis k of a grid; () for devices on no torus."""
    line = np.moveaxis(grid, k, 0).reshape(grid.shape[k], -1)[:, 0]
    return [getattr(device, "coords", ()) for device in line]


def extents(line: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Sizes along each coordinate that changes, slowest first; () unless they fill a grid row by
    row."""
    places = np.array(line).reshape(len(line), -1)
    changes = {k: int(np.sum(np.diff(places[:, k]) != 0)) for k in range(places.shape[1])}
    order = sorted((k for k, count in changes.items() if count), key=changes.__getitem__)
    values = [np.unique(places[:, k]) for k in order]
    sizes = tuple(len(v) for v in values)
    if not sizes or math.prod(sizes) != len(line):
        return ()
    grid = np.stack([g.ravel() for g in np.meshgrid(*values, indexing="ij")], axis=1)
    return sizes if (grid == places[:, order]).all() else ()


@contextlib.contextmanager
def on_torus(stages: Stages) -> Iterator[None]:
    """Trace the block for a mesh with this placement on its torus."""
    token = _stages.set(stages)
    try:
        yield
    finally:
        _stages.reset(token)


def gather(part: Array, axis: str, dim: int, spec: PartitionSpec) -> Array:
    """Every device's part, joined along `dim`, inside a `jax.shard_map` over `axis`.

    The gradient is summed over the devices and scattered, in its own dtype.

    Args:
      spec: the sharding over mesh axes that are left to the compiler, before and after.
    """
    return _gather(part, axis, dim, spec, _stages.get().get(axis, ()))


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def _gather(part, axis, dim, spec, sizes):
    # One operation uses the links of all its torus axes at once.
    apart = len(sizes) > 2 and math.prod(sizes) > GATHERED_AT_ONCE

    def joined(part):
        for groups in reversed(_groups(sizes)) if apart else (None,):
            part = jax.lax.all_gather(part, axis, axis=dim, tiled=True, axis_index_groups=groups)
        return part

    return _by_all(joined, part, spec)


def _gather_forward(part, axis, dim, spec, sizes):
    return _gather(part, axis, dim, spec, sizes), None


def _gather_backward(axis, dim, spec, sizes, _, gradient):
    def scattered(gradient):
        # Parts of registers cannot be scattered: the compiler would sum the whole. So an axis whose
        # parts are no whole registers goes from the lanes to the front.
        first = math.prod(sizes[:-1]) if sizes else jax.lax.axis_size(axis)
        narrow = dim == gradient.ndim - 1 and gradient.shape[dim] // first % LANES
        if narrow:
            gradient = with_layout_constraint(
                jnp.moveaxis(gradient, dim, 0), Layout(tuple(range(gradient.ndim)))
            )
        for groups in _groups(sizes) if sizes else (None,):
            gradient = jax.lax.psum_scatter(
                gradient,
                axis,
                scatter_dimension=0 if narrow else dim,
                tiled=True,
                axis_index_groups=groups,
            )
        return jnp.moveaxis(gradient, 0, dim) if narrow else gradient

    return (_by_all(scattered, gradient, spec),)


_gather.defvjp(_gather_forward, _gather_backward)


def _by_all(function, x, spec):
    """function(x) where no mesh axis is left to the compiler, which would make x whole first."""
    mesh = jax.sharding.get_abstract_mesh()
    if len(mesh.manual_axes) == len(mesh.axis_names):
        return function(x)
    return jax.shard_map(function, in_specs=spec, out_specs=spec, check_vma=False)(x)


def _groups(sizes: tuple[int, ...]) -> list[list[list[int]]]:
    """Devices that each stage joins: those on a plane of the torus or on its slowest ring, then
    those on its fastest."""
    rows = np.arange(math.prod(sizes)).reshape(-1, sizes[-1])
    return [rows.T.tolist(), rows.tolist()]
