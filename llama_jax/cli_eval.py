"""`llama-jax eval`: loss on text, or benchmark tasks put to one or several models."""

import argparse
import contextlib
import logging
from collections.abc import Callable
from typing import Any

from llama_jax.config import require
from llama_jax.runtime.console import Progress, at_work
from llama_jax.runtime.files import json_text, write_atomic
from llama_jax.runtime.places import cache_folder, naming

TASKS_HELP = """\
benchmark tasks:
  --tasks arc_easy,gsm8k --task-data DIR   rows from DIR, or from Hugging Face's `datasets`
  --tasks mine.toml                        your own; llama_jax/evals/task.py describes the fields
Questions that do not fit the model's context are counted, reported and left out. Answers are
stored: run the same command again to resume.

win rate of two models:
  llama-jax eval A B --judge rules --prompts tales:200         the rules of the embedded tales
  llama-jax eval A B --judge REWARD_MODEL --prompts my.jsonl   a reward model that trained neither
  llama-jax eval A B --judge https://HOST/v1 --judge-model NAME --prompts my.jsonl
The key of an endpoint comes from OPENAI_API_KEY, or from the file of --judge-key.
"""
_ANSWERS = "~/.cache/llama_jax/evals"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command, its models included."""
    parser.add_argument(
        "models", metavar="MODEL", nargs="*", help="a model in any format, or a run folder"
    )
    parser.add_argument(
        "--data",
        metavar="DATASET",
        help="tales, python_docs, a file, a folder, tfds:NAME, hf:NAME (the run's own)",
    )
    parser.add_argument("--batch-size", type=int, default=8, metavar="B", help="rows at a time (8)")
    parser.add_argument("--seq-len", type=int, metavar="T", help="tokens in a row (the run's own)")
    parser.add_argument("--tasks", metavar="NAME,FILE", help="benchmark tasks instead of a loss")
    parser.add_argument("--task-data", metavar="DIR", help="the folder of the tasks' data")
    parser.add_argument(
        "--limit", type=int, metavar="N", help="the first N questions of a task or group"
    )
    parser.add_argument(
        "--run-code",
        action="store_true",
        help="run the programs that a model writes: in processes with limits, which are no sandbox",
    )
    parser.add_argument(
        "--judge", metavar="JUDGE", help="win rate of two models: rules, a reward model or a URL"
    )
    parser.add_argument(
        "--prompts", metavar="FILE", help="prompts to answer: a file, tales, tales:N"
    )
    parser.add_argument("--judge-model", metavar="NAME", help="the model at the URL")
    parser.add_argument("--judge-key", metavar="FILE", help="a file with the key for the URL")
    parser.add_argument(
        "--answers", metavar="DIR", default=_ANSWERS, help=f"stores answers ({_ANSWERS})"
    )
    parser.add_argument(
        "--json",
        nargs="?",
        const="-",
        metavar="FILE",
        help="print one JSON object instead of text, or write it to FILE beside the text",
    )


def report(args: argparse.Namespace) -> None:
    """Write RUN/report.html and print its path."""
    with at_work(f"looking at {args.run_folder}", args.run_folder):
        from llama_jax.evals.run_report import write_report

        path = write_report(args.run_folder)
    print(f"report   {path} (open it in a browser)")


def check(args: argparse.Namespace) -> None:
    """Raise InputError for options that do not go together."""
    require(
        args.models,
        f"--json {args.json} took the next word as its FILE: name the model first"
        if args.json not in (None, "-")
        else "the following arguments are required: MODEL (see llama-jax eval --help)",
    )
    mode = "--judge" if args.judge else "--tasks" if args.tasks is not None else ""
    for name, modes in _BELONGS.items():
        value = getattr(args, name)
        given = value is not None and value is not False
        wanted = " or ".join(filter(None, modes)) or "a loss"
        require(
            not given or mode in modes,
            f"--{name.replace('_', '-')} belongs to {wanted}, "
            + (f"not to {mode}" if mode else "which is not given"),
        )
    if not mode:
        require(
            len(args.models) == 1,
            "several models are compared by --tasks or --judge, and neither is given",
        )
    if mode == "--judge":
        require(
            len(args.models) == 2 and args.models[0] != args.models[1],
            f"--judge compares two models, not {' '.join(args.models)}",
        )
        require(args.prompts, "--judge needs prompts to answer: --prompts FILE or tales")


_BELONGS = {
    "data": ("",), "seq_len": ("",), "text_field": ("",),
    "tasks": ("--tasks",), "task_data": ("--tasks",), "run_code": ("--tasks",),
    "limit": ("--tasks", "--judge"),
    "prompts": ("--judge",), "judge_model": ("--judge",), "judge_key": ("--judge",),
}  # fmt: skip
"""Options, and what they go with; empty for the loss."""


def run(args: argparse.Namespace, end: Callable[[], None]) -> tuple[dict[str, Any], str]:
    """Returns the value for --json, and the text for people. `end` is called before progress is
    shown."""
    if args.judge:
        return _versus(args, end)
    return _tasks(args, end) if args.tasks is not None else _loss(args, end)


def show(args: argparse.Namespace, values: dict[str, Any], text: str) -> None:
    """Print the result, and write it to the file of --json."""
    if args.json == "-":
        print(json_text(values))
        return
    if args.json is not None:
        with naming(args.json):
            write_atomic(args.json, json_text(values, indent=2).encode() + b"\n")
    print(text)


def _loss(args: argparse.Namespace, end: Callable[[], None]) -> tuple[dict[str, Any], str]:
    from llama_jax.pretrain import evaluate_model

    with Progress("eval", end) as beat:
        result = evaluate_model(
            args.models[0], dataset=args.data, batch_size=args.batch_size, seq_len=args.seq_len,
            text_field=args.text_field, beat=beat,
        )  # fmt: skip
    values = {
        "loss": result.loss,
        "perplexity": result.perplexity,
        "bits_per_byte": result.bits_per_byte,
        "targets": result.targets,
        "bytes": result.bytes,
    }
    return values, "\n".join(
        (
            f"loss           {result.loss:.4f} nats per token",
            f"perplexity     {result.perplexity:.3f}",
            f"bits per byte  {result.bits_per_byte:.4f}",
            f"on             {result.targets:,} tokens, {result.bytes:,} bytes of text",
        )
    )


def _tasks(args: argparse.Namespace, end: Callable[[], None]) -> tuple[dict[str, Any], str]:
    from llama_jax.evals.evaluate import evaluate_tasks
    from llama_jax.evals.table import table

    if args.run_code:
        logging.getLogger(__name__).warning(
            "--run-code: programs that the model writes run on this machine, each in a process "
            "with limits of time, memory and file size; that is no sandbox"
        )
    with contextlib.ExitStack() as bars:

        def begin(model: str, task: str) -> Callable[[int, int], None]:
            bars.close()
            return bars.enter_context(Progress(f"{task}, {model}", end, "questions"))

        found = evaluate_tasks(
            args.models, args.tasks, data=args.task_data or "", limit=args.limit,
            rows=args.batch_size, run_programs=args.run_code, answers=args.answers, begin=begin,
        )  # fmt: skip
    values = [
        {"model": of.model, "digest": of.digest, "tasks": [r.to_json() for r in of.results]}
        for of in found
    ]
    return {"models": values}, table(found)


def _versus(args: argparse.Namespace, end: Callable[[], None]) -> tuple[dict[str, Any], str]:
    from llama_jax.evals.endpoint import Endpoint, read_key
    from llama_jax.evals.versus import read_prompts, versus

    require(args.limit is None or args.limit > 0, f"--limit {args.limit} must be positive")
    judge = args.judge
    if "://" in judge and not judge.startswith("gs://"):
        judge = Endpoint(judge, args.judge_model or "", read_key(args.judge_key))
    else:
        for name in ("judge_model", "judge_key"):
            option = "--" + name.replace("_", "-")
            require(not getattr(args, name), f"{option} belongs to a --judge that is a URL")
    prompts = read_prompts(args.prompts, args.limit)
    folder = cache_folder(args.answers, "--answers")
    with Progress("verdicts", end, "verdicts") as beat:
        found = versus(
            (args.models[0], args.models[1]), prompts, judge, folder=folder, rows=args.batch_size,
            beat=beat,
        )  # fmt: skip
    return found.to_json(), found.describe()
