"""tokenizer.json: the ids of the library that it is for, for any text, or a reason."""

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
from llama_jax.data.sentencepiece_proto import Piece, UnusableTokenizer, with_pieces
from llama_jax.data.tokenizer import Tokenizer, train_tokenizer
from tests.data.test_tokenizer import ORIGINAL, needs_original

METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
SYMBOLS = ("<|im_start|>", "<|im_end|>", "[INST]", "a b")
TEXTS = st.lists(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581"), max_size=8)
    | st.sampled_from(["Once", " the", "  ", "\n", "aaa", "é", "日", "<0x0A>", "12", *SYMBOLS]),
    max_size=8,
).map("".join)  # fmt: skip


@cache
def ours(symbols=False):
    """A tokenizer, some of whose pieces are symbols of the user."""
    trained = train_tokenizer([tales.story(i) for i in range(200)], 500)
    if not symbols:
        return trained
    symbols = [Piece(text.replace(" ", "\u2581"), 0.0, "user_defined") for text in SYMBOLS]
    symbols.insert(1, Piece("<unused_501>", 0.0, "unused"))
    return Tokenizer.from_bytes(with_pieces(trained.model_bytes, symbols))


def values_of(tokenizer, **more):
    values = json.loads(hf_tokenizer.files(tokenizer, 2048, Usage())["tokenizer.json"])
    return values | more


def read(values, **roles):
    return Tokenizer.from_json(json.dumps(values).encode(), "t.json", roles)


def agree(found, values, text):
    """Ours gives the ids that the library reads from the file, and the text back."""
    library = tokenizers.Tokenizer.from_str(json.dumps(values))
    ids = library.encode(text, add_special_tokens=False).ids
    assert found.encode(text) == ids


@pytest.mark.parametrize("symbols", [False, True])
def test_what_we_export_comes_back(symbols):
    tokenizer = ours(symbols)
    values = values_of(tokenizer)
    found = read(values)
    kinds = [(p.text, p.kind) for p in found.vocabulary.pieces]
    assert kinds == [(p.text, p.kind) for p in tokenizer.vocabulary.pieces]
    assert replace(found.vocabulary, pieces=()) == replace(tokenizer.vocabulary, pieces=())

    @settings(deadline=None, max_examples=100)
    @given(TEXTS)
    def same(text):
        agree(found, values, text)
        assert found.encode(text) == tokenizer.encode(text)

    same()


@needs_original
@pytest.mark.slow  # 32,000 pieces are merged anew
def test_the_original_comes_back():
    original = Tokenizer.load(ORIGINAL)
    found = read(values_of(original))
    for text in ("Who is the 45th President?", "x" + " " * 23 + "y", "\n  if 日本:\n\t😀"):
        assert found.encode(text) == original.encode(text)


def test_the_newer_spelling_of_the_spaces():
    values = values_of(ours(), normalizer=None, pre_tokenizer=METASPACE)
    found = read(values)
    assert found.vocabulary.add_dummy_prefix
    # Before a space the library puts no other; sentencepiece, and so the original, does.
    for text in ("Once upon a time", "", "x  y"):
        agree(found, values, text)
    values["pre_tokenizer"] = METASPACE | {"prepend_scheme": "never"}
    assert not read(values).vocabulary.add_dummy_prefix


def test_tokens_behind_the_vocabulary_are_added():
    values = values_of(ours())
    V = ours().vocab_size
    token = values["added_tokens"][0] | {"id": V, "content": "<|im_end|>"}
    values["added_tokens"].append(token)
    values["added_tokens"].append(token | {"id": V + 1, "content": "<tool>", "special": False})
    found = read(values).vocabulary.pieces[V:]
    assert [(p.text, p.kind) for p in found] == [
        ("<|im_end|>", "control"),
        ("<tool>", "user_defined"),
    ]


