"""`convert`: one model from one format into another, streamed and verified, with a report.

    read (validate, map) -> cast -> digest -> write under a temporary name -> read back, digest
    again -> logits of both -> report -> rename

A source is accepted, rejected with a one-line error, or accepted with notes on what was left out,
changed or assumed. The notes are logged, printed and kept in the report. The result appears under
its name complete, report included, or not at all (staging.py).
"""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from llama_jax import __version__
from llama_jax.config import require
from llama_jax.convert import proof
from llama_jax.convert.formats import FORMATS, detect
from llama_jax.convert.llama2c_tokenizer import read_tokenizer
from llama_jax.convert.source import Source
from llama_jax.convert.staging import staged
from llama_jax.convert.usage import INSTEAD, Named
from llama_jax.data.tokenizer import Tokenizer
from llama_jax.runtime.files import json_text, read_json, shown
from llama_jax.runtime.places import expand

logger = logging.getLogger(__name__)
REPORT = "report.json"


def open_source(path: str | os.PathLike[str], tokenizer: str | None = None) -> Source:
    """Recognise, validate and map a model in any format; no tensor data is read.

    tokenizer: what `--tokenizer` names (`named_tokenizer`), which is read instead of the source's.

    Notes on what was left out, changed or assumed are logged in one line. Raises InputError for a
    path that holds no model of a known format, or a damaged one.
    """
    path = _local(path)
    named = named_tokenizer(tokenizer)
    source = FORMATS[detect(path)].read(path, named)
    if source.tokenizer is not None:
        where = f"{path}: its tokenizer" if tokenizer is None else tokenizer
        pieces = Tokenizer.from_bytes(source.tokenizer, where=where).vocab_size
        rows = source.config.vocab_size
        require(
            pieces <= rows,
            f"{where} has {pieces} tokens but the model's embedding has {rows} rows: it belongs "
            f"to a different model; name the right one with `{INSTEAD}`, or none",
        )
        if pieces < rows:
            source = replace(source, notes=(*source.notes, _without_a_piece(pieces, rows)))
    if source.notes:
        logger.warning("%s: %s", path, " ".join(source.notes))
    return source


def _without_a_piece(pieces: int, rows: int) -> str:
    ids = f"id {pieces} has" if rows == pieces + 1 else f"ids {pieces} to {rows - 1} have"
    return f"The model has {rows} rows and the tokenizer {pieces} pieces: {ids} no text."


def named_tokenizer(path: str | None) -> Named:
    """The tokenizer that `--tokenizer` names: a sentencepiece model, tokenizer.json, llama2.c's
    tokenizer.bin, a folder with one of them, or the word `none`. Raises InputError for anything
    else."""
    if path is None:
        return "own"
    if path == "none":
        return None
    place = Path(expand(path))
    if place.suffix == ".bin" and place.is_file():
        return read_tokenizer(place)[0]
    return Tokenizer.load(path).model_bytes


def _local(path: str | os.PathLike[str]) -> Path:
    text = os.fspath(path)
    require(
        "://" not in text,
        f"{text}: other formats are read and written on this machine alone; copy the folder, as "
        "with gcloud storage cp --recursive",
    )
    return Path(expand(text)).absolute()


def convert(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    to: str = "native",
    tokenizer: str | None = None,
    dtype: str | None = None,
) -> dict[str, Any]:
    """Convert a model; returns the report, which is also written beside the result.

    Args:
      to: a name in `formats.FORMATS`, with `:VARIANT` where the format has some.
      tokenizer: replaces the source's own, see `named_tokenizer`.
      dtype: dtype to write; None keeps the source's where the format has it.

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
    require(
        source.config.head == "language",
        f"{source.path} is a reward model, whose score head no other format can store: name a "
        "language model",
    )
    stored = source.config.param_dtype
    dtype = dtype or (stored if stored in row.dtypes else row.dtypes[0])
    require(dtype in row.dtypes, f"--dtype {dtype}: {row.title} supports {', '.join(row.dtypes)}")
    logger.info("%s is %s, %s", source.path, FORMATS[source.format].title, _shape(source))
    if source.tokenizer is None and tokenizer != "none":
        logger.warning("%s has no tokenizer; name one with --tokenizer to add it", source.path)
    size = 2 * proof.size_in_bytes(source, dtype)  # written, then read back
    with staged(target, is_file=row.is_file) as folder, _bar(size, target.name) as tick:
        reading, as_stored = proof.recorded(source, dtype, tick)
        said = row.write(reading, folder, target.name, variant) or ()
        proof.check_stored(source, as_stored)
        written = folder / target.name if row.is_file else folder
        result = row.read(written, "own")
        report = _report(source, reading, result, said, tick)
        report["result"] |= {"to": to, "path": os.fspath(target)}
        if row.card is not None:
            row.card(source, folder, report)
        _report_file(written).write_text(json_text(report, indent=1) + "\n")
    return report


def verify(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Repeat the proof that lies beside a converted model; None if none does.

    `ok` says whether every digest agrees and the logits are those of the source, up to the
    difference that the conversion reported and rounding; where logits are not finite, the digests
    alone decide. Raises InputError for a damaged report or model.
    """
    path = Path(expand(path)).absolute()
    file = _report_file(path)
    if not file.exists():
        return None
    kept = read_json(file)
    source = open_source(path)
    problem = _problem(kept, source.config.vocab_size)
    require(not problem, f"{file} is damaged: {problem}")
    digests, logits, dtype = kept["digests"], kept["logits"], kept["result"]["dtype"]
    with _bar(proof.size_in_bytes(source, dtype), path.name) as tick:
        found = proof.digests_of(source, dtype, tick)
    now, agreement = proof.compare(logits, proof.logits(source, logits["tokens"]))
    damaged = sorted(n for n in {*found, *digests} if found.get(n) != digests.get(n))
    before = logits["largest_difference"]
    scale = max((abs(v) for row in logits["values"] for v in row if v is not None), default=0)
    agree = now is None or before is None or now <= before + 1e-4 * scale
    return {
        "ok": not damaged and agree,
        "path": os.fspath(path),
        "format": source.format,
        "parameters": proof.parameter_count(source),
        "tensors": len(found),
        "damaged": damaged,
        "not_finite": found.not_finite(),
        "largest_difference": now,
        "top1_agreement": agreement,
    }


