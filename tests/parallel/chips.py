"""Chips of slices that are not here: only where they are."""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Chip:
    """What the mesh asks of a device."""

    coords: tuple[int, ...]
    slice_index: int = 0


def chips(shape: Sequence[int], slices: int = 1) -> list[Chip]:
    """Those of equal slices, by slice and coordinates, the last the fastest."""
    places = list(itertools.product(*(range(n) for n in shape)))
    return [Chip(coords, index) for index in range(slices) for coords in places]


def grid_of(devices: Sequence[Chip], *shape: int) -> np.ndarray:
    """An array of devices, which NumPy would not look into."""
    array = np.empty(len(devices), object)
    array[:] = devices
    return array.reshape(shape)
