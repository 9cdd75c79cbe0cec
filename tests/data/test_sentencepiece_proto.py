from dataclasses import replace

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_jax.config import InputError
from llama_jax.data.sentencepiece_proto import Piece, Vocabulary
from llama_jax.data.tokenizer import Tokenizer
from tests.data.test_tokenizer import ORIGINAL, TEXT, needs_original

WORDS = ["the", "Who", " 45", "\u2581", "l\u00e9", "日", "😀", "\n", "\t", "  ", "<s>"]


def rewritten(tokenizer):
    """The same pieces and rules in a model file of our own making."""
    return Tokenizer.from_vocabulary(tokenizer.vocabulary)


@pytest.fixture(scope="module")
def again(tokenizer):
    return rewritten(tokenizer)


def test_pieces_are_those_that_sentencepiece_reads(tokenizer):
    processor = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.model_bytes)
    for token, piece in enumerate(tokenizer.vocabulary.pieces):
        assert piece.text == processor.id_to_piece(token)
        assert piece.score == processor.get_score(token)
        assert (piece.kind == "control") == processor.is_control(token)
        assert (piece.kind == "byte") == processor.is_byte(token)
        assert (piece.kind == "unknown") == processor.is_unknown(token)


def test_a_rewritten_model_keeps_all_that_is_declared(tokenizer, again):
    assert again.vocabulary == tokenizer.vocabulary
    assert (again.unk_id, again.bos_id, again.eos_id, again.pad_id) == (0, 1, 2, -1)


@settings(deadline=None, max_examples=200)
@given(text=TEXT)
def test_a_rewritten_model_gives_the_same_ids(tokenizer, again, text):
    ids = tokenizer.encode(text)
    assert again.encode(text) == ids
    assert again.decode(ids) == text


@needs_original
def test_the_original_rewritten_gives_the_same_ids():
    original = Tokenizer.load(ORIGINAL)
    again = rewritten(original)
    assert again.vocabulary == original.vocabulary

    @settings(deadline=None, max_examples=200)
    @given(text=st.lists(st.sampled_from(WORDS) | st.characters(exclude_categories=["Cs"])))
    def same(text):
        assert again.encode("".join(text)) == original.encode("".join(text))

    same()


def test_without_a_dummy_prefix(tokenizer):
    bare = Tokenizer.from_vocabulary(replace(tokenizer.vocabulary, add_dummy_prefix=False))
    assert bare.decode_bytes(bare.encode("story")) == b"story"
    assert tokenizer.decode_bytes(tokenizer.encode("story")) == b" story"


def test_control_ids_may_stand_anywhere(tokenizer):
    *pieces, last = tokenizer.vocabulary.pieces
    unk, bos, eos, *rest = pieces
    moved = [*rest, eos._replace(text="<end>"), last, bos._replace(text="<begin>"), unk]
    n = len(moved)
    vocabulary = Vocabulary(pieces=tuple(moved), unk_id=n - 1, bos_id=n - 2, eos_id=n - 4)
    found = Tokenizer.from_vocabulary(vocabulary)
    assert (found.unk_id, found.bos_id, found.eos_id) == (n - 1, n - 2, n - 4)
    assert found.vocabulary == vocabulary


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(model_type="unigram"), "model_type unigram"),
        (dict(byte_fallback=False), "byte_fallback False"),
        (dict(remove_extra_whitespaces=True), "remove_extra_whitespaces True"),
        (dict(normalizer="nmt_nfkc"), "normalizer nmt_nfkc"),
        (dict(bos_id=-1), r"bos piece \(id -1\) is missing"),
        (dict(eos_id=0), r"eos piece \(id 0\) is unknown"),
        (dict(unk_id=99999), r"unk piece \(id 99999\) is missing"),
    ],
)
def test_rules_that_are_not_llamas_are_named(tokenizer, change, message):
    with pytest.raises(InputError, match=message):
        Tokenizer.from_vocabulary(replace(tokenizer.vocabulary, **change))


@pytest.mark.parametrize(
    ("token", "piece", "message"),
    [
        (300, Piece("", 0.0, "normal"), "id 300 is '', 0.0"),
        (300, Piece("x", float("nan"), "normal"), "id 300 is 'x', nan"),
        (300, Piece("<0x0A>", 0.0, "normal"), "ids 13 and 300 are both '<0x0A>'"),
        (13, Piece("x" * 99, 0.0, "normal"), "lacks the byte pieces <0x0A>"),
    ],
)
def test_pieces_that_no_vocabulary_may_hold_are_named(tokenizer, token, piece, message):
    pieces = list(tokenizer.vocabulary.pieces)
    pieces[token] = piece
    with pytest.raises(InputError, match=message):
        Tokenizer.from_vocabulary(replace(tokenizer.vocabulary, pieces=tuple(pieces)))
