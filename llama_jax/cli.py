"""`llama-jax COMMAND`: parses, calls one function, prints.

Results go to stdout and nothing else does; logs and progress go to stderr. Exit status 0, or 2 with
one line for bad input, or 1 with one line for a failure. Everything heavy is imported by the
command that needs it, so that `--help` answers at once.
"""

import argparse
import difflib
import itertools
import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from llama_jax import __version__, cli_eval, cli_experiments, cli_models, cli_serve, cli_train
from llama_jax.cli_options import add_json, add_model, add_text_field
from llama_jax.config import InputError
from llama_jax.runtime import environment, failures, interrupts
from llama_jax.runtime.console import at_work, quiet_start, waiting
from llama_jax.runtime.places import naming
from llama_jax.tpu import kernel_table

EXAMPLES = """\
examples:
  llama-jax experiments                                       what comes with the project
  llama-jax train python_docs_cpu --workdir runs/docs
  llama-jax train python_docs_cpu --help                      every setting of an experiment
  llama-jax new mine                                          an experiment of your own
  llama-jax generate runs/docs --prompt "The" --temperature 0
  llama-jax eval runs/docs
  llama-jax sft chat/sft                                      conversations, on a pretrained model
  llama-jax chat runs/chat/gatt                               after make chat
  llama-jax serve runs/docs                                   OpenAI's API, and a page
  llama-jax verify runs/docs
  llama-jax plan --model llama2-7b --topology v5e-256         no TPU needed
  llama-jax convert Llama-2-7b-hf/ llama2-7b/                 from Hugging Face and others
  llama-jax quantize runs/docs runs/docs-int8 --weights int8
  llama-jax tokenizer train --input books/ --vocab-size 8000 --output tokenizer/
"""


