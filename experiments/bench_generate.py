"""Speed of greedy generation: tokens/s, prefill, compile time, memory. Needs jax and flax only.

Command   python experiments/bench_generate.py                       stories-15m, one row
          python experiments/bench_generate.py --preset stories-110m --batch-size 8 --json
          python experiments/bench_generate.py --preset stories-110m --weights int8
Hardware  any; generation runs on the first device
Expected  under a minute on two CPU cores

Weights are random, as they are or as `llama-jax quantize --weights` keeps them; no row stops early.
The median of --repeats calls counts, after one that compiles. The floor is the weights' bytes over
the memory's bandwidth, for each token.
"""

import argparse
import json
import resource
import statistics
import sys
import time
from typing import Any

import jax
import numpy as np

from llama_jax.config import Quantization, QuantizedModel
from llama_jax.infer.generate import generate_tokens
from llama_jax.infer.sampling_params import SamplingParams
from llama_jax.model.cache import inference_config, prepare
from llama_jax.model.llama import init_params
from llama_jax.model.presets import PRESETS
from llama_jax.model.quantize import quantized


def measure(
    preset: str, kept: str, batch_size: int, prompt: int, new: int, repeats: int
) -> dict[str, Any]:
    """Seconds of whole calls for `new` tokens and for one, and what follows from them."""
    config = PRESETS[preset]
    params = init_params(jax.random.key(0), config)
    if kept != "dense":
        config = QuantizedModel.of(config, Quantization.of(kept))
        params = quantized(params, config)
    weights = jax.block_until_ready(prepare(params, config))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    del params
    rng = np.random.default_rng(0)
    prompts = rng.integers(0, config.vocab_size, (batch_size, prompt)).tolist()

    def call(count: int) -> float:
        begin = time.perf_counter()
        greedy = SamplingParams(max_new_tokens=count, temperature=0.0)
        rows = generate_tokens(weights, prompts, greedy, config=config, seeds=range(batch_size))
        assert all(len(row) == count for row in rows)
        return time.perf_counter() - begin

    first_whole, first_short = call(new), call(1)
    whole = statistics.median(call(new) for _ in range(repeats))
    short = statistics.median(call(1) for _ in range(repeats))
    decode = (whole - short) / (new - 1)
    return {
        "preset": preset,
        "weights": kept,
        "dtype": inference_config(config).dtype,
        "batch_size": batch_size,
        "prompt": prompt,
        "new_tokens": new,
        "tokens_per_second": batch_size * new / whole,
        "decode_ms_per_token": 1e3 * decode,
        "weights_gb_per_second": size / decode / 1e9,
        "prefill_ms": 1e3 * short,
        "compile_seconds": first_whole + first_short - whole - short,
        "peak_memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
    }


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--preset", default="stories-15m", choices=sorted(PRESETS))
    parser.add_argument("--weights", default="dense", choices=["dense", "int8", "int4"])
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--prompt", type=int, default=8, help="tokens in each prompt (8)")
    parser.add_argument("--new-tokens", type=int, default=240, help="tokens to make (240)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    args = parser.parse_args()
    context = PRESETS[args.preset].max_seq_len
    if args.new_tokens < 2 or args.prompt < 1 or args.prompt + args.new_tokens > context:
        parser.error(
            f"--prompt {args.prompt} and --new-tokens {args.new_tokens} (at least 2) must fit the "
            f"context of {args.preset}, {context}"
        )
    row = measure(
        args.preset, args.weights, args.batch_size, args.prompt, args.new_tokens, args.repeats
    )
    if args.json:
        print(json.dumps(row))
        return
    for name, value in row.items():
        print(f"{name:24} {value:,.2f}" if isinstance(value, float) else f"{name:24} {value}")


if __name__ == "__main__":
    sys.exit(main())
