"""Host batches as global arrays, abstract trees with shardings, values back on the host."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from llama_jax.config import InputError
from llama_jax.parallel.rules import named_sharding, partition_spec

BATCH_AXES = ("batch", "seq")


def batch_sharding(mesh: Mesh, shape: Sequence[int], T: int) -> NamedSharding:
    """The sharding of an array [B,...] of a batch: by rows, and by positions if it ends with T."""
    last = "seq" if len(shape) > 1 and shape[-1] == T else None
    axes = ("batch", *(None,) * (len(shape) - 2), last)
    return named_sharding(axes[: len(shape)], mesh)


@functools.cache
def host_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """Rows of a global batch that the devices of this host hold: int64, ascending.

    All other rows are never read here. Hosts that a tensor or sequence axis joins share rows.
    """
    held = named_sharding(("batch",), mesh).addressable_devices_indices_map((batch_size,))
    rows = np.arange(batch_size)
    return np.unique(np.concatenate([rows[index] for index in held.values() if index is not None]))


def shard_batch(
    batch: Mapping[str, np.ndarray], mesh: Mesh, batch_size: int | None = None
) -> dict[str, jax.Array]:
    """The `host_rows` of a batch as global arrays, b rows as B, split by `batch_sharding`.

    The positions T are those of its `tokens`.

    batch_size: B; None where this host holds all rows.
    """

    def place(local: np.ndarray) -> jax.Array:
        B = len(local) if batch_size is None else batch_size
        rows = host_rows(mesh, B)

        def part(index: Any) -> np.ndarray:
            first, stop, _ = index[0].indices(B)
            begin = int(np.searchsorted(rows, first))
            return local[begin : begin + stop - first, *index[1:]]

        sharding = batch_sharding(mesh, local.shape, batch["tokens"].shape[-1])
        return jax.make_array_from_callback((B, *local.shape[1:]), sharding, part)

    return {name: place(local) for name, local in batch.items()}


def check_batch(batch_size: int, seq_len: int, accumulate: int, mesh: Mesh) -> None:
    """Reject a batch that the mesh cannot split, before anything is allocated.

    Raises:
      InputError: rows or positions are not divisible by the devices that share them.
    """
    spec = partition_spec(("batch", "norm_seq"), mesh)
    for name, value, entry in zip(
        ("batch_size / accumulate", "seq_len"), (batch_size // accumulate, seq_len), spec,
        strict=True,
    ):  # fmt: skip
        axes = (entry,) if isinstance(entry, str) else entry or ()
        parts = int(np.prod([mesh.shape[a] for a in axes]))
        if value % parts:
            sizes = " x ".join(f"{a}={mesh.shape[a]}" for a in axes)
            raise InputError(
                f"{name} = {value} is not divisible by the {parts} devices of mesh {sizes}: use a "
                f"multiple of {parts}, such as {-(-value // parts) * parts}"
            )


def abstract_with(tree: Any, shardings: Any) -> Any:
    """A tree of ShapeDtypeStructs, each with its sharding."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of arrays that every device holds completely."""
    return NamedSharding(mesh, PartitionSpec())


def everywhere(array: np.ndarray | np.generic) -> jax.Array:
    """Replicates an array over the mesh in context, or puts it on the default device."""
    mesh = jax.sharding.get_mesh()
    return jnp.asarray(array) if mesh.empty else jax.device_put(array, replicated(mesh))


def to_host(tree: Any) -> Any:
    """NumPy values of a tree of global arrays, on every host."""
    if jax.process_count() > 1:
        return multihost_utils.process_allgather(tree, tiled=True)
    return jax.device_get(tree)
