"""tokenizer.json in the library that reads it: the ids of our tokenizer for any text."""

import json
from dataclasses import replace
from functools import cache

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_jax.config import InputError
from llama_jax.convert import hf_tokenizer
from llama_jax.convert.usage import Usage
from llama_jax.data.corpora import tales
from llama_jax.data.sentencepiece_proto import Piece, model_message, with_pieces
from llama_jax.data.tokenizer import Tokenizer, train_tokenizer
from tests.data.test_tokenizer import ORIGINAL, needs_original

SYMBOLS = [
    "<|im_start|>",
    "<|im_end|>",
    "[INST]",
    "[",
    "(a|b)*",
    "\u2581x",
    "two\u2581words",
    "\n\n",
]
# Texts that spell a control token are left out: transformers takes them for one unless
# `split_special_tokens` is set, and this library always does.
TEXTS = st.lists(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581"), max_size=8)
    | st.sampled_from(
        ["Once upon a time", " the", "  ", "\n", "aaaa", "é", "日本", "<0x0A>", "123"]
    ),
    max_size=8,
).map("".join)


@cache
def pair(path=None):
    """Ours, and what the library makes of the files that we write for it."""
    if path is None:
        ours = train_tokenizer([tales.story(i) for i in range(200)], 500)
    else:
        ours = Tokenizer.load(path)
    content = hf_tokenizer.files(ours, 2048, Usage())["tokenizer.json"].decode()
    return ours, tokenizers.Tokenizer.from_str(content)


def agree(ours, theirs, text):
    found = theirs.encode(text).ids
    assert found == ours.encode(text, bos=True)
    assert theirs.decode(found) == ours.decode(found)


@settings(deadline=None, max_examples=300)
@given(text=TEXTS)
def test_the_ids_of_any_text_are_ours(text):
    agree(*pair(), text)


@needs_original
@settings(deadline=None, max_examples=300)
@given(text=TEXTS)
def test_the_ids_of_llamas_own_tokenizer(text):
    agree(*pair(ORIGINAL), text)


def test_the_settings_name_the_control_tokens():
    ours, theirs = pair()
    said = json.loads(hf_tokenizer.files(ours, 2048, Usage())["tokenizer_config.json"])
    assert [theirs.token_to_id(said[f"{name}_token"]) for name in ("unk", "bos", "eos")] == [
        0,
        1,
        2,
    ]
    assert said["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert (said["model_max_length"], said["clean_up_tokenization_spaces"]) == (2048, False)
    assert theirs.get_vocab_size() == ours.vocab_size


def test_a_model_that_normalises_is_refused(monkeypatch):
    ours, _ = pair()
    changed = replace(ours.vocabulary, normalizer="nmt_nfkc")
    monkeypatch.setitem(vars(ours), "vocabulary", changed)
    with pytest.raises(
        InputError, match=r"normalizer nmt_nfkc, and Llama's identity: .* none leaves"
    ):
        hf_tokenizer.files(ours, 2048, Usage())


def grown(*pieces):
    """The tokenizer with more pieces, (text, kind), behind its own."""
    more = [Piece(text, 0.0, kind) for text, kind in pieces]
    return Tokenizer.from_bytes(with_pieces(pair()[0].model_bytes, more))


def library(tokenizer, usage=None):
    content = hf_tokenizer.files(tokenizer, 2048, usage or Usage())["tokenizer.json"].decode()
    return tokenizers.Tokenizer.from_str(content)


def test_symbols_of_the_user_are_whole_and_the_rest_is_as_before():
    ours = grown(*((symbol, "user_defined") for symbol in SYMBOLS), ("[PAD]", "unused"))
    theirs = library(ours)
    spoken = [symbol.replace("\u2581", " ") for symbol in SYMBOLS]

    @settings(deadline=None, max_examples=300)
    @given(
        st.lists(TEXTS | st.sampled_from([*spoken, *(s[1:] for s in spoken), "<0x41>", "[PAD]"]))
    )
    def same(parts):
        text = "".join(parts)
        assert theirs.encode(text).ids == ours.encode(text, bos=True)

    same()
    for text in ("<|im_start|>user The ship<|im_end|>", "[INST] a river [/INST]", "[<0x41>["):
        assert theirs.encode(text).ids == ours.encode(text, bos=True)
        assert theirs.decode(theirs.encode(text).ids) == text


def test_control_pieces_beyond_the_three_are_listed():
    ours = grown(("<|im_end|>", "control"))
    theirs = library(ours)
    assert theirs.token_to_id("<|im_end|>") == ours.vocab_size - 1
    assert theirs.decode([ours.vocab_size - 1]) == ""
    assert theirs.encode("a story").ids == ours.encode("a story", bos=True)


def test_how_the_model_is_used_goes_along():
    usage = Usage(add_bos=False, chat_template="{{ x }}", special_tokens={"pad_token": "<unk>"})
    ours = pair()[0]
    files = hf_tokenizer.files(ours, 2048, usage)
    said = json.loads(files["tokenizer_config.json"])
    assert (said["chat_template"], said["pad_token"], said["add_bos_token"]) == (
        "{{ x }}", "<unk>", False,
    )  # fmt: skip
    assert library(ours, usage).encode("a story").ids == ours.encode("a story")


def two_of_one_score(v):
    merged = [i for i, p in enumerate(v.pieces) if p.kind == "normal" and len(p.text) == 2]
    return {merged[1]: v.pieces[merged[1]]._replace(score=v.pieces[merged[0]].score)}


def unused_on_the_way(v):
    token = next(i for i, p in enumerate(v.pieces) if p.kind == "normal" and len(p.text) == 2)
    return {token: v.pieces[token]._replace(kind="unused")}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (two_of_one_score, "pieces have equal scores"),
        (unused_on_the_way, "text can become the unused piece"),
    ],
)
def test_pieces_that_other_files_would_give_other_ids_to_are_refused(change, message):
    v = pair()[0].vocabulary
    pieces = [change(v).get(i, piece) for i, piece in enumerate(v.pieces)]
    ours = Tokenizer.from_vocabulary(replace(v, pieces=tuple(pieces)))
    with pytest.raises(InputError, match=f"{message}.*would give other ids; --tokenizer none"):
        hf_tokenizer.files(ours, 2048, Usage())


@pytest.mark.parametrize("flag", ["treat_whitespace_as_suffix", "escape_whitespaces"])
def test_odd_flags_of_sentencepiece_are_seen(flag):
    proto = model_message().FromString(pair()[0].model_bytes)
    if flag == "escape_whitespaces":
        proto.normalizer_spec.escape_whitespaces = False
    else:
        proto.trainer_spec.treat_whitespace_as_suffix = True
    ours = Tokenizer.from_bytes(proto.SerializeToString())
    with pytest.raises(InputError, match=f"the tokenizer has {flag}"):
        hf_tokenizer.files(ours, 2048, Usage())