class _Parser(argparse.ArgumentParser):
    """argparse, with errors on one line."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see {self.prog} --help)")


class _Command(_Parser):
    """One command's options: a misspelt one is named before what is missing because of it."""

    def parse_known_args(self, args=None, namespace=None):
        known = self._option_string_actions
        options = [] if self._subparsers else [str(argument) for argument in args or ()]
        for option in itertools.takewhile("--".__ne__, options):
            name = option.partition("=")[0]
            if name.startswith("--") and " " not in option and name not in known:
                words = [k[2:] for k in known if k.startswith("--")]  # all share the dashes
                near = difflib.get_close_matches(name[2:], words, n=1)
                self.error(f"{name} is unknown" + "".join(f"; did you mean --{n}?" for n in near))
        return super().parse_known_args(args, namespace)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="llama-jax",
        description="Llama 2 in JAX: train, generate, evaluate.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(
        dest="command", metavar="COMMAND", required=True, parser_class=_Command
    )

    def command(name: str, run: Callable[..., int | None], help: str, **kwargs: Any):
        sub = commands.add_parser(name, help=help, description=help, allow_abbrev=False, **kwargs)
        sub.set_defaults(run=run)
        return sub

    for name, what in cli_train.HELP.items():
        commands.add_parser(name, help=what)

    cli_experiments.add_commands(command)

    sub = command(
        "generate", _generate, "continue a prompt; prints the prompt and its continuation"
    )
    add_model(sub)
    sub.add_argument(
        "--prompt",
        required=True,
        metavar="TEXT",
        help='the text to continue; "" starts from BOS alone',
    )
    _add_sampling(sub, max_new_tokens=256, temperature=1.0, top_p=1.0)
    add_json(sub)

    sub = command("chat", _chat, "talk to a model that was trained on conversations")
    add_model(sub)
    sub.add_argument("--system", default="", metavar="TEXT", help="system prompt (none)")
    _add_sampling(sub, max_new_tokens=256, temperature=0.7, top_p=0.95)
    add_json(sub)

    sub = command(
        "serve",
        cli_serve.run,
        "OpenAI's API over HTTP, and a page to talk to the model",
        epilog=cli_serve.HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model(sub)
    cli_serve.add_options(sub)

    sub = command(
        "eval",
        _eval,
        "loss, perplexity and bits per byte on the validation split; or benchmark tasks",
        epilog=cli_eval.TASKS_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    cli_eval.add_options(sub)
    add_text_field(sub)

    sub = command("report", cli_eval.report, "write a page about a run, in its folder")
    sub.add_argument("run_folder", metavar="RUN", help="a run folder")

    cli_models.add_commands(command)

    sub = command(
        "kernels",
        _kernels,
        "how a TPU schedules the attention kernels; needs no TPU",
        epilog=kernel_table.HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sub.add_argument(
        "--topology",
        default="v5e",
        metavar="T",
        help="v4, v5e, v5p, v6e or tpu7x, or a slice (v5e)",
    )
    add_json(sub)

    commands.add_parser(
        "plan", help="predict memory and speed of a run on a TPU slice; needs no TPU"
    )

    sub = command("data", _data, "look at conversations before training on them")
    actions = sub.add_subparsers(dest="action", metavar="ACTION", required=True)
    sub = actions.add_parser(
        "show",
        help="conversations with the trained tokens marked, and what was dropped",
        allow_abbrev=False,
    )
    sub.add_argument("file", metavar="FILE", help="a data file or a folder of them")
    sub.add_argument("--format", metavar="F", help="such as alpaca or hh-rlhf (detected)")
    sub.add_argument(
        "--kind",
        choices=["dialogue", "preference", "prompt"],
        help="kind of record to read each row as (the richest that fits)",
    )
    sub.add_argument(
        "--tokenizer",
        metavar="PATH",
        help="count tokens with this tokenizer.model, or with that of a model or run",
    )
    sub.add_argument("--limit", type=int, default=10, metavar="N", help="records to show (10)")
    sub.add_argument("--html", metavar="OUT", help="write them to an HTML page instead")

    sub = command("tokenizer", _tokenizer, "train a sentencepiece tokenizer as the paper did")
    actions = sub.add_subparsers(dest="action", metavar="ACTION", required=True)
    sub = actions.add_parser(
        "train", help="train a BPE model with byte fallback and split digits", allow_abbrev=False
    )
    sub.add_argument(
        "--input",
        nargs="+",
        required=True,
        metavar="PATH",
        help="text or jsonl files, folders of them, tales or python_docs",
    )
    sub.add_argument("--vocab-size", type=int, required=True, metavar="N", help="number of pieces")
    sub.add_argument("--output", required=True, metavar="DIR", help="folder for tokenizer.model")
    add_text_field(sub, default="text")
    return parser


def _add_sampling(
    parser: argparse.ArgumentParser, *, max_new_tokens: int, temperature: float, top_p: float
) -> None:
    """The settings of `SamplingParams`, and the seed."""

    def option(name: str, kind: type, default: int | float, metavar: str, help: str) -> None:
        help = f"{help} ({default:g})"
        parser.add_argument(name, type=kind, default=default, metavar=metavar, help=help)

    option("--max-new-tokens", int, max_new_tokens, "N", "stop after this many new tokens")
    option("--temperature", float, temperature, "T", "0 always takes the most likely token")
    option("--top-k", int, 0, "K", "sample from the K most likely tokens; 0 turns this off")
    option(
        "--top-p",
        float,
        top_p,
        "P",
        "sample from the likeliest tokens that sum to P; 1 turns this off",
    )
    option("--seed", int, 0, "S", "seed of the random draws")


def _sampling(args: argparse.Namespace) -> Any:
    from llama_jax.infer.sampling_params import SamplingParams

    names = ("max_new_tokens", "temperature", "top_k", "top_p")
    return SamplingParams(**{name: getattr(args, name) for name in names})


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status. Without `argv` the process belongs to this
    command."""
    quiet_start()
    if argv is None:
        environment.settle()
    try:
        status = _run(list(sys.argv[1:] if argv is None else argv))
    except Exception:
        if not failures.hosts():
            raise
        traceback.print_exc()
        status = 1
    if status == 1 and (hosts := failures.hosts()):
        hosts.leave(status)
    if argv is None and interrupts.received():
        interrupts.leave(status)
    return status


def _run(arguments: list[str]) -> int:
    """Run one command; what the user or the machine is to blame for becomes one line."""
    command = arguments[0] if arguments else ""
    try:
        if command in cli_train.STAGES:
            # Their options are the experiment's, which argparse does not know.
            cli_train.run(command, arguments[1:], _Parser)
            return 0
        if command == "plan":
            return _plan(arguments[1:])
        args = _parser().parse_args(arguments)
        return args.run(args) or 0
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (Exception, KeyboardInterrupt) as error:
        failure = failures.explain(error, command, trains=command in cli_train.STAGES)
        if failure is None:
            raise
    print(f"llama-jax: error: {' '.join(failure.line.split())}", file=sys.stderr)
    return failure.status


def _plan(arguments: Sequence[str]) -> int:
    from llama_jax.tpu import topology

    for option, name in itertools.pairwise(arguments):
        if option == "--topology":
            topology.parse(name)  # before jax is imported
    from llama_jax.tpu.command import run

    print(run(arguments, _Parser))
    return 0


def _generate(args: argparse.Namespace) -> None:
    sampling = _sampling(args)
    with at_work(f"loading {args.model}", args.model):
        from llama_jax.infer.api import stream
        from llama_jax.models import open_model

        model = open_model(args.model).generator()
        pieces = stream(model, args.prompt, sampling, seed=args.seed)
        first = next(pieces)
    if args.json:
        print(json.dumps({"prompt": args.prompt, "text": first + "".join(pieces)}))
        return
    for piece in itertools.chain([first], pieces):
        print(piece, end="", flush=True)
    print()


def _chat(args: argparse.Namespace) -> None:
    sampling = _sampling(args)
    with at_work(f"loading {args.model}", args.model):
        from llama_jax import chat_terminal
        from llama_jax.models import open_model

        model = open_model(args.model).generator()
    settings = chat_terminal.Settings(sampling, args.system, args.seed, args.json)
    chat_terminal.run(model, settings)


def _eval(args: argparse.Namespace) -> None:
    cli_eval.check(args)
    with at_work(f"loading {args.models[0]}", *args.models) as end:
        values, text = cli_eval.run(args, end)
    cli_eval.show(args, values, text)


def _kernels(args: argparse.Namespace) -> int:
    rows, failures = kernel_table.report(args.topology)
    print(json.dumps({"kernels": rows}) if args.json else kernel_table.table(rows))
    for failure in failures:
        print(f"llama-jax: {failure}", file=sys.stderr)
    return 1 if failures else 0


def _data(args: argparse.Namespace) -> None:
    from llama_jax.data import show
    from llama_jax.data.tokenizer import Tokenizer
    from llama_jax.runtime.files import write_atomic

    tokenizer = Tokenizer.load(args.tokenizer) if args.tokenizer else None
    shown = show.show(
        args.file, format=args.format, kind=args.kind, tokenizer=tokenizer, limit=args.limit
    )
    if args.html:
        records = list(shown)
        write_atomic(args.html, show.page(args.file, records, shown.summary()).encode())
    else:
        for record in shown:
            print(show.terminal(record, show.wants_colour(sys.stdout.isatty())))
    print("\n".join(shown.summary()))
    if args.html:
        print(f"{len(records)} of them in {args.html} (open it in a browser)")
    if tokenizer is None:
        print("--tokenizer PATH (of a model, a run or a tokenizer.model) counts tokens too",
              file=sys.stderr)  # fmt: skip


def _tokenizer(args: argparse.Namespace) -> None:
    from llama_jax.data.prepare import train_tokenizer_on

    with waiting("training the tokenizer"), naming(args.output):
        tokenizer = train_tokenizer_on(
            args.input, args.vocab_size, args.output, text_field=args.text_field
        )
    print(f"{tokenizer.vocab_size} pieces in {os.path.join(args.output, 'tokenizer.model')}")
