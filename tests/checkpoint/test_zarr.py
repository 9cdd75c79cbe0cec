"""Plain Zarr: parts of arrays, in files and in databases, and what is left to orbax."""

import json
import os

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorstore as ts
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_jax.checkpoint.zarr import PlainArrays

SHAPE = (3, 8, 24)
ALL = (slice(None),) * 3


def stored(folder, dtype="float32", chunks=(1, 8, 24), base=None, **changes):
    """An array as tensorstore writes it, and its values."""
    values = np.random.default_rng(0).standard_normal(SHAPE).astype(jnp.dtype(dtype))
    metadata = {"shape": SHAPE, "chunks": chunks, "compressor": None}
    spec = {
        "driver": "zarr",
        "kvstore": base or f"file://{folder}/x/",
        "metadata": metadata | changes,
        "dtype": dtype,
    }
    ts.open(spec, create=True).result().write(values).result()
    return values


def database(folder):
    """Where an array goes that shall lie in a database, as orbax configures it."""
    config = {"max_inline_value_bytes": 1024}
    return {"driver": "ocdbt", "base": f"file://{folder}/", "path": "x/", "config": config}


def find(folder, dtype="float32", shape=SHAPE):
    return PlainArrays(folder).find("x", shape, dtype)


cut = st.tuples(*(st.tuples(st.integers(0, n), st.integers(0, n)).map(sorted) for n in SHAPE))


@pytest.mark.parametrize("in_database", [False, True])
@pytest.mark.parametrize(
    ("dtype", "chunks"),
    [
        ("float32", SHAPE),
        ("bfloat16", SHAPE),
        ("float16", (3, 8, 24)),
        ("float32", (3, 4, 24)),
        ("float32", (2, 8, 18)),  # chunks that reach beyond the array
    ],
)
def test_parts_are_those_that_tensorstore_wrote(tmp_path, dtype, chunks, in_database):
    base = database(tmp_path) if in_database else None
    values = stored(tmp_path, dtype, chunks, base)
    array = find(tmp_path, dtype)
    assert array is not None

    @settings(max_examples=50, deadline=None)
    @given(cut)
    def parts(bounds):
        index = tuple(slice(*pair) for pair in bounds)
        for found in (array.read(index), array.view(index)):
            assert found.dtype == values.dtype
            assert found.shape == values[index].shape
            assert found.tobytes() == values[index].tobytes()

    parts()


def test_a_layer_is_mapped_and_not_copied(tmp_path):
    for folder, chunks, base in (
        (tmp_path / "a", (1, 8, 24), None),
        (tmp_path / "b", SHAPE, database(tmp_path / "b")),
    ):
        values = stored(folder, chunks=chunks, base=base)
        layer = find(folder).view((slice(1, 2), slice(None), slice(None)))
        np.testing.assert_array_equal(layer, values[1:2])
        assert isinstance(layer, np.memmap)


def test_what_orbax_saves_is_found(tmp_path):
    x = jnp.arange(576, dtype=jnp.float32).reshape(SHAPE)
    tree = {"x": x, "y": -x, "small": jnp.ones(8)}
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_compression=False)) as orbax:
        orbax.save(tmp_path / "saved", args=ocp.args.PyTreeSave(tree))
    arrays = PlainArrays(tmp_path / "saved")
    for name in ("x", "y"):
        found = arrays.find(name, SHAPE, "float32")
        np.testing.assert_array_equal(found.read(ALL), tree[name])
        np.testing.assert_array_equal(found.view(ALL), tree[name])
    small = arrays.find("small", (8,), "float32")  # which the database holds itself
    np.testing.assert_array_equal(small.read((slice(2, None),)), np.ones(6))
    np.testing.assert_array_equal(small.view((slice(None),)), np.ones(8))
    for file in (tmp_path / "saved/ocdbt.process_0/d").iterdir():
        os.truncate(file, min(file.stat().st_size, 1000))
    assert PlainArrays(tmp_path / "saved").find("x", SHAPE, "float32") is None


@pytest.mark.parametrize("in_database", [False, True])
@pytest.mark.parametrize("changes", [{"compressor": {"id": "zlib", "level": 1}}, {"order": "F"}])
def test_other_layouts_are_left_alone(tmp_path, changes, in_database):
    stored(tmp_path, chunks=SHAPE, base=database(tmp_path) if in_database else None, **changes)
    assert find(tmp_path) is None


def test_what_is_no_such_array_is_left_alone(tmp_path):
    stored(tmp_path)
    assert find(tmp_path / "gone") is None
    assert find(tmp_path, shape=(8, 3, 24)) is None
    assert find(tmp_path, dtype="bfloat16") is None
    for text in ("", "[]", "3", json.dumps({"shape": SHAPE})):
        (tmp_path / "x/.zarray").write_text(text)
        assert find(tmp_path) is None


@pytest.mark.timeout(20)
def test_descriptions_of_any_kind_are_read_or_left_alone(tmp_path):
    stored(tmp_path)
    file = tmp_path / "x/.zarray"
    said = json.loads(file.read_text())
    for chunks in ([1, 2**63, 1], [2**70] * 3, [1, 1, 1.0], [0, 8, 24], [-1, 8, 24], None):
        file.write_text(json.dumps(said | {"chunks": chunks}))
        array = find(tmp_path)
        if array is not None:
            with pytest.raises(ValueError, match="is not"):
                array.view((slice(0, 1),) * 3)
    file.write_text(json.dumps(said | {"shape": [2**40, 8, 24], "chunks": [1, 8, 24]}))
    assert find(tmp_path, shape=(2**40, 8, 24)) is None  # more chunks than can be
    for text in ("[" * 100_000, "9" * 400, " " * 100_000):
        file.write_text(text)
        assert find(tmp_path) is None
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(ValueError, match=r"x/\.zarray is a pipe or a device, not a file"):
        find(tmp_path)
    file.unlink()
    with file.open("wb") as out:
        out.truncate(900 << 20)
    with pytest.raises(ValueError, match="is damaged: it has 943,718,400 bytes"):
        find(tmp_path)


def test_files_that_are_missing_or_short_are_named(tmp_path):
    stored(tmp_path)
    array = find(tmp_path)
    chunk = tmp_path / "x/1.0.0"
    chunk.write_bytes(chunk.read_bytes()[:-1])
    for index in (ALL, (slice(1, 2), slice(0, 1), slice(None))):
        with pytest.raises(ValueError, match=r"x/1\.0\.0 is not 768 bytes"):
            array.read(index)
    chunk.unlink()
    with pytest.raises(ValueError, match=r"x/1\.0\.0 is missing"):
        array.view((slice(1, 2), slice(None), slice(None)))


def test_a_database_whose_files_are_short_or_elsewhere_is_left_alone(tmp_path):
    folder = tmp_path / "folder"
    stored(folder, chunks=SHAPE, base=database(folder))
    (data,) = (f for f in (folder / "d").iterdir() if f.stat().st_size >= 3 * 8 * 24 * 4)
    assert find(folder) is not None
    content = data.read_bytes()
    data.write_bytes(content[:-1])
    assert find(folder) is None
    data.unlink()
    assert find(folder) is None
    (tmp_path / "outside").write_bytes(content)
    data.symlink_to(tmp_path / "outside")
    assert find(folder) is None
    data.unlink()
    data.write_bytes(content)
    (folder / "manifest.ocdbt").write_bytes(b"nonsense")
    assert find(folder) is None
