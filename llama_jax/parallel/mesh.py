"""The device mesh: axes slice, data, fsdp, sequence, tensor, in the order of the topology."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from llama_jax.config import InputError, MeshConfig
from llama_jax.parallel.torus import coordinates, extents, stages

AXES = tuple(f.name for f in dataclasses.fields(MeshConfig))


def axis_sizes(config: MeshConfig, num_devices: int) -> dict[str, int]:
    """Devices along each axis, the -1 filled in.

    Raises:
      InputError: the axes do not multiply out to the devices.
    """
    sizes = dataclasses.asdict(config)
    fixed = math.prod(s for s in sizes.values() if s != -1)
    asked = " x ".join(f"{k}={v}" for k, v in sizes.items() if v != 1) or "all axes 1"
    if num_devices % fixed or (fixed != num_devices and -1 not in sizes.values()):
        raise InputError(
            f"mesh {asked} does not multiply out to {num_devices} devices: make the product of "
            f"the axes a divisor of {num_devices} and leave one of them at -1"
        )
    return {k: num_devices // fixed if v == -1 else v for k, v in sizes.items()}


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over the devices (all of them by default), with neighbours close to each other in the
    network.

    Later axes communicate more, so their devices are nearer: `tensor` gets a ring of the torus if
    it can, and `slice` the data-centre network. An axis that is no product of whole torus axes gets
    a part of one.

    Raises:
      InputError: the axes do not multiply out, or the topology cannot be cut that way.
    """
    devices = jax.devices() if devices is None else devices
    sizes = axis_sizes(config, len(devices))
    slices = {getattr(device, "slice_index", 0) for device in devices}
    if devices[0].platform == "tpu" and len(slices) not in (1, sizes["slice"]):
        raise InputError(
            f"these {len(devices)} devices are {len(slices)} slices, joined by a data-centre "
            f"network, and mesh slice={sizes['slice']}: use --mesh.slice {len(slices)}"
        )
    within = (1, *list(sizes.values())[1:])
    try:
        if len(slices) == sizes["slice"] > 1:
            across = (sizes["slice"], *(1,) * (len(AXES) - 1))
            grid = mesh_utils.create_hybrid_device_mesh(
                within, across, devices, allow_split_physical_axes=True
            )
        else:
            grid = mesh_utils.create_device_mesh(
                tuple(sizes.values()), devices, allow_split_physical_axes=True
            )
    except (ValueError, NotImplementedError) as error:
        raise InputError(f"mesh {sizes} does not fit these devices: {error}") from error
    return Mesh(in_rows(grid), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def in_rows(grid: np.ndarray) -> np.ndarray:
    """The grid, or the devices row by row where `fsdp` needs that order.

    On the smallest slices jax orders the chips along a path, which suits neighbour-to-neighbour
    traffic. A scatter over all of a v5e or v6e 4x4 or a v5p 2x2x2 needs stages, and these need
    rows.
    """
    fsdp = AXES.index("fsdp")
    if extents(coordinates(grid, fsdp)):
        return grid

    def place(device: Any) -> tuple[int, ...]:
        return getattr(device, "slice_index", 0), *reversed(getattr(device, "coords", ()))

    rows = np.array(sorted(grid.flat, key=place)).reshape(grid.shape)
    return rows if stages(coordinates(rows, fsdp)) else grid