def test_other_files_name_the_roles():
    values = values_of(ours())
    values["model"]["vocab"]["<end>"] = values["model"]["vocab"].pop("</s>")
    values["added_tokens"][2]["content"] = "<end>"
    with pytest.raises(UnusableTokenizer, match="names no EOS token"):
        read(values)
    assert read(values, eos_token="<end>").eos_id == 2


def without_a_merge(values):
    cut = next(m for m in reversed(values["model"]["merges"]) if len("".join(m)) > 3)
    values["model"]["merges"].remove(cut)


def far_apart(values):
    values["model"]["merges"].append(values["model"]["merges"].pop(0))
    values["model"]["merges"].insert(0, values["model"]["merges"][-1])


UNUSABLE = {
    "byte-level": (lambda v: v["model"].pop("byte_fallback"), "such as GPT-2's and Llama 3's"),
    "unigram": (lambda v: v["model"].update(type="Unigram"), "of type 'Unigram', not BPE"),
    "dropout": (lambda v: v["model"].update(dropout=0.1), "dropout=0.1"),
    "an incomplete list": (without_a_merge, "its merges are not those of a sentencepiece model"),
    "merges of one piece apart": (far_apart, "comes twice"),
    "lower case": (lambda v: v.update(normalizer={"type": "Lowercase"}), "normalises text"),
    "words cut apart": (lambda v: v.update(pre_tokenizer={"type": "Whitespace"}), "pre-tokenizer"),
    "no bytes": (lambda v: v["model"]["vocab"].update({"@": v["model"]["vocab"].pop("<0x0A>")}),
                 "lacks the byte pieces <0x0A>"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "message"), UNUSABLE.values(), ids=UNUSABLE)
def test_what_no_sentencepiece_model_can_be_is_named(change, message):
    values = values_of(ours())
    change(values)
    with pytest.raises(UnusableTokenizer, match=message):
        read(values)


DAMAGED = {
    "no model": (lambda v: v.pop("model"), "not a tokenizer.json"),
    "no vocabulary": (lambda v: v["model"].update(vocab=[]), "no vocabulary"),
    "a text as an id": (lambda v: v["model"]["vocab"].update(a="x"), "'a' has the invalid id 'x'"),
    "an id twice": (lambda v: v["model"]["vocab"].update(neu=5), "an id twice"),
    "no merges": (lambda v: v["model"].pop("merges"), "no list of merges"),
    "a merge of three": (lambda v: v["model"]["merges"].append(["a", "b", "c"]), "is not a pair"),
    "a merge of nothing": (lambda v: v["model"]["merges"].append("a"), "is not a pair"),
    "a merge to nothing": (lambda v: v["model"]["merges"].append(["z", "z"]), "not make a piece"),
    "added tokens": (lambda v: v.update(added_tokens=[{"id": -1, "content": "x"}]), "added token"),
    "long pieces": (lambda v: v["model"]["vocab"].update({"x" * 9000: 500}), "too long for a tok"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "message"), DAMAGED.values(), ids=DAMAGED)
def test_damage_is_one_line(change, message):
    values = values_of(ours())
    change(values)
    with pytest.raises(InputError, match=message) as caught:
        read(values)
    assert not isinstance(caught.value, UnusableTokenizer)
    assert len(str(caught.value)) < 200


def test_a_tokenizer_is_loaded_from_it_by_path(tmp_path):
    files = hf_tokenizer.files(ours(), 2048, Usage())
    (tmp_path / "tokenizer.json").write_bytes(files["tokenizer.json"])
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        assert Tokenizer.load(path).encode("Once upon") == ours().encode("Once upon")
    (tmp_path / "tokenizer.model").write_bytes(ours().model_bytes)
    assert Tokenizer.load(tmp_path).model_bytes == ours().model_bytes


def test_other_tokenizers_are_told_by_name(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(b"IQ== 0\nIg== 1\n")
    with pytest.raises(UnusableTokenizer, match="is a tiktoken vocabulary, as Llama 3 has"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(ours().model_bytes[:-100])
    with pytest.raises(InputError, match="not a complete sentencepiece model"):
        Tokenizer.load(tmp_path)
