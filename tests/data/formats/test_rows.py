"""Files of every kind as numbered rows, and files that are broken or meant to harm."""

import codecs
import gzip
import json
import sys

import pytest

from llama_jax.config import InputError
from llama_jax.data import formats, textfiles
from llama_jax.data.formats import rows
from llama_jax.data.records import Prompt
from tests.data.formats.files import chat, dialogue

ROWS = [{"prompt": f'{i} \u2028 é 日本 "quoted", {{[', "n": i} for i in range(40)]


def put(path, content):
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def jsonl(values):
    return "".join(json.dumps(value) + "\n" for value in values)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", jsonl(ROWS)),
        ("a.jsonl", "\n\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS)),
        ("a.jsonl.gz", gzip.compress(jsonl(ROWS).encode())),
        ("a.json", json.dumps(ROWS)),
        ("a.json", json.dumps(ROWS, indent=2)),
        ("a.json", "\n " + json.dumps(ROWS, separators=(" ,\n", " : ")) + "\n\n"),
        ("a.json", jsonl(ROWS)),
        ("a.json", "".join(json.dumps(row, indent=1) for row in ROWS)),
        ("a.json", json.dumps({f"id {i}": row for i, row in enumerate(ROWS)})),
    ],
)
def test_json_of_every_layout(tmp_path, name, content):
    read = list(rows.read(put(tmp_path / name, content)))
    assert [row for _, row in read] == ROWS
    if "\n\n{" not in str(content):
        assert [number for number, _ in read] == list(range(1, 41))


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.jsonl", b'{"a": "1"}'), ("a.json", b'[{"a": "1"}]'), ("a.csv", b"a\n1\n")],
)
def test_a_byte_order_mark_goes(tmp_path, name, content):
    content = codecs.BOM_UTF8 + content
    assert list(rows.read(put(tmp_path / name, content))) == [(1, {"a": "1"})]


def test_a_row_of_jsonl_is_its_line(tmp_path):
    assert list(rows.read(put(tmp_path / "a.jsonl", '\n{"a": 1}\n\n \n{"a": 2}'))) == [
        (2, {"a": 1}),
        (5, {"a": 2}),
    ]


@pytest.mark.parametrize("content", ["[]", " [ ] ", "", " \n "])
def test_json_without_rows(tmp_path, content):
    assert list(rows.read(put(tmp_path / "a.json", content))) == []
    with pytest.raises(InputError, match=r"a\.json holds no rows"):
        formats.open_records(tmp_path / "a.json", "prompt")


def test_large_json_is_read_in_parts(tmp_path, monkeypatch):
    large = [{"prompt": "x" * 70_000, "n": [1, {"deep": "]}"}]}, {"prompt": "y"}] * 4
    path = put(tmp_path / "a.json", json.dumps(large, indent=1))
    assert [row for _, row in rows.read(path)] == large
    monkeypatch.setattr(textfiles, "MAX_LINE_BYTES", 1 << 16)
    short = put(tmp_path / "b.json", json.dumps([{"prompt": ["z"] * 20_000}], indent=1))
    with pytest.raises(InputError, match=r"b\.json, object 1 is not JSON: .* longer than 0 MiB"):
        list(rows.read(short))


def test_csv(tmp_path):
    content = 'id,prompt,type,label,focus\r\n\r\n1,"a, ""b""\nc",homonyms,safe,kill\r\n'
    path = put(tmp_path / "a.csv", content)
    assert list(rows.read(path)) == [
        (
            1,
            {
                "id": "1",
                "prompt": 'a, "b"\nc',
                "type": "homonyms",
                "label": "safe",
                "focus": "kill",
            },
        )
    ]
    (record,) = formats.open_records(path, "prompt")
    assert record == Prompt(messages=chat('a, "b"\nc'), source="xstest homonyms")


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pyarrow.Table.from_pylist([{"messages": chat(f"a{i}", "b")} for i in range(300)])
    parquet.write_table(table, tmp_path / "a.parquet")
    read = list(formats.open_records(tmp_path / "a.parquet", "dialogue"))
    assert read == [dialogue(f"a{i}", "b") for i in range(300)]
    broken = put(tmp_path / "b.parquet", b"PAR1 is how it begins")
    with pytest.raises(InputError, match=r"b\.parquet cannot be read at row 1: .*[Pp]arquet"):
        formats.open_records(broken, "dialogue")


def test_parquet_without_its_library(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"pip install pyarrow, or write it as \.jsonl"):
        formats.open_records(put(tmp_path / "a.parquet", b"x"), "dialogue")


