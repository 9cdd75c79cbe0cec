"""Vocabularies that other programs take: no id changes its place, and sentencepiece loads them."""

from dataclasses import replace

import pytest

from llama_jax.data.sentencepiece_proto import Piece, UnusableTokenizer, Vocabulary
from llama_jax.data.tokenizer import Tokenizer
from llama_jax.data.vocabulary_repairs import AddedToken, repaired, with_added
from tests.data.conftest import VOCAB_SIZE as V


def changed(tokenizer, *pieces, **ids):
    """The vocabulary with some pieces (id, text, score, kind) exchanged."""
    found = list(tokenizer.vocabulary.pieces)
    for token, *piece in pieces:
        found[token] = Piece(*piece)
    return replace(tokenizer.vocabulary, pieces=tuple(found), **ids)


ODD = {
    "end of turn typed by the user": (
        [(399, "<|im_end|>", 0.0, "user_defined")], dict(eos_id=399),
        {399: "control"}, ["EOS piece, id 399 ('<|im_end|>'), is typed user_defined"],
    ),
    "unknown typed control": ([(0, "<unk>", 0.0, "control")], {}, {0: "unknown"}, ["is typed"]),
    "unknown typed normal": ([(0, "<unk>", 0.0, "normal")], {}, {0: "unknown"}, ["typed normal"]),
    "another id is the unknown one": ([], dict(unk_id=7), {0: "unknown", 7: "byte"}, ["not id 7"]),
    "two unknown ones": ([(399, "[UNK]", 0.0, "unknown")], {}, {0: "unknown", 399: "control"}, []),
    "no text": ([(398, "", -1.0, "normal")], {}, {398: "unused"}, ["id 398 has no text"]),
    "no Unicode": ([(398, "\udcff", -1.0, "normal")], {}, {398: "unused"}, ["id 398 is not valid"]),
    "no score": ([(398, "t", float("nan"), "normal")], {}, {398: "unused"}, ["not finite"]),
    "twice": ([(390, "qq", -1.0, "normal"), (397, "qq", -1.0, "normal")], {},
              {390: "unused", 397: "normal"}, ["id 390 is spelled like id 397"]),
    "the spelling of BOS": ([(397, "<s>", -1.0, "normal")], {}, {1: "control", 397: "unused"},
                            ["id 397 is spelled like id 1"]),
    "BOS without text": ([(1, "", 0.0, "control")], {}, {1: "control"}, []),
    "no unknown, but a spare row": (
        [(0, "¡", 0.0, "normal"), (350, "[PAD]", 0.0, "unused")], {},
        {0: "normal", 350: "unknown"}, ["no unknown piece: id 350"],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("pieces", "ids", "kinds", "said"), ODD.values(), ids=ODD)
def test_odd_pieces_are_put_right_and_said(tokenizer, pieces, ids, kinds, said):
    odd = changed(tokenizer, *pieces, **ids)
    found, notes = repaired(odd, V)
    assert {token: found.pieces[token].kind for token in kinds} == kinds
    touched = {*kinds, *(token for token, *_ in pieces)}
    same = [i for i in range(V) if i not in touched]
    assert [found.pieces[i] for i in same] == [odd.pieces[i] for i in same]
    for part in said:
        assert any(part in note for note in notes), notes
    assert bool(notes) == bool(said)
    loaded = Tokenizer.from_vocabulary(found)  # sentencepiece takes it
    assert loaded.vocab_size == V
    assert (loaded.bos_id, loaded.eos_id) == (odd.bos_id, odd.eos_id)


def test_a_sound_vocabulary_is_left_alone(tokenizer):
    assert repaired(tokenizer.vocabulary, V) == (tokenizer.vocabulary, [])


def test_rows_that_fill_a_table_up_are_no_pieces(tokenizer):
    padded = [Piece(f"[PAD{i}]", 0.0, "unused") for i in range(V, V + 64)]
    vocabulary = replace(
        tokenizer.vocabulary, pieces=(*tokenizer.vocabulary.pieces, *padded), unk_id=0
    )
    assert repaired(vocabulary, V + 64) == (tokenizer.vocabulary, [])


@pytest.mark.parametrize(
    ("pieces", "ids", "message"),
    [
        ([], dict(bos_id=-1), "no BOS piece"),
        ([], dict(eos_id=V), "no EOS piece"),
        ([], dict(eos_id=0), "no EOS piece"),
        ([(0, "¡", 0.0, "normal")], {}, "no piece for unknown text"),
    ],
)
def test_what_cannot_be_put_right_is_named(tokenizer, pieces, ids, message):
    with pytest.raises(UnusableTokenizer, match=message):
        repaired(changed(tokenizer, *pieces, **ids), V)


# ---- Added tokens


def test_added_tokens_become_pieces(tokenizer):
    added = [
        AddedToken(V + 1, "<|im_end|>", True),
        AddedToken(V, "<|im_start|>", True),
        AddedToken(V + 3, "two words", False),
        AddedToken(1, "<s>", True),  # is there already
    ]
    model, notes = with_added(tokenizer.model_bytes, added, V + 8)
    found = Tokenizer.from_bytes(model)
    assert found.vocabulary.pieces[:V] == tokenizer.vocabulary.pieces
    assert [(p.text, p.kind) for p in found.vocabulary.pieces[V:]] == [
        ("<|im_start|>", "control"), ("<|im_end|>", "control"), (f"<unused_{V + 2}>", "unused"),
        ("two\u2581words", "user_defined"),
    ]  # fmt: skip
    (note,) = notes
    assert f"'<|im_start|>' (id {V})" in note
    assert "text never becomes" in note
    # A sign is never read from text; a symbol of the user always is.
    text = "a <|im_end|> two words"
    ids = found.encode(text)
    assert V + 1 not in ids
    assert ids[-1] == V + 3
    assert found.decode(ids) == text
    assert found.decode([V, V + 1]) == ""


def test_other_rules_of_a_model_stay(tokenizer):
    vocabulary = replace(tokenizer.vocabulary, add_dummy_prefix=False)
    model = Tokenizer.from_vocabulary(vocabulary).model_bytes
    grown, _ = with_added(model, [AddedToken(V, "x y", False)], V + 1)
    found = Vocabulary.from_bytes(grown)
    assert replace(found, pieces=found.pieces[:-1]) == vocabulary


@pytest.mark.parametrize(
    "token",
    [
        AddedToken(V + 9, "beyond the rows", True),
        AddedToken(5, "another text than the piece's", True),
        AddedToken(V, "</s>", True),  # two pieces cannot be spelled alike
        AddedToken(V, "", True),
        AddedToken(V, "\ud800", True),
    ],
)
def test_added_tokens_that_fit_nowhere_are_named(tokenizer, token):
    model, notes = with_added(tokenizer.model_bytes, [token], V + 2)
    assert model == tokenizer.model_bytes
    assert len(notes) == 1
    assert f"(id {token.id})" in notes[0]
    assert "left out" in notes[0]
