"""Digests against plain integer arithmetic, on any layout; the manifest detects its own damage."""

import hashlib
import json
import os
import re
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from llama_jax.checkpoint.manifest import DTYPES, ArrayRecord, Manifest, as_text, digest, flatten
from llama_jax.config import InputError

CASES = [(shape, dtype) for dtype in DTYPES for shape in [(), (3, 4, 5)]]
CASES += [(shape, "float32") for shape in [(0,), (3, 0, 2), (1,), (7,), (4, 9000)]]
M = 2**32


def random_array(shape, dtype, seed=0):
    """Any bit pattern of `dtype`, NaNs included."""
    dtype = jnp.dtype(dtype)
    bits = np.random.default_rng(seed).integers(0, 2**32, size=shape, dtype=np.uint32)
    if dtype.kind == "b":
        return np.asarray(bits % 2 == 1)
    return np.asarray(bits).astype(f"uint{8 * dtype.itemsize}").view(dtype)


def mix(h):
    h = (h ^ h >> 16) * 0x85EBCA6B % M
    h = (h ^ h >> 13) * 0xC2B2AE35 % M
    return h ^ h >> 16


def oracle(array):
    """The definition in the docstring of manifest.py, in Python's integers."""
    columns = array.shape[-1] if array.ndim else 1
    first = second = 0
    for i, element in enumerate(array.reshape(-1)):
        bits = int.from_bytes(element.tobytes(), "little")
        h = mix((bits + 0x9E3779B1 * i) % M)
        first += h
        second += mix(h ^ (0x85EBCA77 * (i // columns) + 0x27D4EB2F) % M)
    return f"{first % M:08x}{second % M:08x}"


def text(array):
    return as_text(digest(array))


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("shape", [(5, 7), (3, 4, 9000), (4, 3)])
def test_the_digests_of_parts_add_up_to_that_of_the_whole(shape, on_device):
    array = random_array(shape, "float32")
    size = array[0].size
    parts = (jnp.asarray(part) if on_device else part for part in array)
    assert as_text(*(digest(part, i * size) for i, part in enumerate(parts))) == text(array)


@pytest.mark.parametrize("axis", [1, 2, 3])
def test_parts_may_be_cut_along_any_axis(axis):
    array = random_array((2, 4, 6, 10), "float32")
    layer = array[1]
    digests = [digest(jnp.asarray(array[0]), 0)]
    for start, stop in ((0, 1), (1, layer.shape[axis - 1])):
        part = jnp.asarray(np.take(layer, range(start, stop), axis - 1))
        first = layer.size + start * int(np.prod(layer.shape[axis:]))
        digests.append(digest(part, first, layer.shape))
    assert as_text(*digests) == text(array)


@pytest.mark.parametrize(("shape", "dtype"), CASES)
def test_host_device_and_definition_agree(shape, dtype):
    array = random_array(shape, dtype)
    assert text(array) == text(jax.device_put(array)) == oracle(array)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("dtype", ["float32", "bool"])
def test_digest_does_not_depend_on_the_layout(dtype, kind):
    array = random_array((16, 6, 8), dtype)
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(kind, kind))
    found = {
        text(jax.device_put(array, NamedSharding(mesh, spec)))
        for spec in (P(), P("a"), P(("a", "b")), P("a", None, "b"), P(None, "b", "a"))
    }
    assert found == {text(array)}


def test_devices_exchange_nothing_but_their_sums():
    mesh = jax.make_mesh((8,), ("a",))
    x = jax.device_put(np.zeros((16, 64), np.float32), NamedSharding(mesh, P("a")))
    hlo = jax.jit(digest).lower(x).compile().as_text() or ""
    exchanged = re.findall(r"= (\S+) all-\w+\(", hlo)
    assert exchanged
    for shape in exchanged:  # such as u32[8,1]{1,0}: one number of each device
        sizes = re.search(r"\[(.*?)\]", shape)[1].split(",")  # type: ignore[index]
        assert np.prod([int(size) for size in sizes if size], dtype=int) <= 8


@settings(deadline=None, max_examples=50)
@given(
    dtype=st.sampled_from(["float32", "bfloat16", "int32", "uint8"]),
    seed=st.integers(0, 2**16),
    where=st.integers(0, 59),
    bit=st.integers(0, 31),
)
def test_every_flipped_bit_changes_both_lanes(dtype, seed, where, bit):
    array = random_array((3, 4, 5), dtype, seed)
    damaged = array.copy()
    raw = damaged.reshape(-1).view(f"uint{8 * array.dtype.itemsize}")
    raw[where] ^= raw.dtype.type(1 << bit % (8 * array.dtype.itemsize))
    for before, after in zip(digest(array), digest(damaged), strict=True):
        assert before != after
    assert text(jax.device_put(damaged)) == text(damaged)


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 2**16), i=st.integers(0, 59), j=st.integers(0, 59))
def test_exchanged_elements_change_the_digest(seed, i, j):
    array = random_array((3, 4, 5), "float32", seed)
    damaged = array.copy()
    flat, source = damaged.reshape(-1), array.reshape(-1)
    flat[i], flat[j] = source[j], source[i]
    assert (text(damaged) == text(array)) == (flat.tobytes() == source.tobytes())


