"""`Source`: a model in any format, whose tensors are read one at a time on demand.

A `Source` gives any tensor of any layer under our name and in our layout (model/weights.py), out of
a memory map, so that nothing is read before it is needed and no more than is needed: what
`Source.tensor` returns has a shape and a dtype, and reads when it is indexed.

Llama's other programs keep matrices as rows [out, in]; `from_rows` and `to_rows` go between that
and our layout, where heads have an axis of their own. Meta, llama2.c and GGUF besides pair
neighbouring rotary dimensions (interleaved: 2j and 2j+1 turn together) where we, like Hugging
Face, pair j and j + H/2 (half-split).
"""

import functools
import math
import mmap
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from llama_jax.config import InputError, ModelConfig
from llama_jax.convert.usage import Usage
from llama_jax.model.weights import Weight, layer_weights, outer_weights
from llama_jax.runtime.files import open_file

_READERS = 2  # each copies one part into our layout: work of one core
_PART_BYTES = 64 << 20
"""Of a tensor at once: what is in memory is new memory, whose first touch takes longer than a copy.
"""


@runtime_checkable
class Lazy(Protocol):
    """An array that is read when it is indexed with slices of step 1; NumPy arrays and maps
    qualify."""

    @property
    def shape(self) -> tuple[int, ...]:
        """As in NumPy."""
        ...

    @property
    def dtype(self) -> Any:
        """As in NumPy; bfloat16 is that of ml_dtypes."""
        ...

    def __getitem__(self, index: Any, /) -> Any:
        """The part as a NumPy array."""
        ...


@dataclass(frozen=True)
class Source:
    """A model on disk in some format."""

    format: str
    """Name in `formats.FORMATS`."""
    path: Path
    config: ModelConfig
    """`param_dtype` is the dtype in which its matrices are stored (float32 for quantised ones)."""
    tokenizer: bytes | None
    """A serialised sentencepiece model, if the format or its folder holds one."""
    tensor: Callable[[str, int | None], Lazy]
    """Our tensor `name` of a layer; layer None for embed, norm and head."""
    changes: tuple[str, ...] = ()
    """Lossless changes that reading makes: permuted, dequantised, tied. For the report."""
    origin: Any = None
    """Where the weights come from, according to the format: JSON values."""
    digests: Mapping[str, str] = field(default_factory=dict)
    """Digest (manifest.py) of each of our tensors, all layers: stored by the format, or recorded by
    a conversion as it reads."""
    usage: Usage = field(default_factory=Usage)
    """Usage settings in the files."""
    notes: tuple[str, ...] = ()
    """Sentences for the report and the log on what was left out, changed or assumed."""

    def read(self, name: str, layer: int | None = None) -> np.ndarray:
        """All of one tensor."""
        return np.asarray(self.tensor(name, layer)[...])

    def stream(
        self,
        order: Iterable[tuple[str, int | None]] | None = None,
        *,
        interleaved: bool | None = None,
    ) -> Iterator[tuple[str, int | None, np.ndarray]]:
        """Every tensor in the order given, or that of `tensors`, in C order.

        Large ones come in consecutive parts along the first axis. `interleaved` gives them as rows
        of other programs (`to_rows`). While the caller writes one, threads read the next two.
        """

        def read(part: tuple[str, int | None, tuple[slice, ...]]) -> np.ndarray:
            name, layer, index = part
            array = np.asarray(self.tensor(name, layer)[index])
            if interleaved is None:
                return array
            return dense(to_rows(name, array, interleaved=interleaved))

        wanted = [(n, i) for n, i, _ in tensors(self.config)] if order is None else order
        parts = [
            (name, layer, index)
            for name, layer in wanted
            for index in _parts(name, self.tensor(name, layer), rows=interleaved is not None)
        ]
        with ThreadPoolExecutor(_READERS) as pool:
            ahead = deque(pool.submit(read, part) for part in parts[:_READERS])
            for number, (name, layer, _) in enumerate(parts):
                array = ahead.popleft().result()
                if number + _READERS < len(parts):
                    ahead.append(pool.submit(read, parts[number + _READERS]))
                yield name, layer, array
                del array  # so that it does not wait in memory for the next


def map_file(path: Path) -> np.ndarray:
    """uint8: a memory map of a local file.

    Raises InputError as `files.open_file` does: a map of a pipe or a device has no end.
    """
    with open_file(path) as file:
        if not os.fstat(file.fileno()).st_size:
            return np.zeros(0, np.uint8)
        return np.memmap(file, np.uint8, "r")


def tensors(config: ModelConfig) -> Iterator[tuple[str, int | None, Weight]]:
    """Every tensor of a model: name, layer (None outside the layers), and its table row.

    All layers of one name come one after the other, as model folders keep them stacked.
    """
    layered = layer_weights(config)
    for name, weight in outer_weights(config).items():
        yield name, None, weight
    for name, weight in layered.items():
        for layer in range(config.num_layers):
            yield name, layer, weight


