"""Reading GGUF: files written by hand, sound and hostile."""

import os
import re
import struct
import tracemalloc
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_jax.config import InputError
from llama_jax.convert import gguf
from llama_jax.convert.gguf_quants import QUANTS, Dequantized
from llama_jax.convert.source import tensors
from llama_jax.convert.usage import Usage
from llama_jax.data.sentencepiece_proto import Piece
from llama_jax.data.tokenizer import Tokenizer
from tests.convert.gguf_bytes import (
    ARRAY,
    BOOL,
    F32,
    F64,
    I32,
    KINDS,
    STRING,
    TENSOR_TYPES,
    U8,
    U16,
    U32,
    U64,
    any_blocks,
    file_bytes,
    infos_of,
    q8_0,
    rows_of,
    settings_of,
    vocabulary_of,
)  # fmt: skip
from tests.convert.models import GROUPED, SHAPES, V, assert_same_tensors, source, tokenizer

shapes = pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)
VOCABULARY = tokenizer().vocabulary


def put(folder, config=GROUPED, kind="F32", dtype="float32", **more):
    """The path of a sound file, with some keys changed."""
    values = settings_of(config, **more) | vocabulary_of(VOCABULARY)
    path = folder / "model.gguf"
    path.write_bytes(file_bytes(values, infos_of(source(config, dtype), kind)))
    return path


@shapes
def test_float32_is_read_as_it_was_written(tmp_path, config):
    found = gguf.read(put(tmp_path, config))
    assert found.config == config
    assert_same_tensors(found, source(config))
    assert Tokenizer.from_bytes(found.tokenizer).vocabulary == VOCABULARY


@shapes
def test_bfloat16(tmp_path, config):
    """Norms are float32 in every file; those of a bfloat16 model are its own numbers."""
    found = gguf.read(put(tmp_path, config, "BF16", "bfloat16"))
    assert found.config == replace(config, dtype="bfloat16", param_dtype="bfloat16")
    expected = source(config, "bfloat16")
    for name, layer, _ in tensors(config):
        a, b = found.read(name, layer), expected.read(name, layer)
        assert a.dtype == (np.float32 if name.endswith("norm") else ml_dtypes.bfloat16)
        assert np.array_equal(a.astype(np.float32), b.astype(np.float32))


@pytest.mark.parametrize("kind", ["F16", "Q8_0"])
def test_float16_and_q8_0(tmp_path, kind):
    found, expected = gguf.read(put(tmp_path, GROUPED, kind)), source(GROUPED)
    assert found.config == GROUPED  # float32, which the norms need
    for name, layer, weight in tensors(GROUPED):
        wanted = expected.read(name, layer)
        if len(weight.shape) > 1:
            rows = rows_of(name, wanted)
            meant = rows.astype(np.float16) if kind == "F16" else q8_0(rows)[1]
            read = rows_of(name, found.read(name, layer))
            assert read.dtype == (np.float16 if kind == "F16" else np.float32)
            assert np.array_equal(read, meant)
        else:
            assert np.array_equal(found.read(name, layer), wanted)
    assert any("Q8_0 multiplied out" in note for note in found.changes) == (kind == "Q8_0")


