"""`convert`: one model from one format into another, streamed, checked, with a written proof.

    read (validate, map) -> cast -> digest -> write under a temporary name -> read back, digest
    again -> logits of both -> report -> rename

The result appears under its name complete, report included, or not at all: what an interrupted
conversion leaves is named `.tmp` and is removed by the next one.
"""

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from etils import epath
from tqdm import tqdm

from llama_jax import __version__
from llama_jax.checkpoint import storage
from llama_jax.config import InputError, require
from llama_jax.convert import proof
from llama_jax.convert.formats import FORMATS, Format, detect
from llama_jax.convert.llama2c_tokenizer import read_tokenizer
from llama_jax.convert.source import Source
from llama_jax.data.tokenizer import Tokenizer

logger = logging.getLogger(__name__)
REPORT = "report.json"


def open_source(path: str | os.PathLike[str], tokenizer: str | None = None) -> Source:
    """Recognise, validate and map a model in any format; nothing of its tensors is read.

    Raises InputError for what is no model of a known format or not a sound one.
    """
    path = _local(path)
    name = detect(path)
    source = FORMATS[name].read(path)
    if tokenizer is not None:
        source = replace(source, tokenizer=_tokenizer(tokenizer, source.config.vocab_size))
    if source.tokenizer is not None:
        pieces = Tokenizer.from_bytes(source.tokenizer, where=f"{path}: its tokenizer").vocab_size
        require(
            pieces <= source.config.vocab_size,
            f"{path}: the tokenizer has {pieces} pieces and the model {source.config.vocab_size} "
            "rows; name the right one with --tokenizer",
        )
    return source


def _local(path: str | os.PathLike[str]) -> Path:
    text = os.fspath(path)
    require(
        "://" not in text,
        f"{text}: other formats are read and written on this machine alone; copy the folder, as "
        "with gcloud storage cp --recursive",
    )
    return Path(text).expanduser().absolute()


def convert(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    to: str = "native",
    tokenizer: str | None = None,
    dtype: str | None = None,
) -> dict[str, Any]:
    """Convert a model; returns the report, which also lies beside the result.

    Args:
      to: a name in `formats.FORMATS`, with `:VARIANT` where the format has some.
      tokenizer: sentencepiece model, or tokenizer.bin of llama2.c, instead of the source's own.
      dtype: type to write; None keeps the source's where the format has it.

    Raises:
      InputError: the source is damaged or unsupported, the target cannot express it, or `dst`
        exists.
      OSError: writing failed. Nothing is left in either case.
    """
    name, _, variant = to.partition(":")
    require(name in FORMATS, f"--to {name} is unknown; choose from {', '.join(FORMATS)}")
    row = FORMATS[name]
    variant = variant or row.variants[0]
    require(variant in row.variants, f"--to {to}: choose the variant from {row.variants}")
    target = _local(dst)
    require(
        not target.exists() or (not row.is_file and target.is_dir() and not any(target.iterdir())),
        f"{target} exists{'' if row.is_file else ' and is not empty'}: name a new place",
    )
    source = open_source(src, tokenizer)
    stored = source.config.param_dtype
    dtype = dtype or (stored if stored in row.dtypes else row.dtypes[0])
    require(dtype in row.dtypes, f"--dtype {dtype}: {row.title} keeps {', '.join(row.dtypes)}")
    logger.info("%s is %s, %s", source.path, FORMATS[source.format].title, _shape(source))
    if source.tokenizer is None:
        logger.warning("%s has no tokenizer; name one with --tokenizer to add it", source.path)
    size = 2 * proof.size_in_bytes(source, dtype)  # written, then read back
    with _staged(target, row) as folder, _bar(size, target.name) as tick:
        reading, as_stored = proof.recorded(source, dtype, tick)
        said = row.write(reading, folder, target.name, variant) or ()
        proof.check_stored(source, as_stored)
        result = row.read(folder / target.name if row.is_file else folder)
        report = _report(source, reading, result, said, tick)
        report["result"] |= {"to": to, "path": os.fspath(target)}
        if row.card is not None:
            row.card(source, folder, report)
        _report_file(folder / target.name if row.is_file else folder).write_text(
            json.dumps(report, indent=1) + "\n"
        )
    return report


