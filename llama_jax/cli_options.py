"""Options that several commands of `llama-jax` share."""

import argparse


def add_model(parser: argparse.ArgumentParser) -> None:
    """MODEL, first."""
    parser.add_argument("model", metavar="MODEL", help="a model in any format, or a run folder")


def add_text_field(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    """`--data.text-field`, as messages name it, and shorter."""
    parser.add_argument(
        "--text-field",
        "--data.text-field",
        default=default,
        metavar="NAME",
        help=f"field of JSON records that holds the text ({default or "the run's own, or text"})",
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """`--json`, for programs."""
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
