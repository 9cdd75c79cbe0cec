"""Memory of a fully sharded training step beside MaxText's, planned with no TPU at hand.

Command   python experiments/plan_table.py                     all rows, one after another
          python experiments/plan_table.py --rows 1 4 --json
Hardware  any x86-64 Linux machine with the extra [tpu]; 2 GiB of memory
Expected  half a minute a row on two idle cores; LOG.md has the table

Batch 1 a chip, T=4096, bfloat16 compute, float32 parameters and AdamW, fully sharded, whole layers
recomputed, flash attention, layers scanned. MaxText 0.2.5's `train_compile` gave the figures beside
ours on a two-core machine with its own pinned jax and libtpu, the same shapes and full remat.
GiB are 2^30 bytes of one chip: arguments + temporaries as allocated, and what is live at once.
"""

import argparse
import json
import sys
from dataclasses import replace
from typing import Any, NamedTuple

from llama_jax.tpu import topology
from llama_jax.tpu.chips import GiB
from llama_jax.tpu.command import preset_experiment
from llama_jax.tpu.plan import plan


class Row(NamedTuple):
    """One configuration and what MaxText needs for it."""

    model: str
    topology: str
    tensor: int
    arguments: float
    temporaries: float
    peak: float | None
    """GiB, where it was recorded."""
    seconds: int


ROWS = (
    Row("llama2-7b", "v5e-256", 1, 0.29, 3.75, 2.71, 152),
    Row("llama2-7b", "v5p-128", 1, 1.18, 4.27, 3.90, 90),
    Row("llama2-13b", "v5e-256", 1, 0.57, 5.46, None, 105),
    Row("llama2-70b", "v5p-128", 1, 12.04, 21.70, 26.41, 124),
    Row("llama2-70b", "v5p-256", 1, 6.02, 16.33, 16.77, 149),
    Row("llama2-70b", "v5e-256", 1, 3.01, 15.38, 13.49, 302),
    Row("llama2-70b", "v5e-256", 4, 3.01, 13.25, None, 100),
    Row("llama2-70b", "v6e-256", 1, 3.01, 14.23, None, 297),
)


def measure(row: Row) -> dict[str, Any]:
    """Our figures for a row, and the ratios to MaxText's."""
    place = topology.parse(row.topology)
    config = preset_experiment(row.model, place)
    config = replace(config, mesh=replace(config.mesh, tensor=row.tensor))
    p = plan(config, place)
    found: dict[str, Any] = {
        **row._asdict(),
        "wall_seconds": p.facts["wall_seconds"],
        "peak_rss_gib": p.facts["peak_rss"] / GiB,
    }
    if p.refused:
        return found
    memory = {name: size / GiB for name, size in p.facts["memory"].items()}
    ours = memory["arguments"] + memory["temporaries"]
    return found | {
        "our_arguments": memory["arguments"],
        "our_temporaries": memory["temporaries"],
        "our_peak": memory["peak"],
        "ratio": ours / (row.arguments + row.temporaries),
        "peak_ratio": memory["peak"] / row.peak if row.peak else None,
        "pallas_kernels": p.facts["kernels"],
        "predicted_step_seconds": p.step_seconds,
        "predicted_mfu": p.mfu(causal=True),
    }


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", nargs="*", type=int, default=range(1, len(ROWS) + 1))
    parser.add_argument("--json", action="store_true", help="one JSON object a row")
    args = parser.parse_args(argv)
    if not args.json:
        print(
            f"{'':30s}{'MaxText GiB':>14s}{'ours GiB':>14s}{'ratio':>7s}"
            f"{'peaks GiB':>14s}{'ratio':>7s}{'s':>6s}{'s':>6s}{'RSS':>6s}"
        )
    for number in args.rows:
        row = measure(ROWS[number - 1])
        if args.json:
            print(json.dumps({"row": number, **row}), flush=True)
            continue
        name = f"{number} {row['model']} {row['topology']}" + (
            f" tensor {row['tensor']}" if row["tensor"] > 1 else ""
        )
        theirs = f"{row['arguments']:.2f}+{row['temporaries']:.2f}"
        ours = ratio = peaks = peak_ratio = "-"
        if "ratio" in row:
            ours = f"{row['our_arguments']:.2f}+{row['our_temporaries']:.2f}"
            ratio = f"{row['ratio']:.2f}"
            peak = f"{row['peak']:.2f}" if row["peak"] else "-"
            peaks = f"{peak}/{row['our_peak']:.2f}"
            peak_ratio = f"{row['peak_ratio']:.2f}" if row["peak_ratio"] else "-"
        print(
            f"{name:30s}{theirs:>14s}{ours:>14s}{ratio:>7s}{peaks:>14s}{peak_ratio:>7s}"
            f"{row['seconds']:6d}{row['wall_seconds']:6.0f}{row['peak_rss_gib']:6.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1:])
