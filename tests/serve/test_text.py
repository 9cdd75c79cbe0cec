"""Text as clients see it, however tokens are cut."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_jax.data.tokenizer import train_tokenizer
from llama_jax.serve.text import TextStream, token_bytes, token_text


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["the cat sat on the mat and the hat"] * 5, 290)


TEXTS = st.text(st.sampled_from("a the\n€日é"), max_size=20)


def pieces(ids, cuts):
    """The ids in groups, an empty one among them."""
    ends = sorted({min(c, len(ids)) for c in cuts} | {len(ids)})
    return [ids[a:b] for a, b in zip([0, *ends], ends, strict=False)] + [[]]


@given(
    TEXTS,
    TEXTS,
    st.lists(st.text(st.sampled_from("a the€"), min_size=1, max_size=4), max_size=3),
    st.lists(st.integers(0, 60), max_size=5),
    st.booleans(),
)
@settings(deadline=None, max_examples=60)
def test_the_pieces_are_the_text_up_to_its_first_stop_string(
    tokenizer, prompt, text, stops, cuts, trimmed
):
    before = tokenizer.encode(prompt, bos=True)
    ids = tokenizer.encode(prompt + text, bos=True)[len(before) :]
    whole = tokenizer.decode(ids, after=before)
    found = [whole.find(stop) for stop in stops if stop in whole]
    stream, said = TextStream(tokenizer, before, stops, trimmed=trimmed), ""
    for part in pieces(ids, cuts):
        said += stream.push(part)
        # What was said can never turn out to be part of a stop string.
        assert whole.lstrip().startswith(said) if trimmed else whole.startswith(said)
        assert not found or len(said) <= min(found)
    said += stream.push([], final=True)
    expected = whole[: min(found)] if found else whole
    assert said == (expected.strip() if trimmed else expected)
    assert (stream.stopped is not None) == bool(found)


def test_half_a_character_is_held_back_and_a_broken_one_is_shown_at_the_end(tokenizer):
    euro = [tokenizer.encode("€")[1:]][0]
    assert len(euro) == 3
    stream = TextStream(tokenizer, [1], (), trimmed=False)
    assert [stream.push([t]) for t in euro] == ["", "", "€"]
    stream = TextStream(tokenizer, [1], (), trimmed=False)
    assert stream.push(euro[:2]) == ""
    assert stream.push([], final=True) == "\ufffd"


def test_tokens_by_themselves(tokenizer):
    assert [token_text(tokenizer, i) for i in (1, 2)] == ["<s>", "</s>"]
    euro = tokenizer.encode("€")[1:]
    assert token_text(tokenizer, euro[0]) == "bytes:\\xe2"
    assert b"".join(token_bytes(tokenizer, t) for t in euro) == "€".encode()
    (the,) = tokenizer.encode("the")
    assert token_text(tokenizer, the) == " the"
