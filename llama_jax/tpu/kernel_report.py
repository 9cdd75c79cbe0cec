"""One row of figures for each kernel, read from its schedule."""

import dataclasses
import sys

from llama_jax.kernels.block_sizes import VMEM
from llama_jax.tpu.bundles import Schedule, compile_in_subprocess
from llama_jax.tpu.chips import CHIPS
from llama_jax.tpu.kernel_cases import MODELS, Case, best_cases, spans_of
from llama_jax.tpu.kernel_counts import decode_traffic, hbm_bytes, macs, valid_bytes, visits

# Place of the loop over wholly seen tiles among the vector regions of ours, packed, from the end.
STEADY = {"forward": -6, "backward": -4}


def kernel_report(
    generation: str, *, python: str = sys.executable, cases: list[Case] | None = None
) -> tuple[list[dict], list[str]]:
    """One row for each kernel, direction, mask and model; about ten seconds for each to compile.

    Beside the rows, a line for each kernel that did not compile: which one, and why.

    All figures are those of one device and one layer, for one row of 4096 tokens, or, in decoding,
    for one token of each of eight rows.

    - `cycles`: regions of the schedule times their visits. A region lasts for its bundles or for
      the rows of its busiest matrix unit, whichever is longer; all of it at least as long as the
      visible scores take at the chip's peak. `microseconds` at the chip's clock.
    - `memory_microseconds`: bytes moved over the memory's bandwidth, which cycles know nothing of.
    - `share_of_peak`: multiply-adds of visible scores alone, over what fits in `cycles`.
    - `matmul` and other units: used slots over slots of the executed bundles.
    - `matmul_text`: used matrix-unit slots over those of the kernel's whole text, each bundle once.
    - `bundles`, `spills`, `fills`: of the text. `vmem_bytes`: blocks, scratch and spills.
    - `over_visited` (ours, packed): cycles over those of the visited tiles alone, each as long as
      a whole tile without a mask in the steady loop.
    - `moved_over_valid` (decoding): bytes of the cache that the grid and the index maps move, over
      those that are valid.

    Raises ValueError for an unknown generation.
    """
    if generation not in VMEM:
        raise ValueError(f"topology {generation!r} must be one of {', '.join(VMEM)}")
    rows, failures = [], []
    for case in best_cases(generation) if cases is None else cases:
        # Decoding, and ours backward, is compiled for each model; else only the visits differ.
        own = case.direction == "decode" or (case.kernel, case.direction) == ("ours", "backward")
        models = (case.model,) if own else MODELS
        try:
            found = compile_in_subprocess(
                generation, "llama_jax.tpu.kernel_cases", dataclasses.asdict(case), python=python
            )
            for model in models:
                rows.append(_row(dataclasses.replace(case, model=model), found, generation))
        except (RuntimeError, ValueError) as error:
            name = f"{case.kernel} {case.direction} {case.masks} {case.model}, blocks {case.blocks}"
            failures.append(f"{name}, on {generation}: {error}")
    return rows, failures


def _row(case: Case, schedules: list[Schedule], generation: str) -> dict:
    chip, parts = CHIPS[generation], []
    for name, counts, loops in visits(case, spans_of(case, generation)):
        matching = [schedule for schedule in schedules if name in schedule.name]
        if len(matching) != 1:
            names = [schedule.name for schedule in schedules]
            raise ValueError(f"one kernel named {name!r} is expected among {names}")
        schedule = matching[0]
        if case.direction == "decode":
            # Reset and output of a row are vector regions only where there are many heads.
            *blocks, rows = counts
            vector = (region for region in schedule.regions if region.is_vector)
            counts = [blocks.pop(0) if region.slots["matmul"] else rows for region in vector]
        parts.append((schedule, counts, loops, schedule.cycles(counts, loops)))
    executed = sum(cycles for *_, cycles in parts)

    def busy(slot):
        return sum(s.busy(slot, counts, n) * cycles for s, counts, n, cycles in parts) / executed

    needed = macs(case) / chip.macs_per_cycle
    # The cores of one device share a kernel's grid.
    cycles = max(executed, needed) * chip.devices / chip.cores
    return {
        "kernel": case.kernel,
        "direction": case.direction,
        "masks": case.masks,
        "model": case.model,
        "blocks": case.blocks,
        "cycles": round(cycles),
        "microseconds": round(1e6 * cycles / chip.clock, 1),
        "memory_microseconds": round(
            1e6 * hbm_bytes(case) * chip.devices / chip.hbm_bytes_per_second, 1
        ),
        "share_of_peak": round(needed / max(executed, needed), 3),
        **{
            slot: round(busy(slot), 3)
            for slot in ("matmul", "valu", "xlu", "eup", "vload", "vstore")
        },
        "matmul_text": round(
            sum(s.share("matmul") * s.bundles for s, *_ in parts)
            / sum(s.bundles for s, *_ in parts),
            3,
        ),
        "fills": sum(s.total("fill") for s, *_ in parts),
        "spills": sum(s.total("spill") for s, *_ in parts),
        "bundles": sum(s.bundles for s, *_ in parts),
        "vmem_bytes": max(s.vmem_bytes for s, *_ in parts),
        "over_visited": _over_visited(case, *parts[0]),
        "moved_over_valid": _moved_over_valid(case),
    }


def _over_visited(case, schedule, counts, loops, cycles):
    if case.kernel != "ours" or case.masks != "packed":
        return None
    tile = [region for region in schedule.regions if region.is_vector][STEADY[case.direction]]
    # A tile for each query block.
    return round(cycles / (loops[-1] * tile.cycles), 3)


def _moved_over_valid(case):
    if case.direction != "decode":
        return None
    return round(decode_traffic(case)[0] / valid_bytes(case), 4)
