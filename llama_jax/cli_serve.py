"""Options of `llama-jax serve`, and the server settings that they make."""

import argparse
import os

from llama_jax.runtime import interrupts
from llama_jax.runtime.console import at_work

HELP = """\
examples:
  llama-jax serve runs/quickstart                  then open http://127.0.0.1:8000
  llama-jax serve MODEL --adapter poems=runs/poems --adapter mail=runs/mail
  llama-jax serve MODEL --tensor 8                 on all chips of a v5e-8
  llama-jax serve MODEL --host 0.0.0.0 --api-key-file keys.txt
  curl http://127.0.0.1:8000/v1/completions -H 'Content-Type: application/json' \\
    -d '{"model": "quickstart", "prompt": "Once upon a time", "max_tokens": 50}'

It speaks OpenAI's API (/v1/completions, /v1/chat/completions, /v1/models), and /tokenize,
/detokenize, /health, /ready and /metrics. Ctrl-C or SIGTERM finishes running requests, then stops.
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares all options but MODEL."""

    def option(name: str, kind: type, default: object, metavar: str, help: str) -> None:
        parser.add_argument(name, type=kind, default=default, metavar=metavar, help=help)

    option("--host", str, "127.0.0.1", "ADDRESS", "where to listen (127.0.0.1: this machine alone)")
    option("--port", int, 8000, "P", "0 picks a free one (8000)")
    option("--name", str, None, "NAME", "what requests call the model (its folder's name)")
    parser.add_argument(
        "--adapter",
        action="append",
        default=[],
        type=_adapter,
        metavar="NAME=RUN",
        help="a run of --lora.rank on MODEL, or a PEFT folder; requests name it (may be repeated)",
    )
    option(
        "--api-key-file", str, None, "FILE", "accepted API keys, one a line (no key is asked for)"
    )
    option("--tensor", int, 1, "N", "devices that the model is split over (1; -1: all there are)")
    option("--rows", int, 8, "N", "answers generated at the same time (8)")
    option("--queue", int, 64, "N", "answers that may wait for a row (64)")
    option("--speculate", int, None, "N", "tokens guessed while rows idle (0; 4 with --draft)")
    option("--draft", str, None, "MODEL", "a small model that guesses them (the text itself)")
    option("--context", int, None, "T", "tokens of a prompt and its answer (the model's own)")
    option(
        "--cache-gib",
        float,
        None,
        "G",
        "memory for the key/value cache (a quarter of what is free)",
    )
    parser.add_argument("--kv", choices=["int8"], help="hold the key/value cache in 8 bits (off)")
    option("--deadline", float, 600.0, "S", "seconds that a request may take (600)")
    option("--drain", float, 30.0, "S", "seconds that running answers get at shutdown (30)")


def _adapter(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=RUN, such as poems=runs/poems")
    return name, path


def run(args: argparse.Namespace) -> int:
    """Serve until a signal ends it. Raises InputError for invalid settings."""
    with at_work(f"opening {args.model}", args.model):
        from llama_jax.serve.command import serve
        from llama_jax.serve.settings import Settings, read_keys

        settings = Settings(
            host=args.host,
            port=args.port,
            name=args.name or os.path.basename(os.path.normpath(args.model)),
            keys=() if args.api_key_file is None else read_keys(args.api_key_file),
            adapters=tuple(args.adapter),
            tensor=args.tensor,
            rows=args.rows,
            queue=args.queue,
            drafts=args.speculate if args.speculate is not None else 4 * (args.draft is not None),
            draft=args.draft,
            context=args.context,
            cache_gib=args.cache_gib,
            kv=args.kv,
            deadline_seconds=args.deadline,
            drain_seconds=args.drain,
        )
    status = serve(args.model, settings)
    # A model that still loads, or a device at work, would keep the process or break its end.
    interrupts.leave(status)
    return status
