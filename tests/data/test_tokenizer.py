import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_jax.config import InputError
from llama_jax.data.corpora import tales
from llama_jax.data.tokenizer import Tokenizer, train_tokenizer

ORIGINAL = Path(
    os.environ.get("LLAMA_TOKENIZER")
    or Path(__file__).resolve().parents[3] / "shared/data/tokenizer.model"
)
needs_original = pytest.mark.skipif(not ORIGINAL.exists(), reason=f"no tokenizer at {ORIGINAL}")
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581"), max_size=60)


@needs_original
def test_original_ids():
    tokenizer = Tokenizer.load(ORIGINAL)
    ids = tokenizer.encode("Who is the 45th President of the United States?", bos=True)
    assert ids == [1, 11644, 338, 278, 29871, 29946, 29945, 386, 7178, 310, 278, 3303, 3900, 29973]
    assert tokenizer.vocab_size == 32_000
    assert tokenizer.fingerprint.startswith("9e556afd44213b6b")


@needs_original
def test_original_round_trip():
    tokenizer = Tokenizer.load(ORIGINAL)
    for text in [tales.story(0), "  two\n\n spaces ", "hé 日本 😀 \t\x00", ""]:
        assert tokenizer.decode(tokenizer.encode(text, bos=True, eos=True)) == text


def test_reserved_ids(tokenizer):
    ids = tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id
    assert ids == (0, 1, 2, -1)
    assert [tokenizer.piece(i) for i in range(4)] == ["<unk>", "<s>", "</s>", "<0x00>"]
    assert tokenizer.piece(258) == "<0xFF>"


def test_control_ids_come_from_flags_only(tokenizer):
    text = "<s> [INST] </s><unk> <0x0A>"
    ids = tokenizer.encode(text)
    assert not {0, 1, 2} & set(ids)
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode(text, bos=True, eos=True) == [1, *ids, 2]


@settings(deadline=None, max_examples=100)
@given(text=TEXT)
def test_text_survives_and_bytes_add_up(tokenizer, text):
    ids = tokenizer.encode(text, bos=True, eos=True)
    assert tokenizer.decode(ids) == text
    assert tokenizer.byte_lengths.dtype == np.int32
    dummy_prefix = 1 if text else 0
    assert tokenizer.byte_lengths[ids].sum() == len(text.encode()) + dummy_prefix


@settings(deadline=None, max_examples=60)
@given(text=st.one_of(TEXT, st.sampled_from(["Once upon a time, Mia ran home.", "  two  ", "a b"])),
       cut=st.integers(0, 60))  # fmt: skip
def test_continuation_is_exact(tokenizer, text, cut):
    ids = tokenizer.encode(text, bos=True)
    prompt, rest = ids[: cut + 1], ids[cut + 1 :]
    both = tokenizer.decode_bytes(prompt) + tokenizer.decode_bytes(rest)
    assert both == tokenizer.decode_bytes(ids)
    if not both.decode(errors="ignore") or "\ufffd" in tokenizer.decode(prompt):
        return  # cut inside a character
    assert tokenizer.decode(prompt) + tokenizer.decode(rest, after=prompt) == text


@settings(deadline=None, max_examples=100)
@given(text=TEXT, sizes=st.lists(st.integers(0, 5), min_size=1, max_size=8), cut=st.booleans())
def test_decoding_in_pieces_is_decoding(tokenizer, text, sizes, cut):
    ids = tokenizer.encode(text, bos=True) + [3 + 0xF0] * cut  # a character cut at the end
    for after in ([], ids[:3]):
        decode, pieces, at = tokenizer.decoder(after=after), [], 0
        for size in sizes:
            pieces.append(decode(ids[at : at + size]))
            at += size
        pieces.append(decode(ids[at:], final=True))
        assert "".join(pieces) == tokenizer.decode(ids, after=after)
        # No character is cut between pieces.
        assert "".join(pieces).count("\ufffd") == text.count("\ufffd") + cut