def test_names_follow_keys_attributes_and_positions():
    class Pair(NamedTuple):
        mu: object
        nu: object

    @flax.struct.dataclass
    class State:
        step: object
        params: object
        opt_state: object

    w = jnp.zeros(2)
    state = State(w, {"layers": {"q": w}}, (optax.EmptyState(), Pair({"q": w}, [w, w])))
    assert list(flatten(state)) == [
        "step", "params/layers/q", "opt_state/1/mu/q", "opt_state/1/nu/0", "opt_state/1/nu/1",
    ]  # fmt: skip
    adam = flatten(optax.adamw(1e-3).init({"layers": {"q": w}}))
    assert list(adam) == ["0/count", "0/mu/layers/q", "0/nu/layers/q"]


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"a/b": np.zeros(2, np.int8)}, "'a/b' has a key"),
        ({"a": {"": np.zeros(2, np.int8)}}, "has a key that is empty"),
        ({"a": np.zeros(2)}, "a is float64"),
        ({"a": 3}, "a is int"),
        ({"a": jax.random.key(0)}, "a is key"),
        (np.zeros(2, np.int8), "has a key"),
        ({}, "no arrays"),
    ],
)
def test_what_cannot_be_saved_is_named(tree, message):
    with pytest.raises(InputError, match=message):
        flatten(tree)


def manifest():
    record = ArrayRecord(shape=(2, 3), dtype="float32", digest="00" * 8)
    return Manifest(folder="state", step=3, arrays={"a/b": record}, extra={"x": [1, "é", 0.1]})


def test_manifest_survives_the_file():
    assert Manifest.from_json(manifest().to_json()) == manifest()


def test_every_flipped_bit_of_a_manifest_is_harmless_or_seen():
    data = manifest().to_json().encode()
    reasons = set()
    for position in range(len(data)):
        for bit in range(8):
            damaged = bytearray(data)
            damaged[position] ^= 1 << bit
            try:
                read = Manifest.from_json(bytes(damaged))
            except ValueError as error:
                reasons.add(re.sub(r" \(.*", "", str(error), flags=re.DOTALL))
            else:
                assert read == manifest()
    assert reasons == {"manifest.json is damaged"}


def signed(**changes):
    """A manifest with other values, and the digest that they have."""
    values = json.loads(manifest().to_json()) | changes
    del values["digest"]
    canonical = json.dumps(values, sort_keys=True, separators=(",", ":"))
    values["digest"] = hashlib.sha256(canonical.encode()).hexdigest()
    return json.dumps(values)


ROW = {"shape": [2, 3], "dtype": "float32", "digest": "00"}
HOSTILE = [
    ({"format": 2}, "has format 2; this version reads 1"),
    ({"step": 2**31}, "its step is 2147483648"),
    ({"step": "3"}, "its step is '3'"),
    ({"folder": "../../etc"}, r"its folder is '\.\./\.\./etc'"),
    ({"folder": "/dev"}, "its folder is '/dev'"),
    ({"folder": None}, "its folder is None"),
    ({"files": {"../tokenizer.model": "00"}}, "its files is {'../tokenizer.model': '00'}"),
    ({"files": {"/dev/zero": "00"}}, "its files is"),
    ({"files": {"a\\b": "00"}}, "its files is"),
    ({"files": {"..": "00"}}, "its files is"),
    ({"files": {"a" * 256: "00"}}, "its files is"),
    ({"files": {"x": 0}}, "its files is"),
    ({"files": []}, "its files is"),
    ({"versions": 3}, "its versions is 3"),
    ({"extra": []}, "its extra is"),
    ({"arrays": []}, r"its arrays is \[\]"),
    ({"arrays": {"a": 3}}, "its array is 3"),
    ({"arrays": {"a": ROW | {"more": 1}}}, "its array is"),
    ({"arrays": {"a": ROW | {"shape": [2**63]}}}, "its shape is"),
    ({"arrays": {"a": ROW | {"shape": [1] * 99}}}, "its shape is"),
    ({"arrays": {"a": ROW | {"shape": [True]}}}, r"its shape is \[True\]"),
    ({"arrays": {"a": ROW | {"dtype": "float64"}}}, "its dtype is 'float64'"),
    ({"arrays": {"a": ROW | {"digest": 0}}}, "its digest is 0"),
]


@pytest.mark.parametrize(("changes", "message"), HOSTILE)
def test_values_that_no_manifest_of_ours_has_are_named(changes, message):
    """Signed, so that nothing but these checks is in their way."""
    with pytest.raises(ValueError, match=message) as caught:
        Manifest.from_json(signed(**changes))
    assert not isinstance(caught.value, InputError)  # a checkpoint is to blame: others are tried


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "3", '{"digest": ' + "9" * 400 + "}", "\0"])
def test_text_that_is_no_manifest_is_damage(text):
    with pytest.raises(ValueError, match=r"manifest.json is damaged"):
        Manifest.from_json(text)


@pytest.mark.timeout(10)
def test_files_beside_it_that_are_pipes_or_devices_are_damage(tmp_path):
    (tmp_path / "manifest.json").write_text(signed(files={"x": "00"}))
    (tmp_path / "x").symlink_to("/dev/zero")
    with pytest.raises(ValueError, match="x is a device, not a file"):
        Manifest.read(epath.Path(tmp_path))
    (tmp_path / "x").unlink()
    os.mkfifo(tmp_path / "x")
    with pytest.raises(ValueError, match="x is a pipe, not a file"):
        Manifest.read(epath.Path(tmp_path))
