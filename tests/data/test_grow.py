import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_jax.config import InputError
from llama_jax.data.corpora import tales
from llama_jax.data.grow import grow
from llama_jax.data.tokenizer import train_tokenizer

KOREAN = "옛날 옛적에 작은 소녀가 살았습니다. 소녀는 공원에서 놀았습니다. " * 4
RUSSIAN = "Жила-была маленькая девочка. Девочка любила играть в саду. И девочка 123. " * 4


def test_new_pieces_are_appended_and_used(tokenizer):
    old_size = tokenizer.vocab_size
    grown, spelled = grow(tokenizer, [KOREAN, RUSSIAN], 40)
    assert grown.vocab_size == old_size + 40 == len(spelled) + old_size
    assert [grown.piece(i) for i in range(old_size)] == [
        tokenizer.piece(i) for i in range(old_size)
    ]
    text = KOREAN + RUSSIAN
    used = {i for i in grown.encode(text) if i >= old_size}
    assert len(used) >= 15
    assert len(grown.encode(text)) < len(tokenizer.encode(text)) / 2
    assert grown.decode(grown.encode(text)) == text


def test_every_new_piece_can_be_reached(tokenizer):
    grown, _ = grow(tokenizer, [KOREAN, RUSSIAN], 40)
    reached = set()
    for new in range(tokenizer.vocab_size, grown.vocab_size):
        piece = grown.piece(new)
        reached.add(new in grown.encode("-" + piece.replace("\u2581", " ")))
    assert reached == {True}


def test_old_text_is_encoded_as_before(tokenizer):
    grown, _ = grow(tokenizer, [KOREAN, RUSSIAN], 40)
    for i in range(1000, 1050):
        assert grown.encode(tales.story(i)) == tokenizer.encode(tales.story(i))


def test_spelling_of_new_pieces(tokenizer):
    grown, spelled = grow(tokenizer, [KOREAN, RUSSIAN], 40)
    for new, old in enumerate(spelled, tokenizer.vocab_size):
        assert old
        assert max(old) < tokenizer.vocab_size
        assert tokenizer.decode_bytes(old) == grown.decode_bytes([new])


def test_bytes_still_spell_the_rest(tokenizer):
    grown, _ = grow(tokenizer, [KOREAN], 20)
    assert grown.decode(grown.encode("日本 😀 소녀")) == "日本 😀 소녀"


def test_too_many(tokenizer):
    with pytest.raises(InputError, match=r"9999 new pieces .* supports \d+"):
        grow(tokenizer, [KOREAN], 9999)
    with pytest.raises(InputError, match="must be positive"):
        grow(tokenizer, [KOREAN], 0)


GERMAN = "Der Hund und die Katze laufen schnell durch den Garten und spielen mit dem Ball. " * 4


def ends(tokenizer, text):
    """Where in the bytes each token ends."""
    return set(itertools.accumulate(tokenizer.byte_lengths[tokenizer.encode(text)].tolist()))


def test_old_merges_come_first(tokenizer):
    """In a script that both languages share, each token is made of whole old tokens."""
    grown, _ = grow(tokenizer, [GERMAN], 30)
    for text in [GERMAN, KOREAN, *[tales.story(i) for i in range(100)]]:
        assert ends(grown, text) <= ends(tokenizer, text)
    assert len(grown.encode(GERMAN)) < len(tokenizer.encode(GERMAN)) * 0.7


@settings(deadline=None, max_examples=60)
@given(st.lists(st.text("abc", min_size=1, max_size=9), min_size=4, max_size=30))
def test_learnt_pieces_are_reached_in_any_language(words):
    old = train_tokenizer(["ab abc cab bca abcabc"] * 3, 268)
    text = " ".join(words * 2)
    try:
        grown, _ = grow(old, [text], 3)
    except InputError:
        return  # too little text for three pieces
    first = grow(old, [text], 1)[0]
    assert 268 in first.encode(text)
    assert ends(grown, text) <= ends(old, text)
    assert 270 in grown.encode(text)  # the last one is swallowed by no other
