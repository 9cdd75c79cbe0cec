"""tokenizer.bin in both directions; ids held against llama2c's own merge rule (run_c.py)."""

import os
import struct
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_jax.config import InputError
from llama_jax.convert import llama2c
from llama_jax.convert.llama2c_tokenizer import differences, read_tokenizer, write_tokenizer
from llama_jax.data.sentencepiece_proto import Piece, Vocabulary
from llama_jax.data.tokenizer import Tokenizer
from tests.convert.models import GROUPED, V, source, tokenizer
from tests.convert.run_c import Run
from tests.convert.test_llama2c import REAL, needs_real

# No U+2581, which sentencepiece takes for a space, and no zero byte, which ends a text in C.
CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\u2581\0")
TEXTS = st.lists(
    st.text(CHARACTERS, max_size=8)
    | st.sampled_from(
        ["Once upon a time", " the", "  ", "\n", "aaaa", "é", "日本", "<s>", "<0x0A>"]
    ),
    max_size=8,
).map("".join)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """llama2.c with a tokenizer of ours, and that tokenizer as it comes back."""
    folder = tmp_path_factory.mktemp("tokenizer")
    llama2c.write(source(GROUPED), folder, "model.bin", "0")
    return Run(folder / "model.bin", folder / "tokenizer.bin"), Tokenizer.from_bytes(
        read_tokenizer(folder / "tokenizer.bin")[0]
    )


@settings(deadline=None, max_examples=500)
@given(text=TEXTS)
def test_ids_are_those_of_llama2c_for_any_text(run, text):
    program, again = run
    ids = program.encode(text)
    assert tokenizer().encode(text, bos=True) == ids
    assert again.encode(text, bos=True) == ids


@needs_real
def test_ids_are_those_of_llama2c_with_the_original_vocabulary():
    program = Run(REAL / "v0.bin", REAL / "tokenizer.bin")
    model, said = read_tokenizer(REAL / "tokenizer.bin")
    again = Tokenizer.from_bytes(model)
    assert said == []

    @settings(deadline=None, max_examples=500)
    @given(text=TEXTS)
    def same(text):
        assert again.encode(text, bos=True) == program.encode(text)

    same()


def with_pieces(*texts):
    """A vocabulary of bytes, these pieces in falling order of score, and their characters."""
    reserved = tokenizer().vocabulary.pieces[:259]
    single = sorted({c for text in texts for c in text} | {"\u2581"})
    normal = [*(t for t in texts if len(t) > 1), *single]
    return Vocabulary(
        pieces=(*reserved, *(Piece(t, -float(i), "normal") for i, t in enumerate(normal)))
    )


