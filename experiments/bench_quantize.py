"""What small weights cost a trained model: bytes, perplexity, divergence, equal likeliest tokens.

Command   python experiments/bench_quantize.py runs/quickstart
          python experiments/bench_quantize.py MODEL --data mine.jsonl --calibration mine.jsonl
Hardware  any; figures do not depend on how busy it is
Expected  ten minutes on two CPU cores for a model of 15M parameters; LOG.md has figures

Each row is the report of `llama-jax quantize` with these settings: on the same held-out tokens,
against the model in float32. A cache in int8 comes on top of int8 weights, and its ratio is to
these, its divergence to float32. GPTQ chooses the numbers for a training text (--calibration).
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from llama_jax.config import InputError


class Setting(NamedTuple):
    """Of `llama-jax quantize`."""

    weights: Literal["int8", "int4"]
    group: int | None = None
    kv: Literal["model", "int8"] = "model"
    gptq: bool = False


SETTINGS = {
    "int8": Setting("int8"),
    "int8, int8 cache": Setting("int8", kv="int8"),
    "int4, groups of 32": Setting("int4", 32),
    "int4, groups of 32, GPTQ": Setting("int4", 32, gptq=True),
    "int4, groups of 128": Setting("int4", 128),
    "int4, groups of 128, GPTQ": Setting("int4", 128, gptq=True),
}


def rows(args: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """A row for each of SETTINGS, as it is found."""
    from llama_jax.quantize import quantize

    perplexity: dict[str, float] = {}
    for number, (name, setting) in enumerate(SETTINGS.items()):
        report = quantize(
            args.model, os.fspath(folder / str(number)),
            weights=setting.weights, group=setting.group, kv=setting.kv,
            calibration=args.calibration if setting.gptq else None,
            dataset=args.data, batch_size=args.batch_size, seq_len=args.seq_len,
        )  # fmt: skip
        perplexity[name] = report["perplexity"]["after"]
        below = perplexity["int8"] if setting.kv == "int8" else report["perplexity"]["before"]
        yield {
            "weights": name,
            "bytes": report["bytes"]["after"],
            "of_bytes": report["bytes"]["before"],
            "perplexity": perplexity[name],
            "ratio": perplexity[name] / below,
            "kl": report["kl"],
            "same_top": report["same_top"],
            "tokens": report["tokens"],
        }


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", metavar="MODEL", help="a model folder or run folder")
    parser.add_argument(
        "--data", metavar="DATASET", help="its validation split is read (the run's)"
    )
    parser.add_argument(
        "--calibration", default="tales", metavar="DATASET", help="for GPTQ (tales)"
    )
    parser.add_argument("--batch-size", type=int, default=8, metavar="B", help="rows at a time (8)")
    parser.add_argument("--seq-len", type=int, metavar="T", help="tokens in a row (the run's own)")
    parser.add_argument("--json", action="store_true", help="a JSON object for each row")
    args = parser.parse_args()
    if not args.json:
        print("| Weights | Bytes | | Perplexity | Ratio | KL | Same top token |")
        print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for row in rows(args, Path(folder)):
            if args.json:
                print(json.dumps(row), flush=True)
                continue
            print(
                f"| {row['weights']} | {row['bytes']:,} | {row['bytes'] / row['of_bytes']:.1%} "
                f"| {row['perplexity']:.4f} | {row['ratio']:.5f} | {row['kl']:.2e} "
                f"| {row['same_top']:.2%} |",
                flush=True,
            )


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"bench_quantize: {error}")