DEEP = "[" * 100_000
HUGE = "9" * 400


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.jsonl", b'{"prompt": "\xff"}', "line 1, byte 12 is not UTF-8"),
        ("a.jsonl", "{}".encode("utf-16"), "is UTF-16; convert it"),
        ("a.jsonl", b'{"a": "\0"}', "line 1 holds a NUL byte"),
        ("a.jsonl", b'{"prompt": "a"', "row 1 is not JSON: Expecting ',' delimiter, at character"),
        ("a.jsonl", b'{"prompt": "a\n"}', "row 1 is not JSON"),
        ("a.jsonl", b"[1]", r"row 1 is a JSON array; name the file \.json"),
        ("a.jsonl", b'"text"', "row 1 must be a JSON object, not 'text'"),
        ("a.jsonl", DEEP, "row 1 is not JSON: it is nested too deeply"),
        ("a.jsonl", f'{{"a": {DEEP}', "row 1 is not JSON: it is nested too deeply"),
        ("a.json", f'[{{"a": {DEEP}', "object 1 is not JSON: it is nested too deeply"),
        ("a.json", DEEP, r"object 1 must begin with {, not with \["),
        ("a.jsonl", '{"a": NaN}', "row 1 is not JSON: NaN is not JSON"),
        ("a.jsonl", '{"a": -Infinity}', "row 1 is not JSON: -Infinity"),
        ("a.jsonl", f'{{"a": {HUGE}}}', "a number of 400 digits is too long"),
        ("a.jsonl", f'{{"a": {HUGE}.5}}', "a number of 402 digits is too long"),
        ("a.jsonl", f'{{"a": {HUGE * 1000}}}', "a number of 400000 digits is too long"),
        ("a.jsonl", '{"a": 1e999}', "1e999 is too large"),
        ("a.json", '[{"a": 1}', "object 1 must end with , or ], not the file"),
        ("a.json", '[{"a": 1} {"a": 1}]', "object 1 must end with , or ], not {"),
        ("a.json", '[{"a": 1},]', "object 2 must begin with {, not with ]"),
        ("a.json", '[{"a": 1}]]', "] stands after the end of the array"),
        ("a.json", "[1, 2]", "object 1 must begin with {, not with 1"),
        ("a.json", '[{"a": "never ends', "1 is not JSON: Unterminated string.* character 7"),
        ("a.json", '[{}, {"a": nul}]', "object 2 is not JSON: Expecting value, at character 7"),
        ("a.json", '{"a": 1} x', "object 2 must begin with {, not with x"),
        ("a.csv", "a,b\n1,2,3\n", "row 1 has 3 fields, but the header has 2"),
        ("a.csv", "a,b\n1,2\n3\n", "row 2 has 1 fields, but the header has 2"),
        ("a.csv", "a,a\n1,2\n", "the header names a column twice"),
        ("a.csv", 'a,b\n1,"x', "row 1 is not CSV: unexpected end of data"),
        ("a.csv", f"a,b\n1,{'x' * 200_000}", "row 1 is not CSV: field larger than"),
        ("a.txt", "a", r"is of no known kind; files must end in \.jsonl, .*\.parquet"),
    ],
)  # fmt: skip
def test_broken_files(tmp_path, name, content, problem):
    path = put(tmp_path / name, content)
    with pytest.raises(InputError, match=rf"{path}.*{problem}") as caught:
        list(rows.read(rows.find(path)[0]))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_long_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(textfiles, "MAX_LINE_BYTES", 1 << 20)
    path = put(tmp_path / "a.jsonl", '{"prompt": "a"}\n{"prompt": "' + "x" * (1 << 20) + '"}\n')
    with pytest.raises(InputError, match="line 2 is longer than 1 MiB"):
        list(formats.open_records(path, "prompt"))


def test_damaged_gzip(tmp_path):
    packed = bytearray(gzip.compress(jsonl(ROWS).encode()))
    packed[40:60] = b"\xaa" * 20
    path = put(tmp_path / "a.jsonl.gz", bytes(packed))
    with pytest.raises(InputError, match="cannot be read at line"):
        list(rows.read(path))


def test_missing_files(tmp_path):
    with pytest.raises(InputError, match=r"no\.jsonl does not exist"):
        formats.open_records(tmp_path / "no.jsonl", "prompt")
    with pytest.raises(InputError, match=r"holds no \.jsonl, .* file"):
        formats.open_records(tmp_path, "prompt")
