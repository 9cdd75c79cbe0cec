"""The reader of torch's files: what it reads, what it refuses, and bytes changed at random."""

import io
import os
import pickle
import struct
import zipfile
from collections import OrderedDict

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llama_jax.config import InputError
from llama_jax.convert import pth

SHAPES = {"a": (2, 3), "b.c": (4,)}
ARRAYS = {n: np.arange(np.prod(s), dtype=np.float32).reshape(s) for n, s in SHAPES.items()}


class Global:
    """Pickled as a name alone, whatever it names."""

    def __init__(self, module, name):
        self.module, self.name = module, name


class Call:
    """Pickled as a call of a named function."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments


class Stored:
    """Pickled as a persistent id, as torch stores its storages."""

    def __init__(self, *reference):
        self.reference = reference


class Pickler(pickle._Pickler):
    """Python's own pickler, which writes what this file describes without torch."""

    def persistent_id(self, obj):
        return obj.reference if isinstance(obj, Stored) else None

    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, Global):
            self.write(b"c" + f"{obj.module}\n{obj.name}\n".encode())
        elif isinstance(obj, Call):
            self.save(obj.function)
            self.save(obj.arguments)
            self.write(b"R")
        else:
            super().save(obj, save_persistent_id)


FLOAT = Global("torch", "FloatStorage")
REBUILD = Global("torch._utils", "_rebuild_tensor_v2")


def tensor(key, shape, *, size=None, offset=0, strides=None, storage=FLOAT):
    size = int(np.prod(shape)) if size is None else size
    strides = (
        tuple(int(np.prod(shape[i + 1 :])) for i in range(len(shape)))
        if strides is None
        else strides
    )
    hooks = Call(Global("collections", "OrderedDict"))
    stored = Stored("storage", storage, key, "cpu", size)
    return Call(REBUILD, stored, offset, shape, strides, False, hooks)


def program(value):
    out = io.BytesIO()
    Pickler(out, protocol=2).dump(value)
    return out.getvalue()