def test_decode_agrees_with_sentencepiece(tokenizer):
    processor = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.model_bytes)
    for text in [
        tales.story(3),
        "  spaces  here ",
        "tab\tnewline\n\nend",
        "hé 日本 1",
    ]:
        ids = tokenizer.encode(text)
        assert ids == processor.encode(text)
        assert tokenizer.decode(ids) == processor.decode(ids)


def test_digits_are_split_and_whitespace_kept():
    model = train_tokenizer(["in 2023 and 2023 and 2024\n    x\n    y"] * 9, 280)
    assert not [
        model.piece(i) for i in range(259, 280) if sum(map(str.isdigit, model.piece(i))) > 1
    ]
    assert model.decode(model.encode("  a   b")) == "  a   b"


def test_batch_equals_single(tokenizer):
    texts = [tales.story(i) for i in range(5)]
    batch = tokenizer.encode_batch(texts, bos=True, eos=True)
    assert batch == [tokenizer.encode(text, bos=True, eos=True) for text in texts]


def test_save_load_pickle(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    tokenizer.save(tmp_path / "deep" / "other.model")
    assert Tokenizer.load(tmp_path) == tokenizer
    assert Tokenizer.load(str(tmp_path / "deep" / "other.model")) == tokenizer
    assert pickle.loads(pickle.dumps(tokenizer)).encode("Mia") == tokenizer.encode("Mia")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["deep", "tokenizer.model"]


def test_training_is_deterministic(tokenizer):
    again = train_tokenizer((tales.story(i) for i in range(300)), tokenizer.vocab_size)
    assert again.model_bytes == tokenizer.model_bytes


def test_long_lines_are_learnt_from():
    model = train_tokenizer(["abcabc " * 20_000 + "xyzxyz " * 20_000], 274)  # a line of 280 kB
    assert len(model.encode("abcabc")) < 4
    assert len(model.encode("xyzxyz")) < 4


def test_bad_text(tokenizer):
    with pytest.raises(InputError, match=r"U\+D800 at character 3"):
        tokenizer.encode("abc\ud800def")
    with pytest.raises(InputError, match="lone surrogate"):
        train_tokenizer(["\udfff"], 300)


@pytest.mark.parametrize("token", [-1, 400, 10**6])
def test_id_out_of_range(tokenizer, token):
    with pytest.raises(InputError, match=f"{token} is out of range"):
        tokenizer.decode([5, token])


@pytest.mark.parametrize(
    ("texts", "size", "message"),
    [
        ([], 300, "no text"),
        (["", " \n "], 300, "no text"),
        (["aaa bbb"], 100, "259 pieces are reserved"),
        (["the cat sat"] * 3, 5000, r"largest that it supports is \d+"),
        (["".join(map(chr, range(97, 123)))], 262, r"at least 28\d"),
    ],
)
def test_impossible_training(texts, size, message):
    with pytest.raises(InputError, match=message):
        train_tokenizer(texts, size)


def test_largest_vocabulary_is_told(tokenizer):
    texts = ["the cat sat on the mat"] * 3
    with pytest.raises(InputError) as caught:
        train_tokenizer(texts, 5000)
    largest = int(str(caught.value).split()[-1])
    assert train_tokenizer(texts, largest).vocab_size == largest


def test_broken_files(tokenizer, tmp_path):
    path = tmp_path / "tokenizer.model"
    with pytest.raises(InputError, match="does not exist"):
        Tokenizer.load(path)
    model = tokenizer.model_bytes
    for content in (b"", b"junk", model[:100], model[: len(model) // 2], model[:-5]):
        path.write_bytes(content)
        with pytest.raises(InputError, match="not a complete sentencepiece model"):
            Tokenizer.load(tmp_path)


def test_a_piece_that_is_no_text_is_refused(tokenizer):
    model = tokenizer.model_bytes
    piece = "\u2581the".encode()
    assert piece in model
    with pytest.raises(InputError, match=r"odd\.model"):
        Tokenizer.from_bytes(model.replace(piece, piece[:-1] + b"\xe4"), "odd.model")
