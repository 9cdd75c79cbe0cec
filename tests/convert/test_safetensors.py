"""safetensors: the layout of the format, hostile headers, and bytes changed at random."""

import json
import struct
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llama_jax.config import InputError
from llama_jax.convert.safetensors import MAX_HEADER, Writer, map_tensors

ARRAYS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b.c": np.arange(4).astype(ml_dtypes.bfloat16),
    "d": np.arange(8, dtype=np.float16).reshape(2, 2, 2),
}
TYPES = {"a": "F32", "b.c": "BF16", "d": "F16"}


def file_of(header, data=b"", length=None):
    """The format by hand: a length, JSON, numbers."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype, shape, begin, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def write(file: Path) -> Path:
    with Writer(file, {n: (a.shape, TYPES[n]) for n, a in ARRAYS.items()}) as writer:
        for name, array in ARRAYS.items():
            writer.write(name, [array])
    return file


def test_what_is_written_is_the_format_and_is_read(tmp_path):
    file = write(tmp_path / "x.safetensors")
    raw = file.read_bytes()
    (n,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + n])
    assert header.pop("__metadata__") == {"format": "pt"}
    assert n % 8 == 0
    for name, array in ARRAYS.items():
        begin, end = header[name]["data_offsets"]
        assert raw[8 + n + begin : 8 + n + end] == array.tobytes()
    found = map_tensors(file)
    assert {k: (v.dtype, v.tolist()) for k, v in found.items()} == {
        k: (v.dtype, v.tolist()) for k, v in ARRAYS.items()
    }


F = b"\0" * 8
TWO = entry("F32", [2], 0, 8)
HOSTILE = {
    "empty": (b"", "not a safetensors file"),
    "short": (b"\1\0\0", "not a safetensors file"),
    "header of 100 MB": (file_of(b"{}", length=100_000_000), "and a header of 100000000"),
    "header of 2^64": (file_of(b"{}", length=2**64 - 1), "header of 18446744073709551615"),
    "no JSON": (file_of(b"{]"), "header is not valid JSON"),
    "a list": (file_of([]), "header is not an object"),
    "deep": (file_of(b"[" * 100_000), "header is nested too deep"),
    "not UTF-8": (file_of(b'{"\xff": 1}'), "header is not valid JSON"),
    "twice": (file_of(b'{"a": 1, "a": 2}'), "a name comes twice"),
    "hole": (file_of({"a": TWO, "b": entry("F32", [1], 12, 16)}, F + F), "begins at 12, not 8"),
    "hole at the front": (file_of({"a": entry("F32", [2], 4, 12)}, F + F), "begins at 4, not 0"),
    "overlap": (file_of({"a": TWO, "b": entry("F32", [2], 4, 12)}, F + F), "an overlap"),
    "past the end": (file_of({"a": entry("F32", [4], 0, 16)}, F), "cut short"),
    "too long": (file_of({"a": TWO}, F + b"!"), "cut short"),
    "wrong size": (file_of({"a": entry("F32", [3], 0, 8)}, F), r"8 bytes are not F32\[3\]"),
    "negative": (file_of({"a": entry("F32", [-2], 0, -8)}, F), "not sizes"),
    "huge": (file_of({"a": entry("F32", [2**62, 2**62], 0, 8)}, F), "bytes are not"),
    "boolean": (file_of({"a": entry("F32", [True], 0, 4)}, F), "not sizes"),
    "float": (file_of({"a": entry("F32", [2.0], 0, 8)}, F), "not sizes"),
    "infinite": (file_of({"a": entry("F32", [float("inf")], 0, 8)}, F), "not sizes"),
    "reversed": (file_of({"a": entry("F32", [0], 8, 0)}, F), "bytes are not"),
    "unknown type": (file_of({"a": entry("F33", [2], 0, 8)}, F), "'a' is of type 'F33'"),
    "integers": (file_of({"a": entry("I64", [1], 0, 8)}, F), "'a' is I64; weights in F32"),
    "no offsets": (file_of({"a": {"dtype": "F32", "shape": [2]}}, F), "not sizes"),
    "no entry": (file_of({"a": 7}, F), "is of type None"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_one_line(tmp_path, case):
    content, message = HOSTILE[case]
    file = tmp_path / "x.safetensors"
    file.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        map_tensors(file)
    assert "x.safetensors" in str(caught.value)
    assert len(str(caught.value)) < 500


def test_the_largest_header_is_bounded(tmp_path):
    file = tmp_path / "x.safetensors"
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", MAX_HEADER + 1))
        stream.truncate(MAX_HEADER + 100)  # sparse: it would fit the file
    with pytest.raises(InputError, match="not a safetensors file"):
        map_tensors(file)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_changed_bytes_give_the_same_shapes_or_bad_input(tmp_path, data):
    raw = bytearray(write(tmp_path / "x.safetensors").read_bytes())
    for _ in range(data.draw(st.integers(0, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    raw = raw[: data.draw(st.sampled_from([len(raw)] * 3 + list(range(len(raw)))))]
    file = tmp_path / "y.safetensors"
    file.write_bytes(raw)
    try:
        found = map_tensors(file)
    except InputError:
        return
    assert sum(a.nbytes for a in found.values()) == sum(a.nbytes for a in ARRAYS.values())
    assert all(np.array(a).shape == a.shape for a in found.values())
