"""SFT, adapters, reward modelling, DPO and GRPO: ours and TRL's with peft (torch, eager, on a CPU),
on the same rows in turn.

Command   python experiments/compare_trl.py --torch-python OTHER/bin/python
Hardware  a quiet machine; both use all its cores
Expected  a quarter of an hour on two CPU cores; LOG.md has figures

Both begin with the same weights and the same adapters, and every step takes the same batch: 16
dialogues, or 8 pairs, of the tales, each as its program lays them out: ours packs whole dialogues
and pairs into rows of 256 tokens, theirs pads to the longest. The losses of the first step are
printed beside each other, and tokens a second, padding left out, by the median of the steps that
follow, A B A B ...; a ratio above 1 means that ours is faster. Dropout is none, AdamW fused,
gradients clipped to 1. In DPO both compute what the reference says once, before the first step. A
step of GRPO draws 8 answers of up to 64 tokens to each of 8 prompts, and makes one update with
them; TRL has no trainer for PPO any more.

`--torch-python` names an interpreter that has torch, transformers, datasets, trl and peft; by
default the running one is tried. What both sides do is in beside_trl/.
"""

import argparse
import math
import statistics
import sys
import tempfile
from importlib import import_module
from pathlib import Path

from beside_trl.case import STAGES, tokens_of, write_case  # pyrefly: ignore[missing-import]
from turns import Worker, serve, take_turns  # pyrefly: ignore[missing-import]


def main(argv: list[str]) -> None:
    """Print a line for each stage."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--torch-python", default=sys.executable, metavar="PYTHON")
    parser.add_argument("--stages", nargs="*", default=STAGES, choices=STAGES)
    parser.add_argument("--steps", type=int, default=9)
    parser.add_argument("--side", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.side:
        side, stage, folder = args.side
        if side == "ours":
            from llama_jax.runtime.malloc import keep_freed_memory

            keep_freed_memory()  # before anything is allocated
        serve(import_module(f"beside_trl.{side}").steps(Path(folder), stage))
        return
    with tempfile.TemporaryDirectory(prefix="compare-trl-") as place:
        write_case(Path(place))
        print("stage       loss, ours      theirs  tokens/s, ours    theirs   ratio")
        for stage in args.stages:
            workers = {
                side: Worker(python, __file__, "--side", side, stage, place)
                for side, python in (("ours", sys.executable), ("theirs", args.torch_python))
            }
            taken = take_turns(workers, warmup=0, turns=args.steps + 2)
            loss = {side: values[0] for side, values in taken.items()}
            tokens = tokens_of(Path(place), stage)
            rate = {side: tokens / statistics.median(v[2:]) for side, v in taken.items()}
            same = math.isclose(loss["ours"], loss["theirs"], abs_tol=1e-4)  # GRPO: none to compare
            print(
                f"{stage:<10}{loss['ours']:>12.5f}{loss['theirs']:>12.5f}"
                f"{rate['ours']:>16,.0f}{rate['theirs']:>10,.0f}"
                f"{rate['ours'] / rate['theirs']:>8.2f}" + ("" if same else "  losses differ"),
                flush=True,
            )  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1:])
