"""Repairs vocabularies that sentencepiece would reject, without changing any id.

A model is useful without the one piece of its vocabulary that is spelled twice or has no text.
Repairs change no id: pieces keep their places, and no text is encoded to one marked `unused`.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

from llama_jax.data.sentencepiece_proto import (
    SPACE,
    Kind,
    Piece,
    UnusableTokenizer,
    Vocabulary,
    with_pieces,
)
from llama_jax.runtime.files import shown

_SHOWN = 4  # pieces named in a note


def is_unicode(text: str) -> bool:
    """Whether a text has no lone surrogate, which UTF-8 cannot encode."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def repaired(vocabulary: Vocabulary, rows: int) -> tuple[Vocabulary, list[str]]:
    """The vocabulary with everything repaired that sentencepiece would reject, and notes on the
    changes.

    The pieces of unk, BOS and EOS get the kind of their role, whatever kind they had. Pieces that
    are empty or not valid Unicode, and all but one of several with the same text, become unused. A
    missing unknown piece gets one of the model's `rows` that has no piece.

    Raises UnusableTokenizer if there is no BOS, no EOS, or no room for the unknown piece.
    """
    v, notes = vocabulary, []
    pieces = list(v.pieces)
    roles = {v.unk_id: "unknown", v.bos_id: "BOS", v.eos_id: "EOS"}
    while pieces and pieces[-1].kind == "unused" and len(pieces) - 1 not in roles:
        pieces.pop()  # rows that fill a table up: no tokens
    problems = {i: problem for i, p in enumerate(pieces) if (problem := _problem(p))}
    for ids in _spelled({i: p for i, p in enumerate(pieces) if i not in problems}).values():
        if len(ids) > 1:
            kept = next((i for i in ids if i in roles), None)
            named = [i for i in ids if pieces[i].kind in ("control", "byte", "unknown")]
            kept = kept if kept is not None else named[0] if named else ids[-1]  # as llama.cpp
            problems |= {i: f"is spelled like id {kept}" for i in ids if i != kept}
    taken = {p.text for p in pieces}
    for i in problems:
        text = f"<{roles[i]}>" if i in roles else f"<unused_{i}>"
        while text in taken:
            text += "_"
        taken.add(text)
        pieces[i] = Piece(text, 0.0, pieces[i].kind if i in roles else "unused")
    if unused := [f"id {i} {problems[i]}" for i in problems if i not in roles]:
        notes.append(f"Pieces of the tokenizer became unused: {_listed(unused)}.")
    unk = _unknown(pieces, v.unk_id, rows, notes)
    for name, token in (("BOS", v.bos_id), ("EOS", v.eos_id)):
        if not 0 <= token < len(pieces) or token == unk:
            raise UnusableTokenizer(f"it has no {name} piece (id {token} is named)")
        if (kind := pieces[token].kind) != "control":
            pieces[token] = pieces[token]._replace(kind="control")
            what = f"id {token} ({shown(pieces[token].text)})"
            notes.append(f"The {name} piece, {what}, is typed {kind}: taken as control.")
    return replace(v, pieces=tuple(pieces), unk_id=unk, remove_extra_whitespaces=False), notes


def _problem(piece: Piece) -> str:
    if not piece.text:
        return "has no text"
    if not is_unicode(piece.text):
        return "is not valid Unicode"
    return "" if math.isfinite(piece.score) else "has a score that is not finite"


def _spelled(pieces: Mapping[int, Piece]) -> dict[str, list[int]]:
    ids = defaultdict(list)
    for token, piece in pieces.items():
        ids[piece.text].append(token)
    return ids


def _listed(parts: Sequence[str]) -> str:
    more = f"; and {len(parts) - _SHOWN} more" if len(parts) > _SHOWN else ""
    return "; ".join(parts[:_SHOWN]) + more


def _unknown(pieces: list[Piece], named: int, rows: int, notes: list[str]) -> int:
    """The id of the unknown piece, of which there must be one; `pieces` is changed for that."""
    typed = [i for i, p in enumerate(pieces) if p.kind == "unknown"]
    if named in typed or typed:
        unk = named if named in typed else typed[0]
        for i in typed:
            if i != unk:
                pieces[i] = pieces[i]._replace(kind="control")
        if unk != named:
            notes.append(f"The unknown piece is id {unk}, which is typed so, not id {named}.")
        return unk
    if 0 <= named < len(pieces) and (pieces[named].kind != "normal" or _is_unk(pieces[named])):
        kind = pieces[named].kind
        pieces[named] = pieces[named]._replace(kind="unknown")
        notes.append(f"The unknown piece, id {named}, is typed {kind}: taken as unknown.")
        return named
    spare = next((i for i, p in enumerate(pieces) if p.kind == "unused"), len(pieces))
    if spare >= rows:
        raise UnusableTokenizer("it has no piece for unknown text")
    text = "<unk>"
    while any(piece.text == text for piece in pieces):
        text += "_"
    pieces[spare : spare + 1] = [Piece(text, 0.0, "unknown")]
    notes.append(f"The vocabulary has no unknown piece: id {spare}, which had none, became it.")
    return spare


def _is_unk(piece: Piece) -> bool:
    return piece.text.strip("<>[]|").lower() in ("unk", "unknown")


@dataclass(frozen=True)
class AddedToken:
    """A token that a program added after the pieces of a sentencepiece model."""

    id: int
    text: str
    special: bool
    """Whether it is a control token, such as the end of a turn, rather than text."""


def with_added(model: bytes, added: Sequence[AddedToken], rows: int) -> tuple[bytes, list[str]]:
    """A serialised model with added tokens among its pieces, and notes on them.

    Special ones become control pieces, which no text spells; others become user-defined symbols,
    which are found in text as a whole. Ids between them become unused pieces. Tokens that are
    pieces already are not added; tokens that contradict the pieces, or have no row in the model,
    are left out.
    """
    pieces = list(Vocabulary.from_bytes(model).pieces)
    before = len(pieces)
    taken = {piece.text: token for token, piece in enumerate(pieces)}
    kept: list[AddedToken] = []
    lost: list[AddedToken] = []
    for token in sorted(added, key=lambda token: token.id):
        text = token.text if token.special else token.text.replace(" ", SPACE)
        if 0 <= token.id < before and taken.get(text) == token.id:
            continue
        fits = before <= token.id < rows and text and is_unicode(text) and "\0" not in text
        if not fits or text in taken or token.id < len(pieces):
            lost.append(token)
            continue
        while len(pieces) < token.id:
            pieces.append(Piece(f"<unused_{len(pieces)}>", 0.0, "unused"))
        kind = cast(Kind, "control" if token.special else "user_defined")
        taken[text] = token.id
        pieces.append(Piece(text, 0.0, kind))
        kept.append(token)
    notes = []
    if kept:
        some = "; text never becomes those that are special" * any(t.special for t in kept)
        notes.append(f"Added tokens are pieces of the tokenizer: {_listed(_names(kept))}{some}.")
    if lost:
        notes.append(
            f"Added tokens that fit neither the pieces nor the {rows} rows of the model were left "
            f"out: {_listed(_names(lost))}."
        )
    return (with_pieces(model, pieces[before:]) if kept else model), notes


def _names(tokens: Sequence[AddedToken]) -> list[str]:
    return [f"{shown(token.text, 40)} (id {token.id})" for token in tokens]
