"""Options that several commands of `llama-jax` share."""

import argparse


def add_model(parser: argparse.ArgumentParser) -> None:
    """Adds MODEL, the first argument."""
    parser.add_argument("model", metavar="MODEL", help="a model in any format, or a run folder")


def add_text_field(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    """Adds `--text-field`, and `--data.text-field`, which is its name in error messages."""
    parser.add_argument(
        "--text-field",
        "--data.text-field",
        default=default,
        metavar="NAME",
        help=f"field of JSON records that holds the text ({default or "the run's own, or text"})",
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """Adds `--json`, for other programs."""
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
