"""Predicted speed beside the published runs of Llama 2 on TPUs.

Command   python experiments/plan_published.py
Hardware  none; arithmetic alone
Expected  a second; the table below

A roofline is a bound: it takes each resource at its published peak and all of them at once. What a
run loses to the matrix units' fill, to kernels, to collectives that are not hidden and to the host
is the error. Sources: MaxText's tests/end_to_end/tpu/llama2/run_llama2.md and
docs/reference/models/tiering.md, tpu-recipes' training/trillium/Llama2-70B-MaxText. They count all
positions' attention (MFU "full"); where tokens/s were published the MFU is made from them.
MaxText's policies that save more than one of ours are planned with the nearest of ours.
"""

import sys
from dataclasses import replace
from typing import NamedTuple

from llama_jax.tpu import topology
from llama_jax.tpu.arithmetic import estimate, flops
from llama_jax.tpu.command import preset_experiment


class Run(NamedTuple):
    """One published run."""

    model: str
    topology: str
    rows: int
    """Of each chip."""
    seq_len: int
    remat: str
    mfu: float
    """Measured, full."""


RUNS = (
    Run("llama2-70b", "v4-128", 4, 2048, "full", 0.57),
    Run("llama2-70b", "v5e-256", 2, 2048, "offload", 0.57),
    Run("llama2-70b", "v5p-128", 4, 4096, "qkvo", 0.65),
    Run("llama2-70b", "v5p-1024", 4, 4096, "qkvo", 0.670),
    Run("llama2-70b", "v6e-256", 3, 4096, "offload", 0.438),
)


def predict(run: Run) -> tuple[float, float, str]:
    """Predicted step in seconds, its MFU (full), and what binds it."""
    place = topology.parse(run.topology)
    config = preset_experiment(run.model, place)
    config = replace(
        config,
        batch_size=run.rows * place.chips,
        seq_len=run.seq_len,
        model=replace(config.model, remat=run.remat),  # pyrefly: ignore[bad-argument-type]
    )
    expected = estimate(config, place)
    peak = place.chips * place.chip.bf16_flops
    mfu = flops(config).full / expected.step / peak
    return expected.step, mfu, max(expected.seconds, key=expected.seconds.__getitem__)


def main() -> None:
    print(f"{'':22s}{'rows x T':>10s}{'remat':>9s}{'step s':>8s}{'MFU':>7s}{'measured':>10s}"
          f"{'step error':>12s}  bound by")  # fmt: skip
    for run in RUNS:
        step, mfu, binding = predict(run)
        shape = f"{run.rows} x {run.seq_len}"
        print(
            f"{run.model + ' ' + run.topology:22s}{shape:>10s}{run.remat:>9s}{step:8.2f}"
            f"{100 * mfu:6.1f}%{100 * run.mfu:9.1f}%{100 * (run.mfu / mfu - 1):11.0f}%  {binding}"
        )


if __name__ == "__main__":
    sys.exit(main())
