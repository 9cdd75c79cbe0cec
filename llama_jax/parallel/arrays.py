"""Host batches as global arrays, abstract trees with shardings, values back on the host."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from llama_jax.config import InputError
from llama_jax.parallel.rules import named_sharding, partition_spec

BATCH_AXES = ("batch", "seq")


def shard_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This host's rows [B/hosts, T] as global arrays [B, T], split by the rules."""
    sharding = named_sharding(BATCH_AXES, mesh)
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}


def check_batch(batch_size: int, seq_len: int, accumulate: int, mesh: Mesh) -> None:
    """Refuse a batch that the mesh cannot split, before anything is allocated.

    Raises:
      InputError: rows or positions are not divisible by the devices that share them.
    """
    spec = partition_spec(BATCH_AXES, mesh)
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
    """ShapeDtypeStructs of a tree, each with its sharding."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of what every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def to_host(tree: Any) -> Any:
    """NumPy values of a tree of global arrays, on every host."""
    if jax.process_count() > 1:
        return multihost_utils.process_allgather(tree, tiled=True)
    return jax.device_get(tree)