def verify(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Repeat the proof that lies beside a converted model; None if none does.

    `ok` says whether every digest agrees and the logits are those of the source, up to the
    difference that the conversion reported and rounding.
    """
    path = Path(path).expanduser().absolute()
    file = _report_file(path)
    if not file.exists():
        return None
    try:
        kept = json.loads(file.read_bytes())
        digests, logits, dtype = kept["digests"], kept["logits"], kept["result"]["dtype"]
        difference = logits["largest_difference"]
        tokens = [int(t) for t in logits["tokens"]]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file} is damaged: {error!r:.80}") from error
    source = open_source(path)
    require(
        len(tokens) > 0 and all(0 <= t < source.config.vocab_size for t in tokens),
        f"{file} is damaged: its tokens are not the model's",
    )
    with _bar(proof.size_in_bytes(source, dtype), path.name) as tick:
        found = proof.digests_of(source, dtype, tick)
    now, agreement = proof.compare(logits, proof.logits(source, tokens))
    damaged = sorted(n for n in {*found, *digests} if found.get(n) != digests.get(n))
    scale = max(abs(v) for row in logits["values"] for v in row)
    return {
        "ok": not damaged and now <= difference + 1e-4 * scale,
        "path": os.fspath(path),
        "format": source.format,
        "parameters": proof.parameter_count(source),
        "tensors": len(found),
        "damaged": damaged,
        "largest_difference": now,
        "top1_agreement": agreement,
    }


def _report(
    source: Source,
    reading: Source,
    result: Source,
    said: Sequence[str],
    tick: Callable[[int], object],
) -> dict[str, Any]:
    """What was found of a result that has been written and is read back."""
    dtype = reading.config.param_dtype
    sent, found = dict(reading.digests), proof.digests_of(result, dtype, tick)
    changed = sorted(n for n in {*sent, *found} if sent.get(n) != found.get(n))
    cast = dtype != source.config.param_dtype
    notes = list(dict.fromkeys([*source.notes, *said, *result.notes]))
    if cast:
        notes.append(f"Numbers were cast from {source.config.param_dtype} to {dtype}.")
    tokens = proof.fixed_tokens(source.config.vocab_size)
    values = proof.logits(result, tokens)
    # Where every number arrived, the logits of the source are these, bit for bit.
    of_source = proof.logits(source, tokens) if cast or changed else values
    kept = proof.excerpt(of_source, tokens)
    difference, agreement = proof.compare(kept, values)
    return {
        "format_version": 1,
        "source": {
            "path": os.fspath(source.path),
            "format": source.format,
            "dtype": source.config.param_dtype,
            "origin": source.origin,
        },
        "result": {"format": result.format, "dtype": dtype},
        "parameters": proof.parameter_count(source),
        "tokenizer": source.tokenizer is not None,
        "notes": notes,
        "digests": found,
        "not_identical": changed,
        "logits": {"largest_difference": difference, "top1_agreement": agreement, **kept},
        "versions": {"llama-jax": __version__},
    }


def describe(report: dict[str, Any]) -> str:
    """The report as text of a few lines."""
    source, result, logits = report["source"], report["result"], report["logits"]
    changed = report["not_identical"]
    same = f"{len(report['digests'])} tensors read back, "
    same += f"not identical: {', '.join(changed)}" if changed else "every number as it was sent"
    lines = [
        ("from", f"{source['path']} ({source['format']}, {source['dtype']})"),
        ("to", f"{result['path']} ({result['to']}, {result['dtype']})"),
        ("parameters", f"{report['parameters']:,}"),
        ("tokenizer", "included" if report["tokenizer"] else "none: name one with --tokenizer"),
        ("digests", same),
        (
            "logits",
            f"largest difference {logits['largest_difference']:.3g}, top-1 agreement "
            f"{100 * logits['top1_agreement']:.0f} % on {len(logits['tokens'])} fixed tokens",
        ),
        *(("note", note) for note in report["notes"]),
    ]
    return "\n".join(f"{key:<11} {value}" for key, value in lines)


def describe_verification(result: dict[str, Any]) -> str:
    """What `verify` found, in one line."""
    state = f"damaged: {', '.join(result['damaged'])}" if result["damaged"] else "digests agree"
    return (
        f"{result['path']}: {result['tensors']} tensors, {state}; logits of the source within "
        f"{result['largest_difference']:.3g}, top-1 agreement "
        f"{100 * result['top1_agreement']:.0f} %"
    )


# ---- Small things


def _report_file(path: Path) -> Path:
    return path / REPORT if path.is_dir() else path.with_name(f"{path.name}.{REPORT}")


def _tokenizer(path: str, vocab_size: int) -> bytes:
    if Path(path).suffix == ".bin" and Path(path).expanduser().is_file():
        return read_tokenizer(Path(path).expanduser(), vocab_size)[0]
    return Tokenizer.load(path).model_bytes


def _shape(source: Source) -> str:
    c = source.config
    return (
        f"{proof.parameter_count(source):,} parameters in {c.param_dtype}: {c.num_layers} layers "
        f"of width {c.d_model}, {c.num_heads} heads ({c.num_kv_heads} for keys), "
        f"vocabulary {c.vocab_size}"
    )


@contextmanager
def _bar(size: int, name: str) -> Iterator[Callable[[int], object]]:
    with tqdm(total=size, desc=name, unit="B", unit_scale=True, leave=False, disable=None) as bar:
        yield bar.update


@contextmanager
def _staged(target: Path, row: Format) -> Iterator[Path]:
    """A temporary folder beside the target, whose content becomes the target at the end."""
    folder = target.with_name(target.name + ".tmp")
    require(target.parent.is_dir(), f"{target.parent} does not exist: make that folder first")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
        if row.is_file:
            _require_not_replaced(folder, target)
            for file in sorted(folder.iterdir(), key=lambda f: f.name == target.name):
                storage.rename_durably(epath.Path(file), epath.Path(target.with_name(file.name)))
            folder.rmdir()
        else:
            storage.rename_durably(epath.Path(folder), epath.Path(target))
    except BaseException:
        with suppress(OSError):
            shutil.rmtree(folder)
        raise


def _require_not_replaced(folder: Path, target: Path) -> None:
    """InputError if another model's file has the name of one that goes beside the result."""
    for file in folder.iterdir():
        beside = target.with_name(file.name)
        same = not beside.exists() or beside.read_bytes() == file.read_bytes()
        require(same, f"{beside} exists and is another model's: name a place in a new folder")
