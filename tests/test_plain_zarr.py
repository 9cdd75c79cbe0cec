"""Plain Zarr: parts of arrays, and what is left to orbax."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import tensorstore as ts
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_jax import plain_zarr

SHAPE = (3, 4, 6)


def stored(folder, dtype="float32", chunks=(1, 4, 6), **changes):
    """An array as tensorstore writes it, and its values."""
    kind = jnp.dtype(dtype)
    values = np.random.default_rng(0).standard_normal(SHAPE).astype(kind)
    metadata = {"shape": SHAPE, "chunks": chunks, "compressor": None}
    spec = {
        "driver": "zarr",
        "kvstore": f"file://{folder}/",
        "metadata": metadata | changes,
        "dtype": dtype,
    }
    ts.open(spec, create=True).result().write(values).result()
    return values


cut = st.tuples(*(st.tuples(st.integers(0, n), st.integers(0, n)).map(sorted) for n in SHAPE))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("chunks", [(1, 4, 6), SHAPE])
def test_parts_are_those_that_tensorstore_wrote(tmp_path, dtype, chunks):
    values = stored(tmp_path, dtype, chunks)
    array = plain_zarr.find(tmp_path, SHAPE, dtype)
    assert array is not None

    @settings(max_examples=50, deadline=None)
    @given(cut)
    def parts(bounds):
        index = tuple(slice(*pair) for pair in bounds)
        found = array.read(index)
        assert found.dtype == values.dtype
        assert found.shape == values[index].shape
        assert found.tobytes() == values[index].tobytes()

    parts()
    for layer in range(3) if chunks[0] == 1 else [None]:
        expected = values if layer is None else values[layer]
        assert array.map(layer).tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    "changes",
    [{"compressor": {"id": "zlib", "level": 1}}, {"order": "F"}, {"chunks": (3, 2, 6)}],
)
def test_other_layouts_are_left_alone(tmp_path, changes):
    stored(tmp_path, **changes)
    assert plain_zarr.find(tmp_path, SHAPE, "float32") is None


def test_what_is_no_such_array_is_left_alone(tmp_path):
    stored(tmp_path)
    assert plain_zarr.find(tmp_path / "gone", SHAPE, "float32") is None
    assert plain_zarr.find(tmp_path, (4, 3, 6), "float32") is None
    assert plain_zarr.find(tmp_path, SHAPE, "bfloat16") is None
    for text in ("", "[]", "3", json.dumps({"shape": SHAPE})):
        (tmp_path / ".zarray").write_text(text)
        assert plain_zarr.find(tmp_path, SHAPE, "float32") is None


def test_files_that_are_missing_or_short_are_named(tmp_path):
    stored(tmp_path)
    array = plain_zarr.find(tmp_path, SHAPE, "float32")
    chunk = tmp_path / "1.0.0"
    chunk.write_bytes(chunk.read_bytes()[:-1])
    for index in ((slice(None),) * 3, (slice(1, 2), slice(0, 1), slice(None))):
        with pytest.raises(ValueError, match=r"1\.0\.0 is not 96 bytes"):
            array.read(index)
    chunk.unlink()
    with pytest.raises(ValueError, match=r"1\.0\.0 is missing"):
        array.map(1)
