"""Tokenizer and text settings of a GGUF file, as a sentencepiece model and usage settings."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from llama_jax.config import InputError
from llama_jax.convert.usage import Named, Usage, Words, end_ids, unusable
from llama_jax.data.sentencepiece_proto import (
    KIND_NUMBERS,
    Piece,
    UnusableTokenizer,
    Vocabulary,
)
from llama_jax.data.tokenizer import Tokenizer
from llama_jax.data.vocabulary_repairs import is_unicode, repaired
from llama_jax.runtime.files import shown

PREFIX = "tokenizer.ggml."
TEMPLATE = "tokenizer.chat_template"
_KINDS = {number: kind for kind, number in KIND_NUMBERS.items()}
_ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")


def read(values: Mapping[str, Any], rows: int, named: Named) -> Words:
    """The tokenizer and usage settings of a file with these values, for a model of `rows` embedding
    rows.

    A vocabulary that no sentencepiece model can hold is left out, with a note: the weights are
    sound without it.
    """
    ours = {k.removeprefix(PREFIX): v for k, v in values.items() if k.startswith(PREFIX)}
    usage, notes = _usage(values, ours, rows)
    if named != "own":
        return Words(named, usage, tuple(notes))
    if ours.get("model") != "llama":
        kind = shown(ours.get("model", "no"), 40)
        notes.append(f"The file has {kind} tokenizer, which is left out: not sentencepiece.")
        return Words(None, usage, tuple(notes))
    try:
        model, more = _model(ours, rows)
    except InputError as error:
        return Words(None, usage, (*notes, unusable(error)))
    return Words(model, usage, (*notes, *more))


def _usage(
    values: Mapping[str, Any], ours: Mapping[str, Any], rows: int
) -> tuple[Usage, list[str]]:
    ends: list[int] = []
    notes: list[str] = []
    for key in _ENDS:
        found, more = end_ids(ours.get(key), rows, f"{PREFIX}{key}")
        ends, notes = ends + found, notes + more
    template = values.get(TEMPLATE)
    others = [k for k in values if k.startswith(f"{TEMPLATE}.")]
    if others:
        notes.append(f"Left out: further chat templates ({shown(others)}).")
    special = {}
    texts: Any = ours.get("tokens")
    padding: Any = ours.get("padding_token_id")
    known = isinstance(texts, list) and type(padding) is int and 0 <= padding < len(texts)
    if known and is_unicode(texts[padding]):
        special["pad_token"] = texts[padding]
    if ours.get("add_eos_token") is True:
        notes.append("Left out: add_eos_token=true (prompts are continued, and so not ended).")
    return (
        Usage(
            end_ids=tuple(dict.fromkeys(ends)),
            add_bos=ours.get("add_bos_token") is not False,
            chat_template=template if isinstance(template, str) else None,
            special_tokens=special,
        ),
        notes,
    )


def _model(ours: Mapping[str, Any], rows: int) -> tuple[bytes, list[str]]:
    """A sentencepiece model with the pieces of the file, and notes on what had to be changed.

    Raises UnusableTokenizer if there can be none.
    """
    texts = ours.get("tokens")
    if not isinstance(texts, list) or not 0 < len(texts) <= rows:
        count = f"{len(texts)} strings" if isinstance(texts, list) else shown(texts)
        raise UnusableTokenizer(
            f"tokenizer.ggml.tokens is {count}, and the model has {rows} rows for them"
        )
    scores = _numbers(ours, "scores", len(texts), 0.0)
    numbers = _numbers(ours, "token_type", len(texts), KIND_NUMBERS["normal"])
    pieces = [
        Piece(text, score, _KINDS.get(number, "unused"))
        for text, score, number in zip(texts, scores, numbers, strict=True)
    ]
    notes = []
    if "scores" not in ours:
        notes.append("The vocabulary has no scores: all are taken as 0, and merges as they come.")
    if odd := [i for i, number in enumerate(numbers) if number not in _KINDS]:
        notes.append(
            f"{len(odd)} pieces of an unknown token_type, such as id {odd[0]} "
            f"({shown(numbers[odd[0]])}), are unused."
        )
    ids: dict[str, Any] = {}
    for name, key, default in (("unk", "unknown", 0), ("bos", "bos", 1), ("eos", "eos", 2)):
        value = ours.get(f"{key}_token_id", default)
        if type(value) is not int:
            raise UnusableTokenizer(f"{key}_token_id is {shown(value)}")
        ids[f"{name}_id"] = value
    prefix = ours.get("add_space_prefix", True) is not False
    if ours.get("remove_extra_whitespaces") is True:
        notes.append("Left out: remove_extra_whitespaces, which llama.cpp does not heed either.")
    vocabulary = Vocabulary(pieces=tuple(pieces), add_dummy_prefix=prefix, **ids)
    vocabulary, more = repaired(vocabulary, rows)
    return Tokenizer.from_vocabulary(vocabulary, "it").model_bytes, notes + more


def _numbers(ours: Mapping[str, Any], key: str, count: int, default: int | float) -> list:
    found = ours.get(key)
    if found is None:
        return [default] * count
    if not isinstance(found, np.ndarray) or len(found) != count:
        raise UnusableTokenizer(f"tokenizer.ggml.{key} is not a list of {count} numbers")
    return found.tolist()
