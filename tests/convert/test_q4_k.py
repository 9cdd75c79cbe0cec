"""Q4_K out: what the `gguf` package reads of it, how near it is, and its file."""

import ctypes
import importlib.util
import platform
from pathlib import Path

import numpy as np
import pytest

from llama_jax.convert import gguf, gguf_quants, q4_k
from llama_jax.convert.source import tensors
from tests.convert.models import GROUPED, source
from tests.convert.test_gguf_writer import written

package = pytest.importorskip("gguf")


def drawn(seed, rows=3, inputs=512, scale=1.0):
    return (np.random.default_rng(seed).normal(size=(rows, inputs)) * scale).astype(np.float32)


def ours(rows):
    """The numbers that the blocks stand for."""
    quant = gguf_quants.QUANTS["Q4_K"]
    blocks = q4_k.quantize(rows).reshape(-1).view(quant.block)
    return quant.numbers(blocks).reshape(rows.shape)


def package_reads(data):
    return package.quants.dequantize(data, package.GGMLQuantizationType.Q4_K)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 300.0])
def test_the_package_reads_the_numbers_that_we_mean(scale):
    rows = drawn(0, scale=scale)
    data = q4_k.quantize(rows)
    assert data.shape == (3, 2 * 144)
    np.testing.assert_array_equal(package_reads(data), ours(rows))


def test_every_code_is_the_nearest_of_the_sixteen_of_its_part():
    rows = drawn(1)
    quant = gguf_quants.QUANTS["Q4_K"]
    blocks = q4_k.quantize(rows).reshape(-1).view(quant.block)
    scales, offsets = gguf_quants._scales_and_offsets(blocks)
    grid = scales[..., None] * np.arange(16, dtype=np.float32) - offsets[..., None]
    parts = rows.reshape(*scales.shape, 32)
    nearest = np.abs(parts[..., None] - grid[:, :, None]).min(-1)
    np.testing.assert_allclose(np.abs(ours(rows).reshape(parts.shape) - parts), nearest, atol=1e-5)


def test_it_is_nearer_than_q4_0_and_than_scales_of_the_range():
    rows = drawn(2, rows=16)
    kind = package.GGMLQuantizationType.Q4_0
    q4_0 = package.quants.dequantize(package.quants.quantize(rows, kind), kind)
    parts = rows.reshape(-1, 32)
    low = np.minimum(parts.min(1, keepdims=True), 0)
    step = (parts.max(1, keepdims=True) - low) / 15
    plain = np.rint((parts - low) / step) * step + low  # scales in full precision

    def error(found):
        return np.sqrt(np.mean((found.reshape(rows.shape) - rows) ** 2))

    assert error(ours(rows)) < 0.87 * error(q4_0)
    assert error(ours(rows)) < error(plain)


def ggml_quantizes(rows):
    """The blocks that llama.cpp's own quantiser makes, from the library in xllamacpp."""
    found = importlib.util.find_spec("xllamacpp")
    if found is None:
        pytest.skip("xllamacpp, which holds llama.cpp, is not installed")
    library = ctypes.CDLL(str(Path(found.submodule_search_locations[0]) / "xllamacpp.abi3.so"))
    quantize, size = library.ggml_quantize_chunk, ctypes.c_int64
    quantize.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 2, *[size] * 3, ctypes.c_void_p]
    quantize.restype = ctypes.c_size_t
    n, inputs = rows.shape
    made = np.zeros((n, inputs // 256 * 144), np.uint8)
    kind = package.GGMLQuantizationType.Q4_K
    assert quantize(kind, rows.ctypes.data, made.ctypes.data, 0, n, inputs, None) == made.nbytes
    return made


DRAWN = drawn(3, rows=32)
ROWS = {
    "normal": DRAWN,
    "small": DRAWN * np.float32(0.02),
    "large": DRAWN * np.float32(300),
    "positive": np.abs(DRAWN),
    "negative": -np.abs(DRAWN),
    "sparse": DRAWN * (np.abs(DRAWN) > 2),
    "tiny": np.full((1, 256), 1e-39, np.float32),
    "tiny range": np.linspace(-1e-38, 1e-38, 256, dtype=np.float32)[None],
    "zero": np.zeros((1, 256), np.float32),
    "one": np.full((1, 256), 0.7, np.float32),
    "one below 0": np.full((1, 256), -0.7, np.float32),
    "few": np.repeat(np.float32([[0, 1, -2, 3]]), 64, axis=1),
}


@pytest.mark.parametrize("name", ROWS)
def test_the_blocks_are_those_of_llama_cpp_s_own_quantiser(name):
    rows = ROWS[name]
    made, theirs = q4_k.quantize(rows), ggml_quantizes(rows)
    if platform.machine() == "x86_64":
        np.testing.assert_array_equal(made, theirs)
    # Compilers for others round a product and a sum at once, which moves a few codes.
    errors = [np.linalg.norm(package_reads(found) - rows) for found in (made, theirs)]
    assert errors[0] <= 1.01 * errors[1]


@pytest.mark.parametrize("name", ["tiny", "tiny range", "zero", "one", "one below 0", "few"])
def test_numbers_of_which_a_part_has_one_alone(name):
    rows = ROWS[name]
    np.testing.assert_allclose(ours(rows), rows, atol=3e-3 * max(1, np.abs(rows).max()))


def test_a_file_of_it_is_read_again_and_says_what_was_rounded(tmp_path):
    from dataclasses import replace

    config = replace(GROUPED, d_model=256, head_dim=64, d_ff=160)
    model = source(config)
    path, said = written(tmp_path, model, "q4_k")
    assert any("4 bits in blocks of 256 (Q4_K)" in line for line in said)
    assert any(line.startswith("down rounded to Q8_0") for line in said)
    kinds = {tensor.name: tensor for tensor in package.GGUFReader(path).tensors}
    found = gguf.read(path)
    for name, layer, weight in tensors(config):
        tensor = kinds[gguf.NAMES[name].format(layer)]
        if len(weight.shape) == 1:
            assert tensor.tensor_type.name == "F32"
        elif layer is None or name == "down":  # its rows have 160 numbers
            assert tensor.tensor_type.name == "Q8_0"
        else:
            assert tensor.tensor_type.name == "Q4_K"
            exact, read = model.read(name, layer), found.read(name, layer)
            assert 0.001 < np.std(read - exact) / np.std(exact) < 0.1