def _problem(kept: dict[str, Any], rows: int) -> str:
    """What a report has that none of ours has; empty for a sound one."""
    digests: Any = kept.get("digests")
    logits: Any = kept.get("logits")
    result: Any = kept.get("result")
    if not isinstance(digests, dict) or not all(isinstance(d, str) for d in digests.values()):
        return f"its digests are {shown(digests)}"
    if not isinstance(result, dict) or result.get("dtype") not in proof.DTYPES:
        return f"its result is {shown(result)}"
    if not isinstance(logits, dict):
        return f"its logits are {shown(logits)}"
    tokens, difference = logits.get("tokens"), logits.get("largest_difference")
    if not isinstance(tokens, list) or not 0 < len(tokens) <= proof.MAX_TOKENS:
        return f"its tokens are {shown(tokens)}"
    if not all(type(t) is int and 0 <= t < rows for t in tokens):
        return f"its tokens are {shown(tokens)}, and the model has {rows} rows"
    tables: dict[str, Any] = {name: logits.get(name) for name in ("top", "values")}
    for name, table in tables.items():
        whole = isinstance(table, list) and len(table) == len(tokens)
        if not whole or not all(isinstance(row, list) and len(row) > 0 for row in table):
            return f"its {name} are {shown(table)}"
    if len({len(row) for table in tables.values() for row in table}) != 1:
        return f"its top and values are {shown(tables)}"
    if not all(type(t) is int and 0 <= t < rows for row in tables["top"] for t in row):
        return f"its top is {shown(tables['top'])}"
    if not all(isinstance(v, float | int | None) for row in tables["values"] for v in row):
        return f"its values are {shown(tables['values'])}"
    finite = logits.get("finite", [])
    if "largest_difference" not in logits or not isinstance(difference, float | int | None):
        return f"its largest_difference is {shown(difference)}"
    if not isinstance(finite, list) or not all(isinstance(f, bool) for f in finite):
        return f"its finite is {shown(finite)}"
    return "" if len(finite) in (0, len(tokens)) else f"its finite is {shown(finite)}"


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
    notes = [*source.changes, *result.changes]
    if cast:
        notes.append(f"Numbers were cast from {source.config.param_dtype} to {dtype}.")
    notes += [*said, *source.notes]
    if not_finite := found.not_finite():
        counts = ", ".join(f"{count:,} of {name}" for name, count in not_finite.items())
        notes.append(
            f"Numbers that are NaN or infinite: {counts}. Nothing is known of such a model."
        )
        logger.warning("%s holds numbers that are NaN or infinite: %s", source.path, counts)
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
        "notes": list(dict.fromkeys(notes)),
        "digests": dict(found),
        "not_identical": changed,
        "not_finite": not_finite,
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
        ("tokenizer", "included" if report["tokenizer"] else "none"),
        ("digests", same),
        ("logits", f"{proof.in_words(logits)} on {len(logits['tokens'])} fixed tokens"),
        *(("note", note) for note in report["notes"]),
    ]
    return "\n".join(f"{key:<11} {value}" for key, value in lines)


def describe_verification(result: dict[str, Any]) -> str:
    """The result of `verify` in one line."""
    state = f"damaged: {', '.join(result['damaged'])}" if result["damaged"] else "digests agree"
    return (
        f"{result['path']}: {result['tensors']} tensors, {state}; logits: {proof.in_words(result)}"
    )


# ---- Small things


def _report_file(path: Path) -> Path:
    return path / REPORT if path.is_dir() else path.with_name(f"{path.name}.{REPORT}")


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
