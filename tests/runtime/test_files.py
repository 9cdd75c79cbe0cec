"""What a name leads to is looked at before it is read; JSON of any kind is a value or one line."""

import json
import os
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_jax.config import InputError
from llama_jax.runtime import files
from llama_jax.runtime.files import shown


def pipe(path):
    os.mkfifo(path)


def link_to_a_pipe(path):
    os.mkfifo(path.with_name("pipe"))
    path.symlink_to("pipe")


ODD = {
    "a pipe": (pipe, "is a pipe, not a file"),
    "a link to a pipe": (link_to_a_pipe, "is a pipe, not a file"),
    "an endless device": (lambda p: p.symlink_to("/dev/zero"), "is a device, not a file"),
    "a folder": (lambda p: p.mkdir(), "is a folder, not a file"),
    "nothing": (lambda p: None, "cannot be read: No such file"),
    "a link to nothing": (lambda p: p.symlink_to("gone"), "cannot be read: No such file"),
    "a link to itself": (lambda p: p.symlink_to(p.name), "cannot be read: Too many levels"),
}


@pytest.mark.timeout(5)
@pytest.mark.parametrize(("make", "message"), ODD.values(), ids=ODD)
def test_what_is_no_file_is_told_and_not_waited_for(tmp_path, make, message):
    path = tmp_path / "x.json"
    make(path)
    for read in (files.read_bytes, files.read_json, files.open_file):
        with pytest.raises(InputError, match=message) as caught:
            read(path)
        assert str(caught.value).startswith(str(path))
    assert files.head(path, 4) == b""


def test_a_name_with_a_zero_byte():
    with pytest.raises(InputError, match="cannot be read: embedded null byte"):
        files.open_file("a\0b")


INSTEAD = {
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "LFS pointer.*lfs pull"),
    "page": (b"\n<!DOCTYPE html><html>...", "a web page and not the file itself: accept the lic"),
    "gated": (b"Access to model meta-llama/Llama-2-7b-hf is restricted. You", "server's refusal"),
    "json": (b'{"error":"Repository not found"}', "server's refusal"),
    "s3": (b'<?xml version="1.0"?>\n<Error><Code>AccessDenied</Code>', "server's refusal"),
    "plain": (b"Invalid username or password.", "server's refusal"),
}


@pytest.mark.parametrize(("content", "message"), INSTEAD.values(), ids=INSTEAD)
def test_what_a_download_left_is_named_with_the_way_out(tmp_path, content, message):
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(InputError, match=message):
        files.read_bytes(tmp_path / "tokenizer.model")


def test_a_file_of_900_mb_is_not_read(tmp_path):
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(900 << 20)
    with pytest.raises(InputError, match="is too large: 1,000 bytes are read at most"):
        files.read_json(tmp_path / "config.json", limit=1000)
    (tmp_path / "small").write_bytes(b"abc")
    assert files.read_bytes(tmp_path / "small", limit=3) == b"abc"
    with pytest.raises(InputError, match="too large"):
        files.read_bytes(tmp_path / "small", limit=2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"[" * 100_000, "nested too deep"),
        (b'{"a":' * 100_000, "nested too deep"),
        (b'{"a": ' + b"9" * 400 + b"}", "a number of 400 digits"),
        (b'{"a": ' + b"9" * 9000 + b"}", "a number of 9000 digits"),
        (b'{"a": "\\ud800"}', "surrogates not allowed"),
        (b'{"a": 1, "a": 2}', "a name comes twice"),
        (b"{]", "not valid JSON"),
        (b"\xff", "not valid JSON"),
        (b"", "not valid JSON"),
    ],
)
def test_hostile_json_is_one_short_line(text, message):
    with pytest.raises(InputError, match=message) as caught:
        files.parse_json(text, "x", unique=True)
    assert len(str(caught.value)) < 300
    assert "\n" not in str(caught.value)


def test_sound_json_is_read():
    text = b'\xef\xbb\xbf{"a": 12345678901234567890, "b": "\\ud83d\\ude00", "c": 1e5}'
    assert files.parse_json(text, "x") == {"a": 12345678901234567890, "b": "\U0001f600", "c": 1e5}


def test_only_an_object_describes(tmp_path):
    (tmp_path / "x").write_text("[1, 2]")
    with pytest.raises(InputError, match=r"must hold a JSON object, not \[1, 2\]"):
        files.read_json(tmp_path / "x")


def test_written_json_has_no_numbers_that_json_has_not():
    values = {"a": float("nan"), "b": [float("-inf"), 1.5, (float("inf"),)], "c": "NaN", "d": None}
    again = json.loads(files.json_text(values), parse_constant=pytest.fail)
    assert again == {"a": None, "b": [None, 1.5, [None]], "c": "NaN", "d": None}


# ---- Values in messages

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.tuples(inner) | st.dictionaries(st.text(), inner),
)


@given(plain)
def test_a_short_value_is_shown_as_it_is_and_a_long_one_cut(value):
    text, whole = shown(value, 50), repr(value)
    assert len(text) <= 50
    if len(whole) <= 50:
        assert text == whole
    elif text[:-3] != whole[:47]:
        assert "2^" in text  # a number whose digits take long to find


def test_values_of_any_size_are_shown_at_once():
    shared = ()
    for _ in range(500):  # 2^500 parts
        shared = (shared, shared)
    deep = []
    for _ in range(100_000):
        deep = [deep]
    begin = time.perf_counter()
    for value in (
        shared,
        deep,
        {"a": deep},
        10**100_000,
        "x" * 10**8,
        list(range(10**6)),
        object(),
    ):
        assert len(shown(value)) <= 60
    assert time.perf_counter() - begin < 2  # for ever, otherwise
    while deep:
        (deep,) = deep