def archive(file, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(file, "w", compression) as out:
        for name, content in members:
            out.writestr(name, content)
    return file


STATE = {"a": tensor("0", (2, 3)), "b.c": tensor("1", (4,))}
DATA = [("x/data/0", ARRAYS["a"].tobytes()), ("x/data/1", ARRAYS["b.c"].tobytes())]


def read(tmp_path, state, data=DATA, **kwargs):
    pickled = state if isinstance(state, bytes) else program(state)
    return pth.map_tensors(archive(tmp_path / "x.pth", [("x/data.pkl", pickled), *data], **kwargs))


def same(found):
    return {n: a.tolist() for n, a in found.items()} == {n: a.tolist() for n, a in ARRAYS.items()}


def test_what_pickle_writes_is_read(tmp_path):
    assert same(read(tmp_path, STATE))


def test_an_ordered_dict_with_the_versions_of_modules_is_read(tmp_path):
    state = OrderedDict(STATE)
    state._metadata = OrderedDict({"": {"version": 1}})  # as torch's state_dict has it
    assert same(read(tmp_path, state))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_what_is_written_is_read(tmp_path, dtype):
    arrays = {n: a.astype(dtype) for n, a in ARRAYS.items()}
    pth.write(tmp_path / "x.pth", SHAPES, dtype, iter(arrays.values()))
    found = pth.map_tensors(tmp_path / "x.pth")
    assert same(found)
    assert {a.dtype for a in found.values()} == {np.dtype(dtype)}
    with zipfile.ZipFile(tmp_path / "x.pth") as members:
        assert members.testzip() is None  # checksums and local headers agree


def test_storages_begin_at_multiples_of_64_as_torch_maps_them(tmp_path):
    pth.write(tmp_path / "x.pth", SHAPES, np.float32, iter(ARRAYS.values()))
    spans = pth._entries(tmp_path / "x.pth")
    assert [spans[f"archive/data/{i}"][0] % 64 for i in range(2)] == [0, 0]


def test_views_are_read(tmp_path):
    state = {
        "a": tensor("0", (3, 2), size=6, strides=(1, 3)),  # a transpose
        "b.c": tensor("0", (2,), size=6, offset=4),  # of one storage
    }
    found = read(tmp_path, state, DATA[:1])
    assert found["a"].tolist() == ARRAYS["a"].T.tolist()
    assert found["b.c"].tolist() == [4, 5]


class Shout:
    def __reduce__(self):
        return os.system, ("touch /tmp/llama_jax_was_here",)


INT = Global("torch", "IntStorage")
REFUSED = {
    "os.system": (pickle.dumps(Shout(), protocol=2), "which is not a tensor"),
    "os.system, protocol 4": (pickle.dumps(Shout(), protocol=4), "STACK_GLOBAL"),
    "eval": (b"c__builtin__\neval\n(X\x01\x00\x00\x001tR.", "which is not a tensor"),
    "an instance": (b"(i__main__\nX\n.", "INST"),
    "an object": (b"\x80\x02c__main__\nX\n)\x81.", "which is not a tensor"),
    "an extension": (b"\x80\x02\x82\x01.", "EXT1"),
    "a call of a storage": ({"a": Call(FLOAT, 3)}, "it calls torch FloatStorage"),
    "a call of a string": (b"X\x01\x00\x00\x00a)R.", "as a _Global"),
    "an OrderedDict of values": (
        {"a": Call(Global("collections", "OrderedDict"), [])}, "an OrderedDict of values"),
    "another type": ({"a": tensor("0", (2, 3), storage=INT)}, "torch IntStorage"),
    "a number": ({"a": 3}, "'a' is 3 and not a tensor"),
    "a list": ([tensor("0", (2, 3))], "not a dict of tensors"),
    "a name that is a number": ({3: tensor("0", (2, 3))}, "not a tensor"),
    "no storage": ({"a": tensor("7", (2, 3))}, "storage of 'a' is missing"),
    "a path": ({"a": tensor("../../x/data/0", (2, 3))}, "storage of 'a' is missing"),
    "past the end": ({"a": tensor("0", (2, 3), strides=(4, 1))}, "number 6 of a storage of 6"),
    "an offset": ({"a": tensor("0", (2, 3), offset=1)}, "reaches number 6"),
    "strides": ({"a": tensor("0", (2, 3), strides=(100, 1))}, "reaches number 102"),
    "a wrong size": ({"a": tensor("0", (2, 3), size=7)}, "24 bytes, not 7 numbers"),
    "negative strides": ({"a": tensor("0", (2, 3), strides=(-3, 1))}, "are not sizes"),
    "a negative shape": ({"a": tensor("0", (-2, 3), size=6)}, "are not sizes"),
    "ranks": ({"a": tensor("0", (2, 3), strides=(1,))}, "has strides"),
    "a huge shape": ({"a": tensor("0", (2**47, 2**47), size=6)}, "has more numbers"),
    "strides of zero": ({"a": tensor("0", (2**40,), size=6, strides=(0,))}, "has more numbers"),
    "many axes": ({"a": tensor("0", (1,) * 40, size=6)}, "has strides"),
    "no end": (program(STATE)[:-1], "damaged"),
    "nothing": (b"", "damaged"),
    "an empty stack": (b"\x80\x02.", "damaged"),
    "an unknown memo": (b"\x80\x02h\x05.", "damaged"),
    "no mark": (b"\x80\x02t.", "damaged"),
    "too few for a tuple": (b"\x80\x02N\x87.", "a tuple of more"),
    "an unhashable key": (b"\x80\x02}]Ns.", r"it has the name \[\]"),
    "appending to a dict": (b"\x80\x02}Na.", "as a list"),
}  # fmt: skip


def shared(levels=100):
    """Opcodes that make a tuple of two of a tuple of two ...: 2^100 parts in 500 bytes."""
    steps = (b"q" + bytes([n]) + b"h" + bytes([n]) + b"\x86" for n in range(levels))
    return b")" + b"".join(steps)


NAME = b"X\x01\0\0\0a"
MANY = b"(" + b"K\x01" * 100_000 + b"tq\x01"  # a tuple of 100,000 ones, kept as number 1
HUGE = {
    "as a name": (b"\x80\x02}" + shared() + b"K\x01s.", r"it has the name \(\(\(\("),
    "as a name among others": (b"\x80\x02}(" + shared() + b"K\x01u.", "it has the name"),
    "as a value": (b"\x80\x02}" + NAME + shared() + b"s.", "and not a tensor"),
    "as all": (b"\x80\x02" + shared() + b".", "and not a dict of tensors"),
    "as a storage": (b"\x80\x02" + shared() + b"Q.", r"damaged|refers to"),
    "as a list": (b"\x80\x02" + shared() + b"Na.", "as a list"),
    "as a function": (b"\x80\x02" + shared() + b")R.", "as a _Global"),
    "as an argument": (b"\x80\x02ccollections\nOrderedDict\n" + shared() + b"R.", "of values"),
    "many opcodes": (b"\x80\x02" + b"}" * 300_001 + b".", "more than 300000 operations"),
    "many sizes": (
        b"\x80\x02" + MANY + b"(" + 1000 * (
            b"ctorch._utils\n_rebuild_tensor_v2\n(NK\x00h\x01h\x01tR") + b"t.", "has strides",
    ),
    "many arguments": (
        b"\x80\x02" + MANY + b"ctorch._utils\n_rebuild_tensor_v2\nh\x01R.", "of 100000 values",
    ),
}  # fmt: skip


@pytest.mark.timeout(30)  # for ever, some of them, if anything looked into what is shared
@pytest.mark.parametrize("case", HUGE)
def test_small_programs_of_huge_values_are_refused_at_once(tmp_path, case):
    program, message = HUGE[case]
    with pytest.raises(InputError, match=message) as caught:
        read(tmp_path, program)
    assert len(str(caught.value)) < 400


def test_the_list_of_members_is_bounded(tmp_path):
    file = archive(tmp_path / "x.pth", [("x/data.pkl", program(STATE)), *DATA])
    raw = bytearray(file.read_bytes())
    end = raw.rfind(b"PK\5\6")
    raw[end + 12 : end + 16] = struct.pack("<I", 2**31)
    file.write_bytes(raw)
    with pytest.raises(InputError, match="the list of its members has 2147483648 bytes"):
        pth.map_tensors(file)


@pytest.mark.parametrize("case", REFUSED)
def test_pickles_that_are_no_tensors_are_one_line(tmp_path, case):
    state, message = REFUSED[case]
    with pytest.raises(InputError, match=message) as caught:
        read(tmp_path, state)
    assert "x.pth is not a valid file" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not os.path.exists("/tmp/llama_jax_was_here")


def test_bombs_and_tricks_in_the_archive_are_refused(tmp_path):
    good = program(STATE)
    with pytest.raises(InputError, match="compressed"):
        read(tmp_path, STATE, [("x/data/0", b"\0" * 10_000_000)], compression=zipfile.ZIP_DEFLATED)
    for name in ("/x/data/2", "x/../../etc/passwd", "x\\data"):
        with pytest.raises(InputError, match="not a plain name"):
            read(tmp_path, STATE, [*DATA, (name, b"")])
    with pytest.raises(InputError, match=r"0 data\.pkl"):
        pth.map_tensors(archive(tmp_path / "x.pth", DATA))
    with pytest.raises(InputError, match=r"2 data\.pkl"):
        read(tmp_path, STATE, [*DATA, ("y/data.pkl", good)])
    with pytest.raises(InputError, match="little endian"):
        read(tmp_path, STATE, [*DATA, ("x/byteorder", b"big")])
    with pytest.warns(UserWarning, match="Duplicate"), pytest.raises(InputError, match="twice"):
        read(tmp_path, STATE, [*DATA, DATA[0]])
    (tmp_path / "x.pth").write_bytes(good)  # as torch wrote before 1.6
    with pytest.raises(InputError, match="not a zip file, as torch writes since"):
        pth.map_tensors(tmp_path / "x.pth")


def test_members_that_share_bytes_are_refused(tmp_path):
    file = archive(tmp_path / "x.pth", [("x/data.pkl", program(STATE)), *DATA])
    raw = bytearray(file.read_bytes())
    first = raw.find(b"PK\x01\x02")  # the directory: its second and third member
    second = raw.find(b"PK\x01\x02", first + 4)
    third = raw.find(b"PK\x01\x02", second + 4)
    raw[third + 42 : third + 46] = raw[second + 42 : second + 46]
    raw[third + 46 : third + 54] = raw[second + 46 : second + 54]
    file.write_bytes(raw)
    with pytest.raises(InputError, match="twice"):
        pth.map_tensors(file)
    size = struct.unpack("<I", raw[second + 24 : second + 28])[0]
    raw = bytearray(archive(file, [("x/data.pkl", program(STATE)), *DATA]).read_bytes())
    for field in (20, 24):  # of the second member: it reaches into the third
        raw[second + field : second + field + 4] = struct.pack("<I", size + 60)
    file.write_bytes(raw)
    with pytest.raises(InputError, match="overlaps"):
        pth.map_tensors(file)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_changed_bytes_give_the_same_numbers_of_bytes_or_bad_input(tmp_path, data):
    file = archive(tmp_path / "x.pth", [("x/data.pkl", program(STATE)), *DATA])
    raw = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(0, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    raw = raw[: data.draw(st.sampled_from([len(raw)] * 3 + list(range(len(raw)))))]
    file.write_bytes(raw)
    try:
        found = pth.map_tensors(file)
    except InputError:
        return
    assert all(np.array(a).nbytes <= 1 << 20 for a in found.values())


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=40))
def test_any_program_builds_plain_data_or_is_refused(program):
    try:
        pth._interpret(b"\x80\x02" + program)
    except pth._Refused:
        return
