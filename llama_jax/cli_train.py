"""The training commands: load an experiment, join hosts, run one stage, print a summary."""

import argparse
import contextlib
import os
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from typing import Any

from llama_jax.config import TrainConfig
from llama_jax.config_align import (
    DistillConfig,
    DpoConfig,
    GattConfig,
    GrpoConfig,
    PpoConfig,
    RejectionConfig,
    RewardConfig,
    SftConfig,
)
from llama_jax.experiment import load_experiment
from llama_jax.runtime import cluster
from llama_jax.runtime.console import own_command, stdout_for_results
from llama_jax.runtime.environment import require_jit
from llama_jax.runtime.malloc import keep_freed_memory

HOSTS = """\
on several hosts, unless Cloud TPU, GKE, Slurm or Open MPI is detected:
  --coordinator-address HOST:PORT   of host 0
  --num-processes N --process-id I  number of hosts, and the number of this one
  --heartbeat-seconds S             all hosts end when one is silent for this long (100)"""

STAGES: dict[str, tuple[type[TrainConfig], str, str]] = {
    "train": (TrainConfig, "llama_jax.pretrain", "pretrain"),
    "sft": (SftConfig, "llama_jax.align.sft", "sft"),
    "reward": (RewardConfig, "llama_jax.align.reward", "reward"),
    "dpo": (DpoConfig, "llama_jax.align.dpo", "dpo"),
    "rejection": (RejectionConfig, "llama_jax.align.rejection", "rejection"),
    "ppo": (PpoConfig, "llama_jax.align.ppo", "ppo"),
    "grpo": (GrpoConfig, "llama_jax.align.grpo", "grpo"),
    "gatt": (GattConfig, "llama_jax.align.ghost_attention", "gatt"),
    "distill-context": (DistillConfig, "llama_jax.align.distill_context", "distill_context"),
}
"""Experiment, module and function of each command; the function takes the experiment."""


ASKED = ("train", "sft", "dpo")
"""Commands that can evaluate benchmark tasks during training."""
HELP = {
    "train": "pretrain a model, or resume: run the same command again",
    "sft": "fine-tune on the answers of conversations",
    "reward": "train a reward model on pairs of answers",
    "dpo": "learn from pairs of answers, without a reward model",
    "rejection": "sample answers, fine-tune on the best, in rounds",
    "ppo": "reinforcement learning from reward models",
    "grpo": "reinforcement learning from reward models or a function, without a value model",
    "gatt": "ghost attention: an instruction that holds for a whole conversation",
    "distill-context": "learn without a preprompt the safer answers given under one",
}
"""What each command does; all resume when run again."""


def run(command: str, arguments: Sequence[str], parser_class: type) -> None:
    """Run a stage and print its summary.

    Raises InputError for options and experiments that cannot be used.
    """
    keep_freed_memory()  # before anything imports jax
    parser = parser_class(prog=f"llama-jax {command}", add_help=False, allow_abbrev=False)
    parser.add_argument("--coordinator-address")
    for name in ("--num-processes", "--process-id", "--heartbeat-seconds"):
        parser.add_argument(name, type=int, default=argparse.SUPPRESS)
    options, arguments = parser.parse_known_args(list(arguments))
    kind, module, function = STAGES[command]
    if {"-h", "--help"} & set(arguments):
        try:
            load_experiment(arguments, f"llama-jax {command}", kind)
        except SystemExit:
            print(HOSTS)
            raise
    require_jit(command)
    load = partial(load_experiment, arguments, f"llama-jax {command}", kind)
    alone = cluster.place(options.coordinator_address, *_numbers(options)) is None
    early = load() if alone else None  # refused before seconds go into libraries
    from llama_jax.runtime import hosts

    stage: Callable[[Any], Any] = getattr(import_module(module), function)
    hosts.initialize(**vars(options))
    with hosts.fail_together():
        config = early or load()
        asks = _asks(command, config)
    several = hosts.jax.distributed.is_initialized()
    with stdout_for_results() if several else contextlib.nullcontext():
        summary = stage(config, **asks)
    if hosts.is_main():
        print_summary(summary, command)


def _asks(command: str, config: TrainConfig) -> dict[str, Any]:
    """What a stage is given beside its experiment."""
    if not config.eval_tasks or command not in ASKED:
        return {}
    from llama_jax.evals.in_training import asker

    return {"ask": asker(config)}


def _numbers(options: argparse.Namespace) -> tuple[int | None, int | None]:
    return getattr(options, "num_processes", None), getattr(options, "process_id", None)


def print_summary(summary: Any, command: str) -> None:
    """Print the outcome of a run, where its files are, and the next command."""
    run = summary.workdir
    if "://" not in run and not os.path.relpath(run).startswith(".."):
        run = os.path.relpath(run)
    samples, picture = getattr(summary, "samples", None), getattr(summary, "picture", None)
    if samples:
        from etils import epath

        print(epath.Path(samples).read_text())
    for line in summary.lines():
        print(line)
    print(f"  run folder       {run}: checkpoints, metrics, tensorboard")
    if samples:
        print(f"  samples          {os.path.join(run, 'samples', os.path.basename(samples))}")
    if picture:
        print(f"  loss curve       {os.path.join(run, 'loss.svg')} (open it in a browser)")
    program = own_command()
    print("next:")
    for line in NEXT.get(command, CHAT):
        print(f"  {program} {line.format(run=run)}")


CHAT = ("chat {run}",)
NEXT = {
    "train": (
        'generate {run} --prompt "Once upon a time" --temperature 0.7',
        "report {run}",
        "eval {run}",
        "train --help",
    ),
    "reward": ("rejection --help", "ppo --help"),
}
"""The next command after each command; for the others, one to talk to the model."""
