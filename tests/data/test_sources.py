import codecs
import gzip
import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_jax.config import InputError
from llama_jax.data import textfiles
from llama_jax.data.corpora.tales.instructions import short_story
from llama_jax.data.sources import SPLITS, Files, resolve
from llama_jax.data.split import in_validation

TEXTS = [f"document {i}\nwith é and 日本" for i in range(300)]


def write_jsonl(path, texts, field="text"):
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps({field: text, "id": i}) + "\n" for i, text in enumerate(texts))
    opener = gzip.open if path.name.endswith(".gz") else open
    with opener(path, "wb") as file:
        file.write(lines.encode())
    return str(path)


def read(source, split):
    return [text for chunk in source.chunks(split) for text in source.documents(split, chunk)]


def read_all(spec, **kwargs):
    ((source, _),) = resolve(spec, **kwargs)
    return {split: read(source, split) for split in SPLITS}


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_jsonl_is_split_by_hash(tmp_path, name):
    found = read_all(write_jsonl(tmp_path / name, TEXTS))
    assert found["train"] == [text for text in TEXTS if not in_validation(text)]
    assert found["validation"] == [text for text in TEXTS if in_validation(text)]
    assert len(found["validation"]) > 3


@pytest.mark.parametrize("name", ["a.json.gz", "a.ndjson", "a.json", "a.ndjson.gz"])
def test_json_lines_under_other_names(tmp_path, name):
    assert read_all(write_jsonl(tmp_path / name, TEXTS)) == read_all(
        write_jsonl(tmp_path / "a.jsonl", TEXTS)
    )


def test_packed_text(tmp_path):
    text = "\n<|endoftext|>\n".join(TEXTS).encode()
    (tmp_path / "a.txt").write_bytes(text)
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(text))
    assert read_all(str(tmp_path / "a.txt.gz")) == read_all(str(tmp_path / "a.txt"))


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt"])
def test_byte_order_marks_go(tmp_path, name):
    write = {"a.jsonl": write_jsonl, "a.txt": write_text}[name]
    bare = Files(write(tmp_path / name, TEXTS), "text")
    content = (tmp_path / name).read_bytes()
    marked = tmp_path / f"marked-{name}"
    marked.write_bytes(codecs.BOM_UTF8 + content)  # as Windows editors write it
    found = Files(str(marked), "text")
    assert read(found, "train") == read(bare, "train")
    assert found.identity == bare.identity
    marked.write_bytes((codecs.BOM_UTF8 + content + b"\n") * 2)  # two of them, put together
    assert read(found := Files(str(marked), "text"), "train") == 2 * read(bare, "train")
    assert "\ufeff" not in "".join(read(found, "validation"))


def write_text(path, texts):
    path.write_text("\n<|endoftext|>\n".join(texts) + "\n<|endoftext|>\n")
    return str(path)


def test_a_text_is_read_once_and_what_is_left_out_is_said(tmp_path, caplog):
    write_jsonl(tmp_path / "a.jsonl", TEXTS)
    write_jsonl(tmp_path / "copy of a.jsonl.gz", TEXTS)
    write_jsonl(tmp_path / "b.json", ["another"])
    (tmp_path / "dataset_info.json").write_text('{\n "license": "MIT"\n}\n')
    (tmp_path / "part-7.jsonl").write_text("")
    (tmp_path / "LICENSE.txt").write_text("as is")
    with caplog.at_level("INFO"):
        found = read_all(str(tmp_path))
    assert sorted(found["train"] + found["validation"]) == sorted([*TEXTS, "another"])
    assert caplog.messages == [
        f"data {tmp_path}: 2 files read; left out: LICENSE.txt (licence or readme); copy of "
        "a.jsonl.gz (copy of another); dataset_info.json (no lines of JSON with 'text'); "
        "part-7.jsonl (empty)"
    ]


def test_a_folder_of_empty_files(tmp_path):
    (tmp_path / "a.jsonl").write_text("")
    with pytest.raises(InputError, match=r"holds no text; left out: a\.jsonl \(empty\)"):
        read_all(str(tmp_path))


def test_split_is_stable_when_a_file_grows(tmp_path):
    before = read_all(write_jsonl(tmp_path / "a.jsonl", TEXTS[:200]))
    after = read_all(write_jsonl(tmp_path / "a.jsonl", TEXTS))
    for split in SPLITS:
        assert after[split][: len(before[split])] == before[split]


def test_folder_is_read_in_sorted_order(tmp_path):
    write_jsonl(tmp_path / "b.jsonl", TEXTS[100:])
    write_jsonl(tmp_path / "a" / "deep.jsonl", TEXTS[:100])
    (tmp_path / "notes.md").write_text("not data")
    assert read_all(str(tmp_path))["train"] == [t for t in TEXTS if not in_validation(t)]


def test_separated_text_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("\n<|endoftext|>\n".join(TEXTS) + "\n<|endoftext|>\n")
    found = read_all(str(path))
    assert sorted(found["train"] + found["validation"]) == sorted(TEXTS)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), max_size=900),
                min_size=1, max_size=40))  # fmt: skip
def test_plain_text_loses_nothing(tmp_path_factory, lines):
    path = tmp_path_factory.mktemp("t") / "a.txt"
    text = "\n".join(lines)
    path.write_bytes(text.encode())
    if not text:
        return
    for size in (1, 1000, 10**9):
        chunks = textfiles.scan(path, chunk_bytes=size).chunks
        documents = [d for chunk in chunks for d in textfiles.read_chunk(chunk, "text")]
        assert "".join("".join(documents).split("\n")) == "".join(lines)
        assert [chunks[0].start, chunks[-1].stop] == [0, path.stat().st_size]