@settings(deadline=None, max_examples=100)
@given(
    pieces=st.lists(st.text("ab\u2581", min_size=2, max_size=4), max_size=12, unique=True),
    ties=st.booleans(),
    texts=st.lists(st.text("ab ", max_size=12), max_size=8),
)
def test_ids_are_equal_for_any_vocabulary_and_ties(tmp_path_factory, pieces, ties, texts):
    """Pieces that no merge reaches, overlapping ones, equal scores: the first of equals wins."""
    vocabulary = with_pieces("a", "b", *pieces)
    if ties:
        level = tuple(p._replace(score=-(len(p.text) // 2)) for p in vocabulary.pieces)
        vocabulary = replace(vocabulary, pieces=level)
    ours = Tokenizer.from_vocabulary(vocabulary)
    folder = tmp_path_factory.getbasetemp()
    write_tokenizer(folder / "any.bin", ours.model_bytes, len(vocabulary.pieces))
    program = Run.__new__(Run)
    program.V = len(vocabulary.pieces)
    program.read_tokenizer((folder / "any.bin").read_bytes())
    for text in texts:
        assert ours.encode(text, bos=True) == program.encode(text)


def test_records_as_llama2c_writes_them(tmp_path):
    write_tokenizer(tmp_path / "t.bin", tokenizer().model_bytes, V)
    content = (tmp_path / "t.bin").read_bytes()
    pieces = tokenizer().vocabulary.pieces
    assert content[4:].startswith(struct.pack("<fI", 0, 5) + b"<unk>" + struct.pack("<fI", 0, 5))
    assert struct.pack("<fI", 0, 5) + b"\n<s>\n" + struct.pack("<fI", 0, 6) + b"\n</s>\n" in content
    piece = next(p for p in pieces if p.text == "\u2581the")
    assert struct.pack("<fI", piece.score, 4) + b" the" in content
    longest = max(len(p.text.replace("\u2581", " ").encode()) for p in pieces)
    assert struct.unpack_from("<I", content) == (longest,)


def test_a_model_with_more_rows_than_pieces(tmp_path):
    """Records that no text reaches; run wants one for each row."""
    write_tokenizer(tmp_path / "t.bin", tokenizer().model_bytes, V + 2)
    assert (tmp_path / "t.bin").read_bytes().endswith(f"<unused_{V + 1}>".encode())
    again = Tokenizer.from_bytes(read_tokenizer(tmp_path / "t.bin")[0])
    assert again.vocabulary.pieces == tokenizer().vocabulary.pieces  # and no others
    text = f"Once <unused_{V}> upon"
    assert again.encode(text) == tokenizer().encode(text)


def test_differences_are_told():
    assert differences(tokenizer().vocabulary) == []
    lacks_b = with_pieces("ab")
    lacks_b = replace(lacks_b, pieces=tuple(p for p in lacks_b.pieces if p.text != "b"))
    assert "1 pieces, such as 'ab', have characters that are no pieces" in differences(lacks_b)[0]
    (said,) = differences(with_pieces("<unk", ">"))
    assert "text can become the pieces <unk>" in said
    (said,) = differences(with_pieces("<0x41>b"))
    assert "text can become the pieces <0x41>b" in said


def records(*pairs, longest=30):
    return struct.pack("<I", longest) + b"".join(
        struct.pack("<fI", score, len(raw)) + raw for score, raw in pairs
    )


RESERVED = [(0.0, b"<unk>"), (0.0, b"\n<s>\n"), (0.0, b"\n</s>\n")] + [
    (0.0, f"<0x{b:02X}>".encode()) for b in range(256)
]
HOSTILE = {
    "nothing": (b"", "cut short: it has 0 bytes"),
    "half a record": (records((0.0, b"<unk>")) + b"\0\0", "cut short in record 1"),
    "a long text": (struct.pack("<IfI", 30, 0.0, 2**32 - 1), "record 0 has 4294967295 bytes"),
    "a text past the end": (struct.pack("<IfI", 30, 0.0, 9) + b"abc", "and 3 are left"),
    "longer than stated": (records((0.0, b"<unk>"), longest=4), "longest has 4 as stated"),
    "too few": (records(*RESERVED[:9]), "too few to hold all bytes"),
    "bare bytes": (records(*RESERVED[:3], *[(0.0, b"\0")] * 257), "older files"),
    "no UTF-8": (records(*RESERVED, (0.0, b"\xff")), "record 259 is not valid UTF-8"),
    "no space": (records(*RESERVED, (0.0, b"a")), "no piece for a space"),
    "a zero byte": (records(*RESERVED, (0.0, b"\0")), "U\\+2581 or a zero byte"),
    "twice": (records(*RESERVED, (0.0, b" "), (0.0, b" ")), "ids 259 and 260 are both"),
    "empty": (records(*RESERVED, (0.0, b" "), (0.0, b"")), "id 260 is ''"),
    "no score": (records(*RESERVED, (float("nan"), b" ")), "id 259 is '.', nan"),
}


@pytest.mark.parametrize(("content", "message"), HOSTILE.values(), ids=HOSTILE)
def test_damaged_files_are_named(tmp_path, content, message):
    (tmp_path / "t.bin").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_tokenizer(tmp_path / "t.bin")


@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_damaged_files_give_a_tokenizer_or_one_line(tmp_path_factory, data):
    content = bytearray(records(*RESERVED, (0.0, b" "), (-1.0, b"a"), (-2.0, " é".encode())))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content)) | st.integers(len(content) - 40, len(content)))
        raw = data.draw(st.binary(max_size=5))
        content[at : at + data.draw(st.sampled_from([0, len(raw), 1, 4, 100]))] = raw
    path = tmp_path_factory.getbasetemp() / f"damaged{os.getpid()}.bin"
    path.write_bytes(content)
    try:
        model, _ = read_tokenizer(path)
    except InputError:
        return
    assert Tokenizer.from_bytes(model).vocab_size > 259


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(add_dummy_prefix=False), "puts no space before a text"),
        (dict(bos_id=2, eos_id=1), r"unk, bos and eos at \(0, 2, 1\)"),
    ],
)
def test_rules_that_tokenizer_bin_cannot_hold(tmp_path, change, message):
    model = Tokenizer.from_vocabulary(replace(tokenizer().vocabulary, **change)).model_bytes
    with pytest.raises(InputError, match=message):
        write_tokenizer(tmp_path / "t.bin", model, V)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["user_defined", "control", "unused"])
def test_kinds_that_tokenizer_bin_cannot_hold(tmp_path, kind):
    pieces = list(tokenizer().vocabulary.pieces)
    pieces[300] = pieces[300]._replace(kind=kind)
    vocabulary = replace(tokenizer().vocabulary, pieces=tuple(pieces))
    model = Tokenizer.from_vocabulary(vocabulary).model_bytes
    with pytest.raises(InputError, match=f"has {kind} at id 300, not normal"):
        write_tokenizer(tmp_path / "t.bin", model, V)


def test_fewer_rows_than_pieces(tmp_path):
    with pytest.raises(InputError, match=f"has {V} pieces for {V - 1} rows"):
        write_tokenizer(tmp_path / "t.bin", tokenizer().model_bytes, V - 1)