@pytest.mark.parametrize("kind", QUANTS)
def test_every_block_format_is_multiplied_out(tmp_path, kind):
    config = replace(GROUPED, d_model=256, head_dim=64, d_ff=256, num_layers=1)
    infos = infos_of(source(config))
    at = [title for title, *_ in infos].index("blk.0.ffn_up.weight")
    blocks, raw = any_blocks(kind, 256, 256 // QUANTS[kind].size)
    infos[at] = ("blk.0.ffn_up.weight", (256, 256), TENSOR_TYPES[kind], raw.tobytes())
    (tmp_path / "m").write_bytes(file_bytes(settings_of(config), infos))
    found = gguf.read(tmp_path / "m")
    whole = Dequantized(blocks, QUANTS[kind])[...]
    assert np.array_equal(found.read("up", 0), whole.T)
    assert np.array_equal(found.tensor("up", 0)[8:70, 3:5], whole.T[8:70, 3:5])
    assert found.changes[-1] == f"{kind} multiplied out to float32, exactly"


@pytest.mark.parametrize(("kind", "dtype"), [("F16", "float16"), ("BF16", "bfloat16")])
def test_narrow_types_are_kept_where_the_norms_fit_them(tmp_path, kind, dtype):
    assert gguf.read(put(tmp_path, GROUPED, kind, dtype)).config.param_dtype == dtype
    assert gguf.read(put(tmp_path, GROUPED, kind)).config.param_dtype == "float32"


def test_parts_are_cut_out(tmp_path):
    found, expected = gguf.read(put(tmp_path, GROUPED, "Q8_0")), gguf.read(put(tmp_path, GROUPED))
    for source_ in (found, expected):
        whole = source_.read("q", 1)
        part = source_.tensor("q", 1)[8:16, 1:3]
        assert np.array_equal(part, whole[8:16, 1:3])


@pytest.mark.parametrize(
    ("more", "fields"),
    [
        (dict(llama__rope__freq_base=None), dict(rope_theta=10_000.0)),
        (dict(llama__rope__freq_base=(F32, 5e5)), dict(rope_theta=500_000.0)),
        (dict(llama__attention__layer_norm_rms_epsilon=(F32, 1e-6)), dict(norm_eps=1e-6)),
        (dict(llama__rope__dimension_count=None, llama__vocab_size=(U32, V)), {}),
        (
            dict(llama__rope__scaling__type=(STRING, "linear"),
                 llama__rope__scaling__factor=(F32, 4.0)),
            dict(rope_scaling="linear", rope_factor=4.0),
        ),
        (
            dict(llama__rope__scaling__type=(STRING, "yarn"),
                 llama__rope__scaling__factor=(F32, 4.0),
                 llama__rope__scaling__original_context_length=(U32, 12)),
            dict(rope_scaling="yarn", rope_factor=4.0),
        ),
        (dict(llama__expert_count=(U32, 0), llama__attention__key_length=(U32, 8)), {}),
        (dict(llama__rope__scale_linear=(F32, 4.0)), dict(rope_scaling="linear", rope_factor=4.0)),
        (dict(llama__rope__scale_linear=(F32, 1.0)), {}),
        (
            dict(llama__rope__scaling__type=(STRING, "yarn"),
                 llama__rope__scaling__factor=(F32, 1.0),
                 llama__rope__scaling__finetuned=(BOOL, True),
                 llama__rope__scaling__attn_factor=(F32, 1.0)),
            {},
        ),
    ],
)  # fmt: skip
def test_settings(tmp_path, more, fields):
    assert gguf.read(put(tmp_path, **more)).config == replace(GROUPED, **fields)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (dict(general__architecture=(STRING, "qwen2")), "architecture 'qwen2' is not llama"),
        (dict(llama__expert_count=(U32, 8)), "llama.expert_count=8 is not supported, only 0"),
        (dict(llama__attention__sliding_window=(U32, 8)), "attention.sliding_window. of llama"),
        (dict(llama__rope__scaling__type=(STRING, "longrope")), "type='longrope' is not supported"),
        (dict(llama__rope__dimension_count=(U32, 4)), "dimension_count=4 is not supported, only 8"),
        (dict(llama__embedding_length=None), "lacks llama.embedding_length"),
        (dict(llama__block_count=(F32, 2.0)), "block_count=2.0 must be a whole number"),
        (dict(llama__block_count=(U64, 2**60)), "has 21 tensors and llama.block_count=11529215"),
        (dict(llama__feed_forward_length=(ARRAY, (U32, [64, 32]))), "must be a finite number"),
        (dict(llama__attention__head_count=(U32, 0)), "head_count=0 must be positive"),
        (dict(llama__attention__head_count_kv=(U32, 3)), "num_heads=4 must be divisible"),
        (dict(llama__attention__layer_norm_rms_epsilon=(F32, float("nan"))), "finite number"),
        (dict(llama__rope__scaling__type=(STRING, "linear"),
              llama__rope__scaling__factor=(F32, 0.5)), "factor=0.5 must be 1 or more"),
        (dict(llama__rope__scaling__type=(STRING, "yarn"),
              llama__rope__scaling__factor=(F32, 4.0),
              llama__rope__scaling__original_context_length=(U32, 99)), "is not .*factor=4.0"),
        (dict(llama__rope__scale_linear=(F32, 4.0), llama__rope__scaling__factor=(F32, 2.0)),
         "scale_linear=4.0 contradicts"),
        (dict(llama__rope__scaling__attn_factor=(F32, 2.0)), "attn_factor=2.0 is not supported"),
        (dict(llama__rope__freq_base=(F64, 1e300)), "the setting 1e\\+300, which is out of range"),
        (dict(general__alignment=(U32, 24)), "alignment=24 is not a power of two"),
        (dict(llama__block_count=(U32, 1)), "'blk.1.attn_norm.weight' is not part of a Llama"),
        (dict(llama__feed_forward_length=(U32, 32)), r"ffn_gate.weight is \[64, 32\], not \[32, 3"),
    ],
)  # fmt: skip
def test_settings_that_are_refused(tmp_path, more, message):
    with pytest.raises(InputError, match=message):
        gguf.read(put(tmp_path, **more))


