"""Greedy generation of ours, of Hugging Face transformers on torch, and of llama2.c, in turn.

Command   python experiments/compare_generation.py --torch-python OTHER/bin/python \\
              --llama2c llama2.c/run --llama2c-tokenizer llama2.c/tokenizer.bin
Hardware  a quiet machine; all use all its cores
Expected  five minutes on two CPU cores; LOG.md has figures

Each case fills a context of 256 tokens after a prompt of 8, with random weights of the named shape
in float32. A turn is one whole call, prefill included; loading and compiling happen before the
turns that count. A ratio above 1 means that ours is faster.

transformers: LlamaForCausalLM.generate with its key/value cache. `--torch-python` names an
interpreter that has torch and transformers. llama2.c: its `run` at batch size 1, from BOS alone,
build it with -Ofast -fopenmp -march=native; what it prints as tok/s counts, which leaves out its
loading. `--llama2c` names the binary. What is not named is left out.
"""

import argparse
import json
import re
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from turns import Worker, serve, take_turns  # pyrefly: ignore[missing-import]

CASES = [
    {"preset": preset, "batch_size": batch_size}
    for preset in ("stories-15m", "stories-110m")
    for batch_size in (1, 8)
]
CONTEXT, PROMPT = 256, 8


def config_of(case: dict):
    from dataclasses import replace

    from llama_jax.model.presets import PRESETS

    return replace(PRESETS[case["preset"]], max_seq_len=CONTEXT)


def ours(case: dict) -> Iterator[float]:
    """Seconds of one call after another."""
    import jax

    from llama_jax.infer.generate import generate_tokens
    from llama_jax.infer.sampling_params import SamplingParams
    from llama_jax.model.cache import prepare
    from llama_jax.model.llama import init_params

    config = config_of(case)
    weights = jax.block_until_ready(prepare(init_params(jax.random.key(0), config), config))
    rng = np.random.default_rng(0)
    prompts = rng.integers(3, config.vocab_size, (case["batch_size"], PROMPT)).tolist()
    greedy = SamplingParams(max_new_tokens=CONTEXT - PROMPT, temperature=0.0)
    while True:
        begin = time.perf_counter()
        generate_tokens(weights, prompts, greedy, config=config, seeds=range(len(prompts)))
        yield time.perf_counter() - begin


def transformers(case: dict) -> Iterator[float]:
    """Seconds of one call after another."""
    import torch  # pyrefly: ignore[missing-import]
    from transformers import LlamaConfig, LlamaForCausalLM  # pyrefly: ignore[missing-import]

    model = LlamaForCausalLM(LlamaConfig(**case["shape"])).eval()
    prompts = torch.randint(3, 32_000, (case["batch_size"], PROMPT))
    options = {"attention_mask": torch.ones_like(prompts), "do_sample": False, "pad_token_id": 0}
    new = {"max_new_tokens": CONTEXT - PROMPT, "min_new_tokens": CONTEXT - PROMPT}
    while True:
        begin = time.perf_counter()
        with torch.inference_mode():
            model.generate(prompts, use_cache=True, **options, **new)
        yield time.perf_counter() - begin


def llama2c(case: dict) -> Iterator[float]:
    """Seconds per token of one run after another, times the tokens of a call of the others."""
    command = [case["binary"], case["model"], "-t", "0", "-n", str(CONTEXT)]
    while True:
        run = subprocess.run(
            [*command, "-z", case["tokenizer"]], capture_output=True, text=True, errors="replace"
        )
        speed = re.search(r"tok/s: ([0-9.]+)", run.stderr)
        if run.returncode or not speed:
            raise SystemExit(f"{case['binary']}: {run.stderr}")
        yield (CONTEXT - PROMPT) / float(speed[1])


def write_llama2c(config, path: Path) -> None:
    """Random weights as llama2.c's version 0 file, tied head."""
    c, rng = config, np.random.default_rng(0)
    D, F, L, H = c.d_model, c.d_ff, c.num_layers, c.head_dim
    N, K, V, S = c.num_heads, c.num_kv_heads, c.vocab_size, c.max_seq_len
    ones = [(L, D), (L, D), (D,)]
    shapes = [(V, D), ones[0], (L, D, N * H), (L, D, K * H), (L, D, K * H), (L, N * H, D), ones[1]]
    shapes += [(L, F, D), (L, D, F), (L, F, D), ones[2], (S, H // 2), (S, H // 2)]
    with path.open("wb") as file:
        file.write(struct.pack("7i", D, F, L, N, K, V, S))
        for shape in shapes:
            values = rng.standard_normal(shape, np.float32)
            file.write((np.ones(shape, np.float32) if shape in ones else 0.05 * values).tobytes())


def compare(case: dict, args: argparse.Namespace, folder: Path) -> dict:
    """Median seconds a call of all that take part, and the ratios of ours."""
    config = config_of(case)
    shape = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "intermediate_size": config.d_ff,
        "tie_word_embeddings": config.tie_embeddings,
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": config.norm_eps,
    }
    sides = {"ours": (sys.executable, case)}
    if args.torch_python:
        sides["transformers"] = (args.torch_python, case | {"shape": shape})
    if args.llama2c and case["batch_size"] == 1:
        model = folder / f"{case['preset']}.bin"
        write_llama2c(config, model)
        files = {"model": str(model), "binary": args.llama2c, "tokenizer": args.llama2c_tokenizer}
        sides["llama2c"] = (sys.executable, case | files)
    workers = {
        side: Worker(python, __file__, "--serve", side, json.dumps(what))
        for side, (python, what) in sides.items()
    }
    seconds = take_turns(workers, args.warmup, args.turns)
    medians = {side: statistics.median(taken) for side, taken in seconds.items()}
    tokens = case["batch_size"] * (CONTEXT - PROMPT)
    return {
        **case,
        "seconds": seconds,
        "tokens_per_second": {side: tokens / taken for side, taken in medians.items()},
        "ratio": {side: taken / medians["ours"] for side, taken in medians.items()},
    }


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--torch-python", metavar="PATH")
    parser.add_argument("--llama2c", metavar="PATH", help="the binary `run`")
    parser.add_argument("--llama2c-tokenizer", metavar="PATH", default="tokenizer.bin")
    parser.add_argument("--cases", nargs="*", type=int, default=range(len(CASES)), metavar="N")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--serve", nargs=2, metavar=("SIDE", "CASE"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.serve:
        contestants = {"ours": ours, "transformers": transformers, "llama2c": llama2c}
        side, case = args.serve
        serve(contestants[side](json.loads(case)))
        return
    if not args.json:
        print(f"{'case':22s}{'side':14s}{'tokens/s':>10s}{'ours is':>9s}")
    with tempfile.TemporaryDirectory() as folder:
        for case in (CASES[index] for index in args.cases):
            result = compare(case, args, Path(folder))
            if args.json:
                print(json.dumps(result), flush=True)
                continue
            name = f"{case['preset']}, B={case['batch_size']}"
            for side, speed in result["tokens_per_second"].items():
                ratio = f"{result['ratio'][side]:8.2f}x" if side != "ours" else ""
                print(f"{name:22s}{side:14s}{speed:10,.1f}{ratio}", flush=True)
                name = ""


if __name__ == "__main__":
    main(sys.argv[1:])
