"""Searches meshes, remat policies and batch sizes for a slice: Pareto front of memory and speed.

Arithmetic orders all candidates in a second; only the fastest that should fit are compiled.
"""

import dataclasses
import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from llama_jax.config import InputError, MeshConfig, TrainConfig
from llama_jax.tpu.arithmetic import Estimate, estimate
from llama_jax.tpu.chips import GiB
from llama_jax.tpu.plan import Plan, as_json, check_divides, plan
from llama_jax.tpu.topology import Topology

ROWS_PER_DEVICE = (1, 2, 4, 8, 16)
REMAT = ("none", "dots", "qkvo", "full")
# The arithmetic does not see fragmentation and what the compiler prefetches.
MARGIN = 0.9


def search(
    config: TrainConfig,
    topology: Topology,
    *,
    compiled: int,
    planned: Callable[[TrainConfig, Topology], Plan] = plan,
) -> list[dict[str, Any]]:
    """The front, fastest first: the settings, their estimate, and the plan of the first `compiled`.

    Raises InputError if no candidate divides.
    """
    found: list[tuple[TrainConfig, Estimate]] = []
    for tensor, remat, rows in itertools.product((1, 2, 4, 8), REMAT, ROWS_PER_DEVICE):
        batch = rows * topology.devices // config.mesh.sequence
        changed = replace(
            config,
            batch_size=batch,
            model=replace(config.model, remat=remat),  # pyrefly: ignore[bad-argument-type]
            mesh=MeshConfig(slice=topology.slices, sequence=config.mesh.sequence, tensor=tensor),
        )
        try:
            check_divides(changed, topology)
            found.append((changed, estimate(changed, topology)))
        except InputError:
            continue
    if not found:
        raise InputError(
            f"no mesh of {topology.name} divides this model: heads {config.model.num_kv_heads}, "
            f"width {config.model.d_model}"
        )
    found.sort(key=lambda c: c[1].step / c[0].batch_size)
    front, least = [], float("inf")
    for changed, expected in found:
        if expected.total > MARGIN * topology.chip.hbm_bytes or expected.total >= least:
            continue
        least = expected.total
        front.append(
            {"config": changed, "estimate": expected, "plan": None, "chips": topology.chips}
        )
    if not front:
        smallest = min(e.total for _, e in found)
        raise InputError(
            f"nothing fits {topology.name}: the smallest candidate needs about "
            f"{smallest / GiB:.1f} GiB of {topology.chip.hbm_bytes / GiB:.2f} a chip; "
            "take more chips"
        )
    for row in front[:compiled]:
        row["plan"] = planned(row["config"], topology)
    return front


def front_json(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the front for programs: settings, estimate, and the plan if it was compiled."""
    config, expected = row["config"], row["estimate"]
    return {
        "mesh": dataclasses.asdict(config.mesh),
        "remat": config.model.remat,
        "batch_size": config.batch_size,
        "estimated_hbm_bytes_per_chip": expected.total,
        "estimated_step_seconds": expected.step,
        "plan": as_json(row["plan"]) if row["plan"] else None,
    }
