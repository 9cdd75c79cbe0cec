"""Block sizes of the attention kernels, fewest predicted cycles first; no TPU needed.

    python experiments/search_kernel_blocks.py v5e --head-dim 64 --pass backward

What it prints, one line a candidate, went into llama_jax/kernels/block_sizes.py. Some five seconds
a candidate on two CPU cores; the heads are those of the 7B, 32 of them, one row of 4096 tokens.
"""

import argparse
import dataclasses
import itertools

from llama_jax.kernels.block_sizes import HEAD_WIDTHS, VMEM
from llama_jax.tpu.kernel_cases import Case
from llama_jax.tpu.kernel_report import kernel_report

BLOCKS = {"forward": (256, 512, 1024, 2048), "backward": (256, 512, 1024)}


def candidates(direction: str) -> list[tuple[int, int, int]]:
    """Block, queries and keys of a piece."""
    forward = direction == "forward"
    keys = (256,) if forward else (128, 256)
    triples = itertools.product(BLOCKS[direction], (128, 256, 512), keys)
    return [(b, sub, k) for b, sub, k in triples if sub <= b and (forward or k <= sub)]


def main() -> None:
    """Compiles every candidate; those that the compiler or VMEM refuses are said so."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("generation", choices=VMEM)
    parser.add_argument("--pass", dest="direction", choices=("forward", "backward"), required=True)
    parser.add_argument("--masks", choices=("causal", "packed"), default="causal")
    parser.add_argument("--head-dim", type=int, choices=HEAD_WIDTHS, default=128)
    args = parser.parse_args()
    found = []
    for block, sub, keys in candidates(args.direction):
        case = Case("ours", args.direction, "7B", block, block, sub, inner_kv=keys)
        case = dataclasses.replace(case, masks=args.masks, head_dim=args.head_dim)
        rows, failures = kernel_report(args.generation, cases=[case])
        for line in failures:
            print(line)
        for row in rows:
            if row["model"] == "7B":
                found.append((row["cycles"], f"{block}/{sub}/{keys}", row["spills"], row["matmul"]))
    for cycles, blocks, spills, share in sorted(found):
        print(f"{cycles:>10,}  {blocks:<14} {spills:>7,} spills, matrix units {share:.0%}")


if __name__ == "__main__":
    main()
