"""Whatever a file holds: records that come back as they were, or InputError and nothing else."""

import itertools
import json
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_jax.config import InputError
from llama_jax.data import formats
from llama_jax.data.chat import TAGS
from llama_jax.data.records import Dialogue, Preference, Prompt, to_json

anything = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
words = anything.filter(lambda text: text.strip() and not any(tag in text for tag in TAGS))


@st.composite
def conversations(draw, last):
    """Messages of which user and assistant take turns, with or without a system message."""
    said = [{"role": "system", "content": draw(words)}] if draw(st.booleans()) else []
    for i in range(2 * draw(st.integers(0, 2)) + (1 if last == "user" else 2)):
        entry = {"role": ("user", "assistant")[i % 2], "content": draw(words)}
        if i % 2 and draw(st.booleans()):
            entry["train"] = i == 1 or draw(st.booleans())  # one of them, or nothing is learnt
        said.append(entry)
    return tuple(said)


def some(fields):
    return st.lists(st.fixed_dictionaries(fields), min_size=1, max_size=3)


flags = st.none() | st.booleans()
# Fields, not records: what checks types in tests draws at random, which strategies must not.
fields = {
    Dialogue: {"messages": conversations("assistant"), "source": words},
    Prompt: {"messages": conversations("user"), "safety": st.booleans()},
    Preference: {
        "messages": conversations("user"),
        "chosen": words.map(lambda text: f"better {text}"),
        "rejected": words.map(lambda text: f"worse {text}"),
        "rating": st.none() | st.integers(0, 3),
        "margin": st.none() | st.floats(0, 100),
        "safe_chosen": flags,
        "safe_rejected": flags,
    },
}


@pytest.mark.parametrize("kind", fields)
@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
@given(data=st.data())
@settings(deadline=None, max_examples=20)
def test_records_come_back_as_they_were_written(tmp_path_factory, data, kind, suffix):
    given_records = [kind(**values) for values in data.draw(some(fields[kind]))]
    lines = [to_json(record) for record in given_records]
    path = tmp_path_factory.mktemp("r") / f"a{suffix}"
    text = "\n".join(lines) if suffix == ".jsonl" else f"[{','.join(lines)}]"
    path.write_text(text, encoding="utf-8", newline="")
    reading = formats.open_records(path, kind.__name__.lower())
    assert list(reading) == given_records
    assert reading.report.records == reading.report.rows == len(given_records)
    assert not reading.report.dropped


KEYS = sorted({key for form in formats.FORMATS.values() for key in form.keys})
INNER = [
    "role",
    "content",
    "train",
    "weight",
    "from",
    "value",
    "text",
    "replies",
    "rank",
    "deleted",
]
INNER += ["sender", "overall_score", "response", "margin", "rating", "source", "safety"]
SAID = ["\n\nHuman: a\n\nAssistant: b", "[INST] a [/INST]", "\ud800", "\0", "", "safe", "user"]
SAID += ["assistant", "prompter", "human", "gpt", "system"]
numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
atoms = st.none() | st.booleans() | numbers | st.sampled_from(SAID) | st.text(max_size=5)
values = st.recursive(
    atoms,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(INNER), inner, max_size=4)
    ),
    max_leaves=8,
)


@st.composite
def nearly_rows(draw, name):
    """A row with the keys of a format and values that may or may not be what it expects."""
    row = {key: draw(values) for key in sorted(formats.FORMATS[name].keys)}
    return row | draw(st.dictionaries(st.sampled_from(KEYS + INNER), values, max_size=2))


@pytest.mark.parametrize("name", formats.FORMATS)
@given(data=st.data())
@settings(deadline=None, max_examples=12)
def test_any_row_is_read_or_refused(tmp_path_factory, data, name):
    path = tmp_path_factory.mktemp("g") / "a.jsonl"
    given_rows = data.draw(st.lists(nearly_rows(name), min_size=1, max_size=2))
    path.write_text("\n".join(json.dumps(row) for row in given_rows))
    for kind, named in itertools.product(formats.KINDS, (None, name)):
        with suppress(InputError):
            for record in formats.open_records(path, kind, named):
                assert to_json(record).encode()  # nothing that cannot be written


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from([".jsonl", ".jsonl.gz", ".json", ".csv", ".parquet"]),
    st.binary(max_size=60) | st.text(st.sampled_from('[]{}",: \nae1\\u0'), max_size=40),
)
def test_any_bytes_are_read_or_refused(tmp_path_factory, suffix, content):
    path = tmp_path_factory.mktemp("b") / f"a{suffix}"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    for kind in formats.KINDS:
        with suppress(InputError):
            list(formats.open_records(path, kind))