@pytest.mark.parametrize("size", [1, 50, 1000, 10**9])
def test_chunks_do_not_change_documents(tmp_path, size):
    path = tmp_path / "a.jsonl"
    write_jsonl(path, TEXTS)
    chunks = textfiles.scan(path, chunk_bytes=size).chunks
    assert [t for chunk in chunks for t in textfiles.read_chunk(chunk, "text")] == TEXTS
    assert (len(chunks) > 3) == (size < 1001)


def test_a_book_is_cut_into_passages(tmp_path):
    path = tmp_path / "book.txt"
    paragraphs = [f"Paragraph {i}. " + "word " * 150 for i in range(100)]
    path.write_text("\n\n".join(paragraphs))
    found = read_all(str(path))
    assert len(found["train"]) > 10
    assert max(map(len, found["train"])) < 6000
    assert all(text.startswith("Paragraph") for text in found["train"])


def test_identity_follows_content_not_place(tmp_path):
    one = Files(write_jsonl(tmp_path / "a.jsonl", TEXTS), "text").identity
    same = Files(write_jsonl(tmp_path / "x" / "b.jsonl", TEXTS), "text").identity
    other = Files(write_jsonl(tmp_path / "c.jsonl", TEXTS[:-1]), "text").identity
    assert one == same != other


def test_mixture(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", TEXTS)
    parts = resolve(f"tales:50=3, {path}=1")
    assert [(source.name, weight) for source, weight in parts] == [("tales", 0.75), ("a", 0.25)]
    assert len(parts[0][0].chunks("train")[0]) == 50


def test_text_field(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", TEXTS, field="content")
    assert len(read_all(path, text_field="content")["train"]) > 200
    with pytest.raises(InputError, match=r"line 1 has no field 'text'; it has \['content', 'id'\]"):
        read_all(path)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("tails", "did you mean tales"),
        ("python-docs", "did you mean python_docs"),
        ("no/such/file.jsonl", "neither a corpus nor an existing file"),
        ("tales:many", "write tales:N"),
        ("tales=0.5,python_docs", "has no weight"),
        ("tales=0.5,python_docs=-1", "must be a positive number"),
        ("tales=x", "must be a positive number"),
        ("tales=nan", "must be a positive number"),
        ("tales=1,tales=2", "names the same data twice"),
        ("hf:owner/name", "pip install datasets"),
    ],
)
def test_bad_specifications(spec, message):
    with pytest.raises(InputError, match=message):
        read_all(spec)


def test_unknown_tfds_name():
    with pytest.raises(InputError, match="did you mean tfds:imdb_reviews"):
        read_all("tfds:imdb_review")
    with pytest.raises(InputError, match="write tfds:NAME"):
        read_all("tfds:")


def test_tfds_data_set_that_is_not_prepared(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path))
    with pytest.raises(InputError, match=r"not prepared as ArrayRecord .*tfds build imdb_reviews"):
        read_all("tfds:imdb_reviews")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b'{"text": "a"}\nnot json\n', "line 2 is not JSON"),
        (b'{"text": "a"}\n[1]\n', "line 2 is not a JSON object"),
        (b'{"text": "a"}\n{"text": 5}\n', "line 2 has the number 5 in its field 'text'"),
        (b'{"text": null}\n', "line 1 has null in its field 'text'"),
        (b'{"text": ["a", "b"]}\n', "line 1 has a list in its field 'text'"),
        (b'[\n{"text": "a"}\n]\n', r"line 1 is not JSON.*jq -c '\.\[\]'"),
        ('{"text": "a"}'.encode("utf-16"), "is UTF-16; convert it: iconv"),
        (b'{"text": "a"}\n\xff\xfe\n', "line 2, byte 0 is not UTF-8"),
        (b'{"text": "a"}\n\0\0\n', "line 2 holds a NUL byte"),
        (b'{"text": "a"}\n{"text": "\\ud800"}\n', "line 2 holds a lone surrogate"),
        (b"[" * 100_000 + b"\n", "line 1 is not JSON"),
    ],
)
def test_bad_jsonl(tmp_path, content, message):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"{path}.*{message}"):
        read_all(str(path))


def test_huge_line(tmp_path, monkeypatch):
    monkeypatch.setattr(textfiles, "MAX_LINE_BYTES", 1 << 20)
    path = tmp_path / "a.txt"
    path.write_bytes(b"ok\n" + b"x" * ((1 << 20) + 1))
    with pytest.raises(InputError, match="line 2 is longer than 1 MiB"):
        read_all(str(path))


def test_bad_files(tmp_path):
    (tmp_path / "a.csv").write_text("x")
    with pytest.raises(InputError, match=r"a\.csv is of no known kind.*\.jsonl"):
        read_all(str(tmp_path / "a.csv"))
    with pytest.raises(InputError, match=r"holds no \.jsonl"):
        read_all(str(tmp_path))
    path = tmp_path / "a.jsonl.gz"
    write_jsonl(path, TEXTS)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match="cannot be read at line"):
        read_all(str(path))
    path.write_bytes(b"no gzip")
    with pytest.raises(InputError, match="cannot be read at line 1"):
        read_all(str(path))


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("x")
    path.chmod(0)
    with pytest.raises(InputError, match="Permission denied"):
        read_all(str(path))


def test_short_tales_are_a_corpus_of_their_own():
    ((source, weight),) = resolve("short_tales:50")
    assert (source.name, weight) == ("short_tales", 1.0)
    ((tales, _),) = resolve("tales:50")
    assert source.identity != tales.identity
    (chunk,) = source.chunks("train")
    assert list(source.documents("train", chunk))[:2] == [short_story(0), short_story(1)]
    (chunk,) = source.chunks("validation")
    assert list(source.documents("validation", chunk)) == [
        short_story(i, "validation") for i in range(3)
    ]
