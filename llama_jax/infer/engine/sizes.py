"""Default sizes of the engine, and the devices that share it."""

import os
from collections.abc import Sequence
from typing import Literal

import jax
from jax.sharding import Mesh

from llama_jax.config import MeshConfig, ModelConfig, require
from llama_jax.infer.engine.scheduler import Layout
from llama_jax.model.cache import cache_bytes
from llama_jax.model.weights import map_weights
from llama_jax.parallel.devices import free_bytes
from llama_jax.parallel.mesh import make_mesh
from llama_jax.parallel.rules import named_sharding, num_shards

# Tokens of a page, of the chunks of a prompt, and of prompts between two draws. On TPUs the decode
# kernel reads whole registers of tokens, and a short chunk leaves the matrix unit idle.
CPU_SIZES = 32, (8, 32), 64
DEVICE_SIZES = 128, (128, 512), 512
FEWER_ROWS = (1, 4)
"""On CPUs, where a step for one row takes a fraction of one for many."""
SHARE = 4
"""The cache takes one in so many bytes of the memory that is free, at most."""


def layout_of(
    config: ModelConfig,
    *,
    rows: int,
    context: int | None = None,
    cache_gib: float | None = None,
    draft: ModelConfig | None = None,
    kv: Literal["model", "int8"] = "model",
) -> Layout:
    """Sizes for `rows` sequences at once of `context` tokens at most (the model's own).

    The cache holds all rows at full length where a quarter of the free memory, or `cache_gib`, is
    enough for that, and fewer pages otherwise. The pages of a `draft` model lie beside the others.
    Bytes are those of all devices of the mesh in context together.

    kv: type of keys and values; in int8 they take a quarter to a half of their bytes.

    Raises:
      InputError: not one sequence of full length fits.
    """
    most = config.max_seq_len if context is None else context
    cpu = jax.default_backend() == "cpu"
    page, chunks, budget = CPU_SIZES if cpu else DEVICE_SIZES
    one = -(-most // page)
    limit = _free_bytes() // SHARE if cache_gib is None else int(cache_gib * 2**30)
    bytes_ = cache_bytes(config, kv) + (0 if draft is None else cache_bytes(draft, kv))
    affordable = limit // (page * bytes_)
    require(
        affordable > one,
        f"{limit:,} bytes of cache hold {affordable} pages of {page} tokens, and one sequence of "
        f"{most} tokens takes {one}, with one to spare: shorten the context or give it more",
    )
    return Layout(
        rows=rows,
        num_pages=min(rows * one + 1, affordable),
        page=page,
        chunks=chunks,
        budget=budget,
        max_len=most,
        kv=kv,
        fewer_rows=tuple(n for n in FEWER_ROWS if cpu and n < rows),
    )


def tensor_mesh(tensor: int, models: Sequence[ModelConfig]) -> Mesh:
    """A mesh of so many devices of this machine, -1 for all of them, over which heads, MLP and
    vocabulary are split.

    Raises:
      InputError: there are fewer devices, or one of the models cannot be split over them.
    """
    devices = jax.local_devices()
    require(
        tensor <= len(devices),
        f"tensor={tensor} needs {tensor} devices, and this machine has {len(devices)}",
    )
    devices = devices if tensor == -1 else devices[:tensor]
    mesh = make_mesh(MeshConfig(fsdp=1, tensor=len(devices)), devices)
    for config in models:
        map_weights(lambda w: named_sharding(w.axes, mesh, w.shape, "the model"), config)
    return mesh


def _free_bytes() -> int:
    if (free := free_bytes()) is not None:
        return free * num_shards("kv_heads")
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    except (ValueError, OSError):  # a system that does not say
        return 8 << 30