def test_missing_and_additional_tensors_are_listed(tmp_path):
    infos = infos_of(source(GROUPED))
    at = [title for title, *_ in infos].index("blk.0.attn_k.weight")
    infos[at] = ("blk.0.attn_q.bias", (32,), "F32", bytes(128))
    (tmp_path / "m").write_bytes(file_bytes(settings_of(GROUPED), infos))
    message = "blk.0.attn_k.weight is missing; 'blk.0.attn_q.bias' is not part of a Llama"
    with pytest.raises(InputError, match=message):
        gguf.read(tmp_path / "m")


TENSOR = ("t", (4, 32), "F32", bytes(512))
KEY = {"k": (U32, 1)}
HUGE = 2**63
HOSTILE = {
    "no magic": (file_bytes(KEY, [TENSOR], magic=b"GGML"), "is not a GGUF file"),
    "nothing": (b"GGUF", "too short"),
    "version": (file_bytes(KEY, [TENSOR], version=1), "GGUF version 1"),
    "other byte order": (file_bytes(KEY, [TENSOR], version=3 << 24), "little-endian"),
    "tensors": (file_bytes(KEY, [TENSOR], counts=(HUGE, 1)), f"states {HUGE} tensors in"),
    "keys": (file_bytes(KEY, [TENSOR], counts=(1, HUGE)), f"states {HUGE} keys in"),
    "a few too many keys": (file_bytes(KEY, [TENSOR], counts=(1, 30)), "unknown type|at most"),
    "key length": (file_bytes(KEY, [])[:24] + struct.pack("<Q", HUGE) + bytes(99), "65535 at most"),
    "string length": (
        file_bytes({"k": (STRING, "")}, [])[:37] + struct.pack("<Q", HUGE) + bytes(99), "at most",
    ),
    "string past the end": (
        file_bytes({"k": (STRING, "")}, [])[:37] + struct.pack("<Q", 120) + bytes(99), "cut short",
    ),
    "array length": (
        file_bytes({"k": (ARRAY, (F32, []))}, [])[:41] + struct.pack("<Q", HUGE) + bytes(99),
        f"states {HUGE} numbers of 'k'",
    ),
    "array of strings": (
        file_bytes({"k": (ARRAY, (STRING, []))}, [])[:41] + struct.pack("<Q", HUGE) + bytes(99),
        f"states {HUGE} strings of 'k'",
    ),
    "arrays in arrays": (file_bytes({"k": (ARRAY, (ARRAY, []))}, [TENSOR]), "list of type 9"),
    "unknown type": (file_bytes({"k": (U8, 1)}, [TENSOR]).replace(
        b"k\0\0\0\0\1", b"k\x63\0\0\0\1"), "unknown type 99"),
    "key twice": (file_bytes({"k": (U32, 1), "l": (U32, 1)}, [TENSOR]).replace(b"l\4", b"k\4"),
                  "the key 'k' twice"),
    "tensor twice": (file_bytes(KEY, [TENSOR, TENSOR]), "the tensor 't' twice"),
    "name": (file_bytes(KEY, [("t" * 65, *TENSOR[1:])]), "has 65 bytes; 64 at most"),
    "no UTF-8": (file_bytes(KEY, [(b"\xff", *TENSOR[1:])]), "not valid UTF-8"),
    "dimensions": (file_bytes(KEY, [("t", (1,) * 5, "F32", bytes(4))]), "has 5 dimensions"),
    "empty": (file_bytes(KEY, [("t", (0, 4), "F32", b"")]), r"the shape \[0, 4\]"),
    "absurd shape": (file_bytes(KEY, [("t", (HUGE, HUGE), "F32", b"")]), "cut short or damaged"),
    "past the end": (file_bytes(KEY, [("t", (4, 33), "F32", bytes(512))]), "cut short or damaged"),
    "offset": (file_bytes(KEY, [(*TENSOR, HUGE)]), "cut short or damaged"),
    "not aligned": (file_bytes(KEY, [(*TENSOR, 4)]), "begins at 4, which is not aligned"),
    "overlap": (file_bytes(KEY, [TENSOR, ("u", *TENSOR[1:], 256)]), "'t' and 'u' overlap"),
    "a table of vectors": (file_bytes(KEY, [("t", (4, 256), 16, bytes(264))]),
                           r"of type IQ2_XXS \(16\), which is not supported: take the model's F16"),
    "no type": (file_bytes(KEY, [("t", (4, 32), 99, bytes(512))]), r"unknown \(99\), which is not"),
    "Q8_0 rows": (file_bytes(KEY, [("t", (4, 33), "Q8_0", bytes(512))]), "no rows of blocks of 32"),
    "many keys": (file_bytes({str(i): (U8, 1) for i in range(10_001)}, [TENSOR]), "10000 are read"),
    "alignment": (file_bytes({"general.alignment": (U32, 0)}, [TENSOR]), "alignment=0"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "message"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_files_are_refused_before_anything_is_allocated(tmp_path, content, message):
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=message) as caught:
            gguf.read(path)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (dict(tokens=None), "tokens is None, and the model has 400 rows"),
        (dict(tokens=(ARRAY, (STRING, ["a"] * 401))), "tokens is 401 strings"),
        (dict(scores=(ARRAY, (F32, [0.0]))), "scores is not a list of 400 numbers"),
        (dict(scores=(ARRAY, (F32, [float("inf")] * V))), "lacks the byte pieces"),
        (dict(token_type=(ARRAY, (I32, [9] * V))), "lacks the byte pieces"),
        (dict(token_type=None), "lacks the byte pieces"),
        (dict(bos_token_id=(U32, V)), "no BOS piece .id 400 is named"),
        (dict(bos_token_id=(STRING, "1")), "bos_token_id is '1'"),
    ],
)
def test_vocabularies_that_cannot_be_kept_do_not_lock_up_the_weights(tmp_path, more, message):
    values = settings_of(GROUPED) | vocabulary_of(VOCABULARY, **more)
    (tmp_path / "m").write_bytes(file_bytes(values, infos_of(source(GROUPED))))
    found = gguf.read(tmp_path / "m")
    assert found.tokenizer is None
    assert re.search(f"tokenizer is left out: .*{message}", found.notes[-1]), found.notes
    assert_same_tensors(found, source(GROUPED))
    named = gguf.read(tmp_path / "m", tokenizer().model_bytes)  # what is inside is not looked at
    assert (named.tokenizer, named.notes) == (tokenizer().model_bytes, ())
    assert gguf.read(tmp_path / "m", None).notes == ()


