"""The one mesh: axes slice, data, fsdp, sequence, tensor, in the order of the topology."""

import dataclasses
import math
from collections.abc import Sequence

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from llama_jax.config import InputError, MeshConfig

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
    """A mesh over the devices (all of them by default), neighbours near each other in the network.

    Raises:
      InputError: the axes do not multiply out, or the topology cannot be cut that way.
    """
    devices = jax.devices() if devices is None else devices
    sizes = axis_sizes(config, len(devices))
    shape = tuple(sizes.values())
    try:
        if sizes["slice"] > 1 and getattr(devices[0], "slice_index", None) is not None:
            grid = mesh_utils.create_hybrid_device_mesh(
                (1, *shape[1:]), (sizes["slice"], *(1,) * (len(shape) - 1)), devices
            )
        else:
            grid = mesh_utils.create_device_mesh(shape, devices)
    except (ValueError, NotImplementedError) as error:
        raise InputError(f"mesh {sizes} does not fit these devices: {error}") from error
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))
