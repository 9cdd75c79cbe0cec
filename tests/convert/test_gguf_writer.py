"""Writing GGUF, where the `gguf` package is installed: read back by us, and by that package."""

import sys
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax.config import InputError, Quantization
from llama_jax.convert import gguf, gguf_writer
from llama_jax.convert.source import tensors, to_rows
from llama_jax.data.tokenizer import Tokenizer
from llama_jax.model.quantize import pack
from llama_jax.model.weights import adapter_inputs
from llama_jax.ops.rope import rope_frequencies
from tests.convert.gguf_bytes import infos_of, q8_0
from tests.convert.models import GROUPED, SHAPES, V, assert_same_tensors, source, tokenizer

shapes = pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)


@pytest.fixture(scope="module")
def package():
    return pytest.importorskip("gguf", reason="writing GGUF needs the extra [gguf]")


def written(folder, model, variant="", name="model.gguf"):
    """The path of a model, and what writing it said."""
    said = gguf_writer.write(model, folder, name, variant)
    return folder / name, said


@shapes
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_round_trips_are_exact(package, tmp_path, config, dtype):
    model = source(config, dtype)
    found = gguf.read(written(tmp_path, model)[0])
    compute = "bfloat16" if dtype == "bfloat16" else "float32"
    assert found.config == replace(config, dtype=compute, param_dtype=dtype)
    assert Tokenizer.from_bytes(found.tokenizer).vocabulary == tokenizer().vocabulary
    if dtype == "float32":
        assert_same_tensors(found, model)
        return
    for name, layer, _ in tensors(config):  # norms come as float32 with the same numbers
        wanted = model.read(name, layer)
        assert found.read(name, layer).astype(wanted.dtype).tobytes() == wanted.tobytes()


@shapes
def test_q8_0_is_rounded_once(package, tmp_path, config):
    path, said = written(tmp_path, source(config), "q8_0")
    assert "matrices rounded to int8 in blocks of 32 (Q8_0)" in said
    found = gguf.read(path)
    wanted = {title: raw for title, _, _, raw in infos_of(source(config), "Q8_0")}
    again, _ = written(tmp_path, found, "q8_0", "again.gguf")
    reader, second = package.GGUFReader(path), package.GGUFReader(again)
    for tensor, same in zip(reader.tensors, second.tensors, strict=True):
        assert same.data.tobytes() == tensor.data.tobytes()
        mine = np.frombuffer(wanted[tensor.name], np.int8)
        differ = mine != tensor.data.reshape(-1).view(np.int8)
        # A tie between two int8 can fall either way: ggml multiplies by 1 / scale.
        assert differ.mean() < 1e-3, tensor.name


@shapes
def test_q4_0_is_that_of_the_package_and_of_our_own_int4(package, tmp_path, config):
    """Each block also holds the codes that `llama-jax quantize --weights int4` makes of it."""
    model = source(config)
    path, said = written(tmp_path, model, "q4_0")
    assert any("4 bits in blocks of 32 (Q4_0)" in line for line in said)
    kinds = {tensor.name: tensor for tensor in package.GGUFReader(path).tensors}
    found = gguf.read(path)
    quant = Quantization(weights="int4", group=32)
    for name, layer, weight in tensors(config):
        tensor = kinds[gguf.NAMES[name].format(layer)]
        if layer is None or len(weight.shape) == 1:
            assert tensor.tensor_type.name == ("Q8_0" if len(weight.shape) > 1 else "F32")
            continue
        assert tensor.tensor_type.name == "Q4_0"
        rows = to_rows(name, model.read(name, layer), interleaved=True)
        expected = package.quants.quantize(np.ascontiguousarray(rows), tensor.tensor_type)
        assert tensor.data.tobytes() == expected.tobytes()
        packed = pack(jnp.asarray(model.read(name, layer)), quant, adapter_inputs(name))
        np.testing.assert_array_equal(packed.dense(), found.read(name, layer))
    (tmp_path / "second").mkdir()
    again, _ = written(tmp_path / "second", found, "q4_0")
    assert again.read_bytes() == path.read_bytes()


