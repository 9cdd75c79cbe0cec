"""The table of formats: how each is recognised, read and written. A new format is one row.

To add one, write a module with

- `is_format(path)`: whether the files at `path` are of this format. It reads names and first bytes
  only, and raises nothing.
- `read(path, named) -> Source`: checks every name, size, offset, type and shape against the
  configuration before anything is allocated, raises InputError (one line) for whatever does not
  fit, and maps the tensors (see source.py). Nothing of the file is trusted, and nothing is ever
  unpickled. `named` is the tokenizer to take (usage.py); the source's own is read for "own" alone.
  What can be taken with something left out, changed or assumed is taken, and a note says so.
- `write(source, folder, name, variant)`: puts all files of the result into `folder`, which is
  new, empty and temporary. It asks `source` for tensors in the order that suits the format, one at
  a time, so that no more than a tensor is in memory; `source` has the type to write already. What
  the format cannot express is an InputError, before the first byte is written. `name` is the name
  of the result: that of the main file if the format is a file, else of nothing. It may return
  sentences for the report: what was permuted or rounded.

and add its row below. Progress, casts, digests, the proof, and the renaming that makes a result
appear whole or not at all are the business of api.py, the same for every format.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from llama_jax.config import InputError
from llama_jax.convert import (
    gguf,
    gguf_writer,
    hf,
    llama2c,
    meta,
    model_card,
    native,
    unrecognised,
)
from llama_jax.convert.source import Source
from llama_jax.convert.usage import Named


class Format(NamedTuple):
    """One row: a format that can be read, written, or both."""

    title: str
    """Its name for people."""
    is_format: Callable[[Path], bool]
    read: Callable[[Path, Named], Source]
    write: Callable[[Source, Path, str, str], Sequence[str] | None]
    dtypes: tuple[str, ...] = ("float32", "bfloat16", "float16")
    """Dtypes that tensors can be written in."""
    variants: tuple[str, ...] = ("",)
    """Suffixes of the name, as in `--to llama2c:2`; the first is the default."""
    is_file: bool = False
    """Whether the result is a file (with others beside it, perhaps) and not a folder."""
    card: Callable[[Source, Path, Mapping[str, Any]], None] | None = None
    """Writes a description for people into the result's folder: called with the report, after the
    proof."""


FORMATS: dict[str, Format] = {
    "native": Format("a model folder or run folder", native.is_format, native.read, native.write),
    "hf": Format("a Hugging Face folder", hf.is_format, hf.read, hf.write, card=model_card.write),
    "meta": Format("a Meta folder", meta.is_format, meta.read, meta.write),
    "gguf": Format(
        "a GGUF file",
        gguf.is_format,
        gguf.read,
        gguf_writer.write,
        variants=gguf_writer.VARIANTS,
        is_file=True,
    ),
    "llama2c": Format(
        "a llama2.c .bin file",
        llama2c.is_format,
        llama2c.read,
        llama2c.write,
        dtypes=("float32",),
        variants=llama2c.VERSIONS,
        is_file=True,
    ),
}


def detect(path: Path) -> str:
    """Name of the format at `path`: the first row that recognises it.

    Raises InputError if nothing exists there, or no known format.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist")
    for name, row in FORMATS.items():
        if row.is_format(path):
            return name
    known = ", ".join(row.title for row in FORMATS.values())
    reason = unrecognised.reason(path)
    raise InputError(reason or f"{path} is in no known format: {known}")
