"""Arrays in plain Zarr: no compression, each chunk a file, read without a library.

Conversions write parameters so, one chunk for the whole array or one a layer. Orbax restores such
folders like any other, through several copies; here the bytes go from the file straight into the
memory that jax uses for the array on CPUs. Arrays stored in another way are left to orbax.
"""

import json
import math
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np


@dataclass(frozen=True)
class PlainArray:
    """One array, in a folder of its own."""

    folder: Path
    shape: tuple[int, ...]
    dtype: Any
    layered: bool
    """Whether each index of the first axis has a chunk; else one chunk has all."""

    def map(self, layer: int | None = None) -> np.ndarray:
        """A chunk as a memory map: that of a layer, or the only one.

        Raises ValueError if its file is missing or has another size.
        """
        file = self._checked(layer)
        return np.memmap(file, self.dtype, mode="r", shape=self.shape[layer is not None :])

    def read(self, index: Any) -> np.ndarray:
        """A part in memory that jax takes over on CPUs without a copy.

        index: a tuple of slices of step 1, one for each axis.

        Raises ValueError as `map` does.
        """
        cuts = [slice(*i.indices(n)[:2]) for i, n in zip(index, self.shape, strict=True)]
        part = _aligned([cut.stop - cut.start for cut in cuts], self.dtype)
        if not self.layered:
            self._fill(part, None, tuple(cuts))
        else:
            for row, layer in enumerate(range(cuts[0].start, cuts[0].stop)):
                self._fill(part[row], layer, tuple(cuts[1:]))
        return part

    def _fill(self, out: np.ndarray, layer: int | None, cuts: tuple[slice, ...]) -> None:
        if out.shape != self.shape[layer is not None :]:
            out[...] = self.map(layer)[cuts]
            return
        with self._checked(layer).open("rb", buffering=0) as stream:
            left = memoryview(out.reshape(-1).view(np.uint8))
            while left:
                count = stream.readinto(left)
                if not count:
                    raise ValueError(f"{self.folder.name} is cut short")
                left = left[count:]

    def _checked(self, layer: int | None) -> Path:
        axes = len(self.shape)
        place = [0] * axes if layer is None else [layer, *[0] * (axes - 1)]
        file = self.folder / chunk_name(place)
        size = math.prod(self.shape[layer is not None :]) * self.dtype.itemsize
        if not file.is_file():
            raise ValueError(f"{self.folder.name}/{file.name} is missing")
        if file.stat().st_size != size:
            raise ValueError(f"{self.folder.name}/{file.name} is not {size} bytes")
        return file


def find(folder: Path, shape: tuple[int, ...], dtype: Any) -> PlainArray | None:
    """The array of that shape and type in a folder, if it is stored in this way and order."""
    try:
        said = json.loads((folder / ".zarray").read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(said, dict):
        return None
    for layered in (False, True):
        if shape and said == description(said, shape, jnp.dtype(dtype), layered=layered):
            return PlainArray(folder, shape, jnp.dtype(dtype), layered)
    return None


def description(
    zarray: Mapping[str, Any], shape: tuple[int, ...], dtype: Any, *, layered: bool
) -> dict[str, Any]:
    """`.zarray` of an array, from that of one of the same type as orbax writes it."""
    known = {"bfloat16": "bfloat16", "float16": "<f2", "float32": "<f4"}
    return {
        **zarray,
        "shape": list(shape),
        "chunks": [1, *shape[1:]] if layered else list(shape),
        "dtype": known.get(str(dtype)),
        "compressor": None,
        "filters": None,
        "order": "C",
        "dimension_separator": ".",
        "zarr_format": 2,
    }


def chunk_name(place: list[int]) -> str:
    """File name of the chunk at a place of the grid of chunks."""
    return ".".join(map(str, place))


def _aligned(shape: list[int], dtype: Any) -> np.ndarray:
    """An array that starts at a page, in large pages where the system has them.

    jax uses memory from 64-byte boundaries as it is, and the first touch of small pages takes
    longer than reading a file does.
    """
    size = math.prod(shape)
    memory = mmap.mmap(-1, max(size * dtype.itemsize, 1))
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, np.uint8, size * dtype.itemsize).view(dtype).reshape(shape)
