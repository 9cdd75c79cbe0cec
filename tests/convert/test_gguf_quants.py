"""Block formats of ggml, bit by bit against the package that llama.cpp's own scripts use."""

import numpy as np
import pytest

from llama_jax.convert.gguf_quants import QUANTS, Dequantized
from tests.convert.gguf_bytes import any_blocks

gguf = pytest.importorskip("gguf", reason="the oracle is the package of the extra [gguf]")


def meant(name, raw):
    return gguf.dequantize(raw, gguf.GGMLQuantizationType[name])


@pytest.mark.parametrize("name", QUANTS)
def test_every_number_is_that_of_the_package(name):
    quant = QUANTS[name]
    sizes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
    assert (quant.size, quant.block.itemsize) == sizes
    blocks, raw = any_blocks(name, 7, 5)
    found = Dequantized(blocks, quant)
    assert found.shape == (7, 5 * quant.size)
    assert found[...].tobytes() == meant(name, raw).tobytes()


@pytest.mark.parametrize("name", ["Q4_0", "Q6_K"])
def test_parts_are_cut_out_of_the_blocks_that_they_touch(name, monkeypatch):
    blocks, raw = any_blocks(name, 7, 3)
    quant, whole = QUANTS[name], meant(name, raw)
    monkeypatch.setattr("llama_jax.convert.gguf_quants._ROWS_BYTES", 4 * quant.size)  # row by row
    seen = []
    counting = quant._replace(numbers=lambda b: seen.append(len(b)) or quant.numbers(b))
    found = Dequantized(blocks, counting)
    size = quant.size
    for rows, columns in [
        (slice(2, 5), slice(size + 3, 2 * size - 1)),
        (slice(0, 7), slice(size - 1, size + 1)),
        (slice(3, 3), slice(None)),
        (slice(None), slice(5, 5)),
    ]:
        assert np.array_equal(found[rows, columns], whole[rows, columns])
    assert np.array_equal(found[1:3], whole[1:3])
    assert sum(seen) == 3 * 1 + 7 * 2 + 2 * 3
    assert max(seen) <= 3


def test_what_is_not_finite_stays_so():
    blocks, _ = any_blocks("Q8_0", 1, 2)
    blocks["d"] = [[np.inf, np.nan]]
    blocks["qs"][0, 0, :2] = 0, 3
    found = Dequantized(blocks, QUANTS["Q8_0"])[...]
    assert np.isnan(found[0, 0])
    assert found[0, 1] == np.inf
    assert np.isnan(found[0, 32:]).all()
