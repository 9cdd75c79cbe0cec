"""Rows as files, and records as short text, for the tests of formats."""

import json

from llama_jax.data import formats
from llama_jax.data.records import Dialogue


def write(folder, rows, name="data.jsonl"):
    """A file of one JSON object a line."""
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(folder, rows, kind, format=None):
    """The reading of a new file of these rows, and its records."""
    reading = formats.open_records(write(folder, rows), kind, format)
    return reading, list(reading)


def chat(*texts, system=None):
    """Messages from texts of user and assistant in turn."""
    said = [] if system is None else [{"role": "system", "content": system}]
    for i, text in enumerate(texts):
        said.append({"role": ("user", "assistant")[i % 2], "content": text})
    return tuple(said)


def dialogue(*texts, source="", system=None):
    return Dialogue(messages=chat(*texts, system=system), source=source)


def counts(tallies):
    """Reason to (how often, first row)."""
    return {reason: (tally.count, tally.row) for reason, tally in tallies.items()}