ODD = {
    "end of turn": (dict(eos_token_id=(U32, 399)), {399: "control"}, "EOS piece, id 399"),
    "kinds are not told": (dict(token_type=None), None, "lacks the byte pieces"),
    "a kind of the future": (
        dict(token_type=(ARRAY, (I32, [KINDS[p.kind] for p in VOCABULARY.pieces[:-1]] + [9]))),
        {}, r"1 pieces of an unknown token_type, such as id 399 \(9\)",
    ),
    "white space": (dict(remove_extra_whitespaces=(BOOL, True)), {}, "remove_extra_whitespaces"),
    "no text": (
        dict(tokens=(ARRAY, (STRING, [*(p.text for p in VOCABULARY.pieces[:-1]), b"\xff"]))),
        {399: "unused"}, "id 399 is not valid Unicode",
    ),
    "fewer pieces than rows": (
        {k: (ARRAY, (kind, [p for p in content[:300]])) for k, (kind, content) in {
            "tokens": (STRING, [p.text for p in VOCABULARY.pieces]),
            "scores": (F32, [p.score for p in VOCABULARY.pieces]),
            "token_type": (I32, [KINDS[p.kind] for p in VOCABULARY.pieces])}.items()},
        {}, "",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("more", "kinds", "said"), ODD.values(), ids=ODD)
def test_odd_vocabularies_are_taken_and_said(tmp_path, more, kinds, said):
    values = settings_of(GROUPED) | vocabulary_of(VOCABULARY, **more)
    (tmp_path / "m").write_bytes(file_bytes(values, infos_of(source(GROUPED))))
    found = gguf.read(tmp_path / "m")
    assert re.search(said, " ".join(found.notes))
    assert bool(found.notes) == bool(said)
    if kinds is None:
        assert "tokenizer is left out" in found.notes[-1]
        assert found.tokenizer is None
        return
    pieces = Tokenizer.from_bytes(found.tokenizer).vocabulary.pieces
    assert {i: pieces[i].kind for i in kinds} == kinds


def test_what_the_file_says_of_use_is_kept(tmp_path):
    template = "{% for m in messages %}{{ m }}{% endfor %}"
    more = {
        "eot_token_id": (U32, 300), "eom_token_id": (U32, 301), "padding_token_id": (U32, 0),
        "add_bos_token": (BOOL, False), "add_eos_token": (BOOL, True),
    }  # fmt: skip
    values = settings_of(GROUPED) | vocabulary_of(VOCABULARY, **more)
    values |= {
        "tokenizer.chat_template": (STRING, template),
        "tokenizer.chat_template.tool_use": (STRING, "x"),
    }
    (tmp_path / "m").write_bytes(file_bytes(values, infos_of(source(GROUPED))))
    found = gguf.read(tmp_path / "m")
    assert found.usage == Usage(
        end_ids=(300, 301),
        add_bos=False,
        chat_template=template,
        special_tokens={"pad_token": "<unk>"},
    )
    assert [note[:24] for note in found.notes] == [
        "Left out: further chat t", "Left out: add_eos_token=",
    ]  # fmt: skip
    values |= {"tokenizer.ggml.eot_token_id": (U32, V)}
    (tmp_path / "m").write_bytes(file_bytes(values, infos_of(source(GROUPED))))
    assert (
        "names [400] as ends of text, which the model has not" in gguf.read(tmp_path / "m").notes[0]
    )


def test_a_description_that_is_no_utf8_does_not_lock_up_the_weights(tmp_path):
    values = settings_of(GROUPED) | {"general.description": (STRING, b"caf\xe9")}
    values |= vocabulary_of(VOCABULARY)
    (tmp_path / "m").write_bytes(file_bytes(values, infos_of(source(GROUPED))))
    found = gguf.read(tmp_path / "m")
    assert found.origin["general.description"] == "caf\ufffd"
    assert found.notes == (
        "'general.description' of m is not valid UTF-8: invalid bytes became U+FFFD.",
    )


def test_factors_of_frequencies_that_change_nothing_are_left_out(tmp_path):
    def put_factors(value):
        raw = np.full(4, value, np.float32).tobytes()
        infos = [*infos_of(source(GROUPED)), ("rope_freqs.weight", (4,), "F32", raw)]
        (tmp_path / "m").write_bytes(file_bytes(settings_of(GROUPED), infos))

    put_factors(1)
    found = gguf.read(tmp_path / "m")
    assert "rope_freqs.weight, which are all 1" in found.notes[0]
    assert_same_tensors(found, source(GROUPED))
    put_factors(8)
    with pytest.raises(InputError, match=r"rope_freqs.weight \(F32\) scales .* as Llama 3.1 does"):
        gguf.read(tmp_path / "m")


# ---- One model in several files


def put_parts(folder, cuts=(5, 12), name="model"):
    """A sound model cut into parts, as llama.cpp's gguf-split does."""
    infos, count = infos_of(source(GROUPED), "Q8_0"), len(cuts) + 1
    values = settings_of(GROUPED) | vocabulary_of(VOCABULARY)
    ends = [0, *cuts, len(infos)]
    for i in range(count):
        split = {"split.no": (U16, i), "split.count": (U16, count),
                 "split.tensors.count": (I32, len(infos))}  # fmt: skip
        part = file_bytes((values if i == 0 else {}) | split, infos[ends[i] : ends[i + 1]])
        (folder / f"{name}-{i + 1:05}-of-{count:05}.gguf").write_bytes(part)
    whole = folder / "whole.gguf"
    whole.write_bytes(file_bytes(values, infos))
    return sorted(folder.glob(f"{name}-*")), whole


@pytest.mark.parametrize("cuts", [(5, 12), (0,)])
def test_parts_are_read_as_one_whichever_is_named(tmp_path, cuts):
    parts, whole = put_parts(tmp_path, cuts)
    expected = gguf.read(whole)
    for part in parts:
        found = gguf.read(part)
        assert replace(found, tensor=expected.tensor, path=whole) == expected
        assert found.path == parts[0]
        assert_same_tensors(found, expected)


def test_parts_that_are_missing_or_others_are_named(tmp_path):
    parts, _ = put_parts(tmp_path)
    (tmp_path / "other").mkdir()
    others, _ = put_parts(tmp_path / "other", (3, 9))
    parts[1].rename(tmp_path / "aside")
    with pytest.raises(
        InputError, match=r"part 3 of 3, and model-00002-of-00003.gguf .* is missing"
    ):
        gguf.read(parts[2])
    with pytest.raises(InputError, match=r"part 2 of 3 of a model under another name"):
        gguf.read(tmp_path / "aside")
    parts[1].write_bytes(others[1].read_bytes())
    with pytest.raises(InputError, match=r"is in another part as well|parts have .* tensors, not"):
        gguf.read(parts[0])
    parts[1].write_bytes(parts[0].read_bytes())
    with pytest.raises(InputError, match=r"00002-of-00003.gguf belongs to a different model"):
        gguf.read(parts[0])


def test_a_tokenizer_keeps_its_kinds_and_ids(tmp_path):
    pieces = list(VOCABULARY.pieces)
    pieces[1], pieces[7] = pieces[7], pieces[1]
    pieces[390] = Piece("[INST]", 0.0, "user_defined")
    pieces[391] = Piece("[PAD391]", 0.0, "unused")
    vocabulary = replace(VOCABULARY, pieces=tuple(pieces), bos_id=7, add_dummy_prefix=False)
    values = settings_of(GROUPED) | vocabulary_of(vocabulary)
    (tmp_path / "m").write_bytes(file_bytes(values, infos_of(source(GROUPED))))
    found = Tokenizer.from_bytes(gguf.read(tmp_path / "m").tokenizer)
    assert found.vocabulary == vocabulary
    assert found.encode("a [INST]", bos=True)[0] == 7
    assert 390 in found.encode("a [INST]")


@pytest.mark.parametrize("model", ["gpt2", None])
def test_a_tokenizer_that_is_not_sentencepieces_is_left_out_and_said(tmp_path, model):
    key = {} if model is None else {"tokenizer.ggml.model": (STRING, model)}
    (tmp_path / "m").write_bytes(file_bytes(settings_of(GROUPED) | key, infos_of(source(GROUPED))))
    found = gguf.read(tmp_path / "m")
    assert found.tokenizer is None
    assert "left out" in found.notes[0]


def test_which_files_are_recognised(tmp_path):
    assert gguf.is_format(put(tmp_path))
    (tmp_path / "other").write_bytes(b"GGU")
    assert not gguf.is_format(tmp_path / "other")
    assert not gguf.is_format(tmp_path)


@pytest.fixture(scope="module")
def valid():
    """A small sound file with every kind of tensor in it, and where its data begins."""
    config = replace(
        GROUPED, vocab_size=262, d_model=32, num_layers=1, num_heads=2, num_kv_heads=1, d_ff=32
    )
    pieces = (*VOCABULARY.pieces[:259], *(Piece(t, 0.0, "normal") for t in ("▁", "a", "▁a")))
    values = settings_of(config) | vocabulary_of(replace(VOCABULARY, pieces=pieces))
    kinds = ("F32", "F16", "BF16", "Q8_0")
    mixed = [
        infos_of(source(config), kinds[i % 4])[i] for i in range(len(infos_of(source(config))))
    ]
    content = file_bytes(values, mixed)
    return content, len(content) - sum(len(raw) + -len(raw) % 32 for *_, raw in mixed)


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_damaged_files_give_whole_tensors_or_one_line(tmp_path_factory, valid, data):
    content, head = bytearray(valid[0]), valid[1]
    near = st.integers(0, 600) | st.integers(head - 900, head) | st.integers(0, len(content))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(near)
        raw = data.draw(st.binary(max_size=9) | st.sampled_from([b"\xff" * 8, b"\0" * 8]))
        content[at : at + data.draw(st.sampled_from([0, len(raw), len(raw), 1, 8, 5000]))] = raw
    path = tmp_path_factory.getbasetemp() / f"damaged{os.getpid()}.gguf"
    path.write_bytes(content)
    try:
        found = gguf.read(path)
    except InputError:
        return
    for name, layer, weight in tensors(found.config):
        assert found.read(name, layer).shape == weight.shape
    if found.tokenizer is not None:
        assert Tokenizer.from_bytes(found.tokenizer).vocab_size == found.config.vocab_size