def _parts(name: str, tensor: Lazy, *, rows: bool) -> Iterator[tuple[slice, ...]]:
    """Cuts of one of our tensors along the first axis that it has, or that its rows will have."""
    axis = 0
    if rows and len(tensor.shape) > 1 and name != "embed":
        axis = 2 if name == "o" else 1
    length, size = tensor.shape[axis], math.prod(tensor.shape) * tensor.dtype.itemsize
    step = -(-length // -(-size // _PART_BYTES)) if size else 1
    for start in range(0, length, step):
        yield (*(slice(None),) * axis, slice(start, min(start + step, length)))


def on_host(array: np.ndarray) -> jax.Array:
    """The array in C order in jax's layout on the CPU, whatever the default device.

    XLA copies transposed matrices two to four times faster than NumPy does, and takes aligned ones
    in C order without copying. Pages of a memory map that were copied are returned to the system,
    so a map is never in memory as a whole.
    """
    copied = jax.device_put(array, jax.local_devices(backend="cpu")[0])
    jax.block_until_ready(copied)
    if copied.unsafe_buffer_pointer() == array.ctypes.data:
        return copied
    base: Any = array
    while base is not None:
        if isinstance(base, mmap.mmap):
            base.madvise(mmap.MADV_DONTNEED)
        base = getattr(base, "base", None)
    return copied


def dense(array: np.ndarray) -> np.ndarray:
    """A copy in C order, ready to be written to a file."""
    return np.asarray(on_host(array))


@functools.cache
def _shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Of each of our tensors, of one layer."""
    return {n: w.shape for n, w in (layer_weights(config) | outer_weights(config)).items()}


def rows_shape(name: str, config: ModelConfig) -> tuple[int, ...]:
    """Shape of one of our tensors in the other programs: [out, in], or [D] for norms."""
    shape = _shapes(config)[name]
    if len(shape) == 1 or name == "embed":
        return shape
    inputs = 2 if name == "o" else 1
    return math.prod(shape[inputs:]), math.prod(shape[:inputs])


@dataclass(frozen=True)
class FromRows:
    """One of our tensors, cut from a matrix [out, in] when indexed: slices read only what they
    need."""

    name: str
    rows: Lazy
    shape: tuple[int, ...]
    interleaved: bool

    @property
    def dtype(self) -> Any:
        """The dtype of the rows."""
        return self.rows.dtype

    def __getitem__(self, index: Any) -> np.ndarray:
        if index is Ellipsis:
            index = ()
        index = index if isinstance(index, tuple) else (index,)
        full = [*index, *(slice(None),) * (len(self.shape) - len(index))]
        bounds = [i.indices(n)[:2] for i, n in zip(full, self.shape, strict=True)]
        cuts = [slice(a, max(a, b)) for a, b in bounds]
        if len(self.shape) == 1 or self.name == "embed":
            return np.asarray(self.rows[tuple(cuts)])
        if len(self.shape) == 2:
            return np.asarray(self.rows[cuts[1], cuts[0]]).T
        if self.name == "o":  # rows [D, N H] -> [N, H, D]
            heads, inner, width = cuts
            part = np.asarray(self.rows[width, self._rows_of(heads)])
            part = part.reshape(len(part), heads.stop - heads.start, self.shape[1])
            return part.transpose(1, 2, 0)[:, inner]
        width, heads, inner = cuts  # rows [heads H, D] -> [D, heads, H]
        part = np.asarray(self.rows[self._rows_of(heads), width])
        part = part.reshape(heads.stop - heads.start, self.shape[2], part.shape[-1])
        return (half_split(part) if self._turns else part).transpose(2, 0, 1)[:, :, inner]

    @property
    def _turns(self) -> bool:
        return self.interleaved and self.name in ("q", "k")

    def _rows_of(self, heads: slice) -> slice:
        H = self.shape[1] if self.name == "o" else self.shape[2]
        return slice(heads.start * H, heads.stop * H)


def from_rows(name: str, rows: Lazy, config: ModelConfig, *, interleaved: bool) -> FromRows:
    """Our tensor `name` from rows [out, in] (or [D]) of another program.

    Raises InputError if the rows have another shape than `rows_shape`.
    """
    expected = rows_shape(name, config)
    if tuple(rows.shape) != expected:
        raise InputError(f"{name} is {list(rows.shape)}, not {list(expected)}")
    return FromRows(name, rows, _shapes(config)[name], interleaved)


def to_rows(name: str, array: np.ndarray, *, interleaved: bool) -> np.ndarray:
    """Rows [out, in] of our tensor `name`: the inverse of `from_rows`. A view where it can be."""
    if array.ndim == 1 or name == "embed":
        return array
    if array.ndim == 2:
        return array.T
    if name == "o":
        return array.transpose(2, 0, 1).reshape(array.shape[2], -1)
    rows = array.transpose(1, 2, 0)
    if interleaved and name in ("q", "k"):
        rows = interleave(rows)
    return rows.reshape(-1, array.shape[0])


def half_split(rows: np.ndarray) -> np.ndarray:
    """Rotary rows [heads, H, in] with planes (2j, 2j+1) -> planes (j, j + H/2)."""
    heads, H, width = rows.shape
    return rows.reshape(heads, H // 2, 2, width).swapaxes(1, 2).reshape(heads, H, width)


def interleave(rows: np.ndarray) -> np.ndarray:
    """The inverse of `half_split`."""
    heads, H, width = rows.shape
    return rows.reshape(heads, 2, H // 2, width).swapaxes(1, 2).reshape(heads, H, width)
