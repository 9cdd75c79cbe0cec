"""Speed of a training step: tokens/s, MFU, compile time, memory. Needs jax, flax and optax only.

Command   python experiments/bench_train.py                          D=512, L=8, V=32000, bfloat16
          python experiments/bench_train.py --preset stories-260k --batch-size 32 --seq-len 256
          python experiments/bench_train.py --preset llama2-7b --remat full --batch-size 8 --json
          python experiments/bench_train.py --shape num_layers=4 d_ff=2048 --dtype float32
Hardware  any; all devices are used, the parameters split over them
Expected  a minute on two CPU cores; LOG.md has figures

One step is what training runs: forward, backward, clip, AdamW, on random tokens, each row one
document. The median of --steps steps counts, after two that do not.
"""

import argparse
import json
import platform
import resource
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from llama_jax.runtime.malloc import keep_freed_memory

keep_freed_memory()  # as `llama-jax train` does, before jax starts its threads

# ruff: noqa: E402
import jax
import numpy as np

from llama_jax.config import DataConfig, InputError, ModelConfig, OptimizerConfig, TrainConfig
from llama_jax.model.presets import PRESETS
from llama_jax.model.weights import parameter_count
from llama_jax.parallel.arrays import check_batch, shard_batch
from llama_jax.parallel.mesh import make_mesh
from llama_jax.train.metrics import throughput
from llama_jax.train.next_token import BATCH_DTYPES, NextToken
from llama_jax.train.optimizer import make_optimizer
from llama_jax.train.state import abstract_state, sharded_init, trained_table
from llama_jax.train.step import abstract_batch, jit_train_step

OPTIMIZER = OptimizerConfig(learning_rate=3e-4, warmup_steps=0, schedule="constant")


def experiment(model: ModelConfig, batch_size: int, seq_len: int) -> TrainConfig:
    """A run of this shape; nothing of it is read from or written to disk."""
    return TrainConfig(
        workdir="unused",
        steps=1,
        batch_size=batch_size,
        seq_len=seq_len,
        model=model,
        optimizer=OPTIMIZER,
        data=DataConfig(dataset="unused"),
    )


def random_batch(config: TrainConfig) -> dict[str, np.ndarray]:
    """Random tokens, each row one document."""
    rng = np.random.default_rng(0)
    shape = (config.batch_size, config.seq_len)
    values = {
        "tokens": rng.integers(0, config.model.vocab_size, shape),
        "segment_ids": np.ones(shape),
        "positions": np.broadcast_to(np.arange(config.seq_len), shape),
        "loss_mask": np.ones(shape),
    }
    return {k: values[k].astype(dtype) for k, dtype in BATCH_DTYPES.items()}


def timed_steps(config: TrainConfig, facts: dict) -> Iterator[float]:
    """Seconds of one training step after another; `facts` gets compile time and memory first."""
    mesh = make_mesh(config.mesh)
    check_batch(config.batch_size, config.seq_len, config.accumulate, mesh)
    objective = NextToken(config.model)
    tx = make_optimizer(config.optimizer, trained_table(objective), config.steps)
    with jax.set_mesh(mesh):
        abstract = abstract_state(objective, tx, mesh)
        begin = time.perf_counter()
        compiled = jit_train_step(config, objective, tx, abstract)
        compiled = compiled.lower(abstract, abstract_batch(config, objective, mesh)).compile()
        facts["compile_seconds"] = time.perf_counter() - begin
        memory: Any = compiled.memory_analysis()
        facts["planned_bytes_per_device"] = (
            memory.argument_size_in_bytes + memory.temp_size_in_bytes
        )
        state = sharded_init(config.seed, objective, tx, abstract)
        batch = shard_batch(random_batch(config), mesh)
        jax.block_until_ready((state, batch))
        while True:
            begin = time.perf_counter()
            state, metrics = compiled(state, batch)
            jax.block_until_ready(state)
            seconds = time.perf_counter() - begin
            facts["loss"] = float(metrics.loss)
            yield seconds


def peak_bytes() -> int:
    """Most memory in use so far: of one device where it says, of this process otherwise."""
    stats = jax.local_devices()[0].memory_stats() or {}
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unit = 1 if sys.platform == "darwin" else 1024
    return stats.get("peak_bytes_in_use", kilobytes * unit)


def measure(config: TrainConfig, steps: int) -> dict:
    """Everything that this script reports."""
    facts: dict = {}
    timed = timed_steps(config, facts)
    seconds = [next(timed) for _ in range(steps + 2)][2:]
    median = statistics.median(seconds)
    tokens = config.batch_size * config.seq_len
    rates = throughput(config.model, config.seq_len, tokens, median)
    return {
        "tokens_per_second": tokens / median,
        "step_ms": 1e3 * median,
        "step_ms_min": 1e3 * min(seconds),
        "step_ms_max": 1e3 * max(seconds),
        **{k.removeprefix("perf/"): v for k, v in rates.items() if "mfu" in k},
        **facts,
        "peak_bytes": peak_bytes(),
        "parameters": parameter_count(config.model),
        "device": jax.devices()[0].device_kind,
        "device_count": jax.device_count(),
        "jax": jax.__version__,
        "python": platform.python_version(),
    }


def parse(argv: list[str]) -> tuple[TrainConfig, argparse.Namespace]:
    """The experiment and the other options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="stories-42m", choices=sorted(PRESETS))
    parser.add_argument("--shape", nargs="*", default=[], metavar="FIELD=VALUE",
                        help="model fields that differ from the preset's")  # fmt: skip
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--remat", default="none")
    parser.add_argument("--tied", action="store_true", help="the embedding is the head as well")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    args = parser.parse_args(argv)
    shape = dict(item.partition("=")[::2] for item in args.shape)
    kinds = {k: type(v) for k, v in vars(PRESETS[args.preset]).items()}
    try:
        model = replace(
            PRESETS[args.preset],
            dtype=args.dtype,
            remat=args.remat,
            tie_embeddings=args.tied,
            **{k: kinds[k](v) for k, v in shape.items()},
        )
        if args.seq_len > model.max_seq_len:
            model = replace(model, max_seq_len=args.seq_len)
        return experiment(model, args.batch_size, args.seq_len), args
    except (InputError, ValueError) as error:
        parser.error(str(error))
    except KeyError as error:
        parser.error(f"--shape: a model has no field {error}")


def main(argv: list[str]) -> None:
    config, args = parse(argv)
    results = measure(config, args.steps)
    if args.json:
        print(json.dumps(results))
        return
    for name, value in results.items():
        shown = f"{value:,.4g}" if isinstance(value, float) else f"{value}"
        print(f"{name:26s}{shown:>20}")


if __name__ == "__main__":
    main(sys.argv[1:])