@shapes
@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0"])
def test_the_package_reads_what_was_written(package, tmp_path, config, kind):
    dtype = {"F16": "float16", "BF16": "bfloat16"}.get(kind, "float32")
    path, _ = written(tmp_path, source(config, dtype), "q8_0" if kind == "Q8_0" else "")
    reader = package.GGUFReader(path)
    expected = {
        title: (shape, raw) for title, shape, _, raw in infos_of(source(config, dtype), kind)
    }
    assert {tensor.name for tensor in reader.tensors} == set(expected)
    for tensor in reader.tensors:
        shape, raw = expected[tensor.name]
        assert tuple(reversed(tensor.shape.tolist())) == shape
        assert tensor.tensor_type.name == (kind if len(shape) == 2 else "F32")
        if kind != "Q8_0":
            assert tensor.data.tobytes() == raw

    def value(key):
        return reader.fields[key].contents()

    assert value("general.architecture") == "llama"
    assert value("llama.attention.head_count_kv") == config.num_kv_heads
    assert value("llama.rope.dimension_count") == config.head_dim
    assert value("tokenizer.ggml.model") == "llama"
    assert value("tokenizer.ggml.tokens") == [p.text for p in tokenizer().vocabulary.pieces]
    assert value("tokenizer.ggml.bos_token_id") == 1
    assert value("tokenizer.ggml.add_bos_token") is True


@pytest.mark.parametrize("scaling", ["linear", "yarn"])
def test_context_extensions(package, tmp_path, scaling):
    config = replace(GROUPED, rope_scaling=scaling, rope_factor=3.0)
    assert gguf.read(written(tmp_path, source(config))[0]).config == config


def test_ntk_is_told_as_a_larger_base(package, tmp_path):
    config = replace(GROUPED, rope_scaling="ntk", rope_factor=4.0)
    path, said = written(tmp_path, source(config))
    assert any("NTK-aware scaling written as rotary base" in line for line in said)
    found = gguf.read(path).config
    assert found.rope_scaling == "none"

    def frequencies(c):
        return rope_frequencies(
            c.head_dim, theta=c.rope_theta, scaling=c.rope_scaling, factor=c.rope_factor,
            pretrained_len=c.pretrained_seq_len,
        )[0]  # fmt: skip

    np.testing.assert_allclose(frequencies(found), frequencies(config), rtol=1e-6)


def test_rows_that_blocks_do_not_fill_are_float16(package, tmp_path):
    config = replace(GROUPED, d_ff=44)
    path, said = written(tmp_path, source(config), "q8_0")
    assert "down rounded to F16: rows are not a multiple of 32" in said
    assert gguf.read(path).read("down", 0).dtype == np.float16


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e7])
def test_what_q8_0_cannot_express(package, tmp_path, value):
    model = source(GROUPED)
    embed = model.read("embed").copy()
    embed[3, 5] = value
    broken = replace(model, tensor=lambda *at: embed if at[0] == "embed" else model.tensor(*at))
    with pytest.raises(InputError, match="embed holds numbers that are not finite, or too large"):
        written(tmp_path, broken, "q8_0")


def test_a_model_with_more_rows_than_pieces(package, tmp_path):
    config = replace(GROUPED, vocab_size=V + 2)
    found = gguf.read(written(tmp_path, source(config))[0])
    pieces = Tokenizer.from_bytes(found.tokenizer).vocabulary.pieces
    assert pieces == tokenizer().vocabulary.pieces  # rows that fill the table up are none
    reader = package.GGUFReader(tmp_path / "model.gguf")
    assert reader.fields["tokenizer.ggml.tokens"].contents()[V:] == ["[PAD400]", "[PAD401]"]
    assert reader.fields["tokenizer.ggml.token_type"].contents()[V:] == [5, 5]


def test_without_a_tokenizer(package, tmp_path):
    model = replace(source(GROUPED), tokenizer=None)
    assert gguf.read(written(tmp_path, model)[0]).tokenizer is None


def test_without_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(InputError, match="needs the package gguf: pip install gguf"):
        written(tmp_path, source(GROUPED))
    assert not list(tmp_path.iterdir())


def test_q8_0_of_the_tests_is_that_of_the_package(package):
    """So that the files which the tests of reading write are such as llama.cpp writes."""
    rows = np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32)
    raw = package.quants.quantize(rows, package.GGMLQuantizationType.Q8_0)
    meant = package.quants.dequantize(raw, package.GGMLQuantizationType.Q8_0)
    ours_raw, ours = q8_0(rows)
    assert len(ours_raw) == raw.nbytes
    assert np.abs(ours - meant).max() <= np.abs(rows).max() / 127 * 1.01
    assert np.mean(ours != meant) < 1e-2
