"""Tokenizer files that give Hugging Face's AutoTokenizer the ids of a sentencepiece model.

The class is named `PreTrainedTokenizerFast`, which takes tokenizer.json as it is. transformers'
own `LlamaTokenizer` rebuilds it with a prefix space that it leaves out before texts that begin with
one, and differs there from sentencepiece.

sentencepiece merges, of all neighbours whose joint text is a piece, the pair whose piece has the
highest score. Hugging Face lists pairs by rank instead: every cut of a piece into two others, in
the order of the pieces' scores.
"""

import json
from collections.abc import Container, Sequence
from dataclasses import replace
from typing import Any

from llama_jax.config import InputError, require
from llama_jax.convert.usage import Usage
from llama_jax.data.sentencepiece_proto import LLAMA_RULES, Piece, Vocabulary
from llama_jax.data.tokenizer import JSON_FILE, MODEL_FILE, Tokenizer
from llama_jax.data.tokenizer_json import symbol_split

SPACE = "\u2581"


def files(tokenizer: Tokenizer, max_seq_len: int, usage: Usage) -> dict[str, bytes]:
    """tokenizer.model, tokenizer.json and tokenizer_config.json by name.

    Raises InputError for a sentencepiece model that is not BPE with byte fallback and without
    normalisation, as Llama's are, or for whose pieces the files would give other ids.
    """
    _check(tokenizer)
    names = [piece.text for piece in tokenizer.vocabulary.pieces]
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": names[tokenizer.bos_id],
        "eos_token": names[tokenizer.eos_id],
        "unk_token": names[tokenizer.unk_id],
        "add_bos_token": usage.add_bos,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_seq_len,
    }
    known = set(names)
    settings |= {role: text for role, text in usage.special_tokens.items() if text in known}
    if usage.chat_template is not None:
        settings["chat_template"] = usage.chat_template
    content = tokenizer_json(tokenizer, names, usage.add_bos)
    return {
        MODEL_FILE: tokenizer.model_bytes,
        JSON_FILE: json.dumps(content, ensure_ascii=False, indent=1).encode() + b"\n",
        "tokenizer_config.json": json.dumps(settings, indent=2).encode() + b"\n",
    }


_ELSE = "Hugging Face's files for it would give other ids; --tokenizer none leaves it out"


def _check(tokenizer: Tokenizer) -> None:
    """Refuse what tokenizer.json, as it is written here, would not reproduce."""
    v = tokenizer.vocabulary
    for name, wanted in LLAMA_RULES.items():
        found = getattr(v, name)
        require(found == wanted, f"the tokenizer has {name} {found}, and Llama's {wanted}: {_ELSE}")
    require(v.add_dummy_prefix, f"the tokenizer puts no space before a text: {_ELSE}")
    # sentencepiece merges through unused pieces, and takes what becomes one apart again.
    known = {p.text for p in v.pieces if p.kind in ("normal", "unused")}
    for piece in (p for p in v.pieces if p.kind == "unused"):
        if _cuts(piece.text, known):
            raise InputError(f"text can become the unused piece {piece.text!r:.60}: {_ELSE}")
    # Of equal scores the first in a text counts in sentencepiece, and the first in the list in
    # Hugging Face's merges; runs of one character, as Llama has of spaces, come out the same.
    merged = [p for p in v.pieces if p.kind == "normal" and _cuts(p.text, known)]
    scores = [p.score for p in merged if len({*p.text}) > 1]
    require(len({*scores}) == len(scores), f"pieces have equal scores: {_ELSE}")
    if symbols := _symbols(v):
        _check_symbols(tokenizer, symbols)


def _check_symbols(tokenizer: Tokenizer, symbols: list[str]) -> None:
    """Refuse a vocabulary where looking up what lies between symbols differs from merging it."""
    v = tokenizer.vocabulary
    bare = Tokenizer.from_bytes(replace(v, add_dummy_prefix=False).to_bytes())
    for token, piece in enumerate(v.pieces):
        if piece.kind == "normal" and bare.encode(piece.text.replace(SPACE, " ")) != [token]:
            raise InputError(f"no merges lead to the piece {piece.text!r:.60}: {_ELSE}")
    for byte in (p.text for p in v.pieces if p.kind == "byte"):
        apart = bare.encode(byte[0]) + bare.encode(byte[1:])
        require(bare.encode(byte) == apart, f"pieces begin with {byte[:2]!r}: {_ELSE}")


def _symbols(v: Vocabulary) -> list[str]:
    return [piece.text for piece in v.pieces if piece.kind == "user_defined"]


def tokenizer_json(tokenizer: Tokenizer, names: list[str], add_bos: bool) -> dict:
    """The `tokenizers` library's description of a sentencepiece model."""
    pieces = tokenizer.vocabulary.pieces
    control = [i for i, piece in enumerate(pieces) if piece.kind in ("control", "unknown")]
    symbols = _symbols(tokenizer.vocabulary)
    if symbols:  # what lies between two is looked up: a name with spaces is never found
        unused = {i for i, piece in enumerate(pieces) if piece.kind == "unused"}
        names = [f"unused piece {i}" if i in unused else name for i, name in enumerate(names)]
    bos = names[tokenizer.bos_id]
    begin = [[_special(bos, 0)], [_special(bos, 1)]] if add_bos else [[], []]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": i, "content": names[i], "single_word": False, "lstrip": False,
                "rstrip": False, "normalized": False, "special": True,
            }
            for i in control
        ],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": SPACE},
                {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
            ],
        },
        "pre_tokenizer": symbol_split(symbols) if symbols else None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [*begin[0], _sequence("A", 0)],
            "pair": [*begin[0], _sequence("A", 0), *begin[1], _sequence("B", 1)],
            "special_tokens": {bos: {"id": bos, "ids": [tokenizer.bos_id], "tokens": [bos]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": names[tokenizer.unk_id],
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": bool(symbols),
            "vocab": {name: i for i, name in enumerate(names)},
            "merges": _merges(pieces),
        },
    }  # fmt: skip


def _special(token: str, segment: int) -> dict:
    return {"SpecialToken": {"id": token, "type_id": segment}}


def _sequence(name: str, segment: int) -> dict:
    return {"Sequence": {"id": name, "type_id": segment}}


def _merges(pieces: Sequence[Piece]) -> list[list[str]]:
    """Every way to make a piece of two others, best pieces first."""
    scores = {p.text: p.score for p in pieces if p.kind == "normal"}
    return [
        [piece[:cut], piece[cut:]]
        for piece in sorted(scores, key=lambda piece: -scores[piece])
        for cut in _cuts(piece, scores)
    ]


def _cuts(piece: str, known: Container[str]) -> list[int]:
    """Where a piece can be cut into two that are known."""
    return [i for i in range(1, len(piece)) if piece[:i] in known and piece[i:] in known]
