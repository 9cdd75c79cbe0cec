"""The training commands: an experiment file, hosts, one stage of training, a summary."""

import argparse
import contextlib
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from llama_jax.config import load_experiment
from llama_jax.runtime.console import stdout_for_results
from llama_jax.runtime.malloc import keep_freed_memory

HOSTS = """\
on several hosts, where it is not Cloud TPU, GKE, Slurm or Open MPI that says so:
  --coordinator-address HOST:PORT   of host 0
  --num-processes N --process-id I  how many hosts there are, and which this one is
  --heartbeat-seconds S             all end when one has been silent for so long (100)"""

STAGES = {
    "train": ("llama_jax.pretrain", "pretrain"),
}
"""Module and function of each command; the function takes the experiment."""


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
    if {"-h", "--help"} & set(arguments):
        try:
            load_experiment(arguments, f"llama-jax {command}")
        except SystemExit:
            print(HOSTS)
            raise
    from llama_jax.runtime import hosts

    module, function = STAGES[command]
    stage: Callable[[Any], Any] = getattr(import_module(module), function)
    hosts.initialize(**vars(options))
    with hosts.fail_together():
        config = load_experiment(arguments, f"llama-jax {command}")
    several = hosts.jax.distributed.is_initialized()
    with stdout_for_results() if several else contextlib.nullcontext():
        summary = stage(config)
    if hosts.is_main():
        print_summary(summary, command)


def print_summary(s: Any, command: str) -> None:
    """How a run of the loop ended, where its files lie, and what to type next."""
    run = s.workdir if "://" in s.workdir else os.path.relpath(s.workdir)
    run = s.workdir if run.startswith("..") else run
    state = "complete" if s.step == s.steps else "stopped early; the same command resumes"
    if s.resumed_from == s.steps:
        state = "was complete already; a larger --steps takes it further"
    if s.samples:
        from etils import epath

        print(epath.Path(s.samples).read_text())
    print(f"step {s.step} of {s.steps}: {state}")
    if s.loss is not None:
        print(f"  training loss    {s.loss:.4f} nats{' per token' * (command != 'reward')}")
    if s.evaluation is not None:
        said = [f"{k.replace('_', ' ')} {v:.4f}" for k, v in s.evaluation.items()]
        print(f"  validation       {', '.join(said)}")
    print(f"  time             {sum(s.seconds.values()):.0f} s, {100 * s.goodput:.0f} % in steps")
    print(f"  run folder       {run}: checkpoints, metrics, tensorboard")
    if s.samples:
        print(f"  samples          {os.path.join(run, 'samples', os.path.basename(s.samples))}")
    if s.picture:
        print(f"  loss curve       {os.path.join(run, 'loss.svg')} (open it in a browser)")
    program = "llama-jax" if shutil.which("llama-jax") else os.path.relpath(sys.argv[0])
    print("next:")
    for line in NEXT[command]:
        print(f"  {program} {line.format(run=run)}")


NEXT = {
    "train": ('generate {run} --prompt "Once upon a time" --temperature 0.7', "eval {run}",
              "train --help"),
}  # fmt: skip
"""What to type after each command."""
