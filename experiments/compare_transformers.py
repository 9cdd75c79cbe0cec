"""Training steps of ours and of Hugging Face transformers (torch, eager, on a CPU), in turn.

Command   python experiments/compare_transformers.py --torch-python OTHER/bin/python
Hardware  a quiet machine; both use all its cores
Expected  five minutes on two CPU cores; LOG.md has figures

Each case starts one process for each of the two, and lets them take steps of the same shape in
turn, A B A B ...: whatever else the machine does meets both. The process that waits sleeps. The
medians and their ratio are printed; a ratio above 1 means that ours is faster.

Theirs is LlamaForCausalLM as it comes (scaled dot product attention, its own loss), under
torch.autocast for bfloat16, clip_grad_norm_, and torch's fused AdamW. `--torch-python` names an
interpreter that has torch and transformers; by default the running one is tried.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator

from turns import Worker, serve, take_turns  # pyrefly: ignore[missing-import]

BIG = {
    "vocab_size": 32_000, "d_model": 512, "num_layers": 8, "num_heads": 8, "num_kv_heads": 8,
    "head_dim": 64, "d_ff": 1376, "tie_embeddings": False, "batch_size": 8, "seq_len": 512,
}  # fmt: skip
SMALL = {
    "vocab_size": 512, "d_model": 64, "num_layers": 5, "num_heads": 8, "num_kv_heads": 4,
    "head_dim": 8, "d_ff": 172, "tie_embeddings": True, "batch_size": 32, "seq_len": 256,
}  # fmt: skip
CASES = {
    "big-float32": BIG | {"dtype": "float32"},
    "big-bfloat16": BIG | {"dtype": "bfloat16"},
    "small-float32": SMALL | {"dtype": "float32"},
}


def ours(case: dict) -> Iterator[float]:
    """Seconds of one step after another, in a process that `llama-jax train` would have too."""
    from llama_jax.runtime.malloc import keep_freed_memory

    keep_freed_memory()
    from bench_train import experiment, timed_steps  # pyrefly: ignore[missing-import]

    from llama_jax.config import ModelConfig

    shape = {k: v for k, v in case.items() if k not in ("batch_size", "seq_len")}
    model = ModelConfig(max_seq_len=case["seq_len"], norm_eps=1e-5, **shape)
    yield from timed_steps(experiment(model, case["batch_size"], case["seq_len"]), {})


def theirs(case: dict) -> Iterator[float]:
    """Seconds of one step after another."""
    import torch  # pyrefly: ignore[missing-import]
    from transformers import LlamaConfig, LlamaForCausalLM  # pyrefly: ignore[missing-import]

    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=case["vocab_size"],
            hidden_size=case["d_model"],
            num_hidden_layers=case["num_layers"],
            num_attention_heads=case["num_heads"],
            num_key_value_heads=case["num_kv_heads"],
            intermediate_size=case["d_ff"],
            tie_word_embeddings=case["tie_embeddings"],
            max_position_embeddings=case["seq_len"],
            rms_norm_eps=1e-5,
        )
    ).train()
    adamw = torch.optim.AdamW(
        model.parameters(), lr=3e-4, betas=(0.9, 0.95), eps=1e-5, weight_decay=0.1, fused=True
    )
    tokens = torch.randint(0, case["vocab_size"], (case["batch_size"], case["seq_len"]))
    half = case["dtype"] == "bfloat16"
    while True:
        begin = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adamw.step()
        adamw.zero_grad(set_to_none=True)
        yield time.perf_counter() - begin


def compare(case: dict, torch_python: str, steps: int, warmup: int) -> dict:
    """Median seconds of both, and the ratio of their tokens/s."""
    pythons = {"ours": sys.executable, "theirs": torch_python}
    workers = {
        side: Worker(python, __file__, "--serve", side, json.dumps(case))
        for side, python in pythons.items()
    }
    counted = take_turns(workers, warmup, steps)
    tokens = case["batch_size"] * case["seq_len"]
    result: dict = {"steps": steps, "seconds": counted}
    for name, choose in (("median", statistics.median), ("best", min)):
        mine, other = choose(counted["ours"]), choose(counted["theirs"])
        result[name] = {
            "ours_tokens_per_second": tokens / mine,
            "theirs_tokens_per_second": tokens / other,
            "ratio": other / mine,
        }
    return result


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--torch-python", default=sys.executable, metavar="PATH")
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--serve", nargs=2, metavar=("SIDE", "CASE"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.serve:
        side, case = args.serve
        serve({"ours": ours, "theirs": theirs}[side](json.loads(case)))
        return
    if not args.json:
        print(
            f"{'case':16s}{'tokens/s: ours':>16s}{'theirs':>10s}{'ratio':>8s}{'of the best':>13s}"
        )
    for name in args.cases:
        result = compare(CASES[name], args.torch_python, args.steps, args.warmup)
        if args.json:
            print(json.dumps({"case": name, **result}), flush=True)
            continue
        median, best = result["median"], result["best"]
        print(
            f"{name:16s}{median['ours_tokens_per_second']:16,.0f}"
            f"{median['theirs_tokens_per_second']:10,.0f}{median['ratio']:8.2f}"
            f"{best['ratio']:13.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1:])
