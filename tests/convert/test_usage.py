"""usage.json: what is written comes back, what is no such file is one line."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_jax.config import InputError
from llama_jax.convert.usage import Usage, Words
from tests.convert.models import tokenizer

USAGE = Usage(
    end_ids=(7, 5), add_bos=False, chat_template="é{{", special_tokens={"pad_token": "<p>"},
    generation={"temperature": 0.5, "top_k": 3, "stop": ["a"]},
)  # fmt: skip


@pytest.mark.parametrize("usage", [Usage(), USAGE])
def test_it_comes_back(usage):
    assert Usage.from_json(usage.to_json().encode(), "usage.json") == usage


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 2}, "has format_version 2, not 1"),
        ({"extra": 1}, r"has unknown keys \['extra'\]"),
        ({"end_ids": [1, -1]}, r"end_ids=\[1, -1\]"),
        ({"end_ids": [True]}, r"end_ids=\[True\]"),
        ({"end_ids": list(range(99))}, "end_ids="),
        ({"end_ids": None}, "end_ids=None"),
        ({"add_bos": 1}, "add_bos=1"),
        ({"chat_template": 3}, "chat_template=3"),
        ({"special_tokens": {"a": 3}}, "special_tokens={'a': 3}"),
        ({"generation": []}, r"generation=\[\]"),
    ],
)
def test_what_no_such_file_holds_is_named(change, message):
    values = json.loads(USAGE.to_json()) | change
    with pytest.raises(InputError, match=f"u.json.*{message}"):
        Usage.from_json(json.dumps(values).encode(), "u.json")


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
)


@given(st.dictionaries(st.sampled_from(sorted(json.loads(USAGE.to_json()))), plain))
def test_any_values_are_a_usage_or_one_line(values):
    try:
        found = Usage.from_json(json.dumps({"format_version": 1} | values).encode(), "x")
    except InputError:
        return
    assert Usage.from_json(found.to_json().encode(), "x") == found


def test_what_a_format_has_no_place_for_is_named_in_one_sentence():
    (note,) = USAGE.left_out({"generation", "chat_template"}, "a file")
    assert note == (
        "Left out, since a file has no place for it: ends of text besides the tokenizer's own "
        "([7, 5]); add_bos_token=false; the names of special tokens (['pad_token'])."
    )
    assert Usage().left_out((), "a file") == []


def test_the_tokenizers_own_end_is_not_said_twice():
    words = Words(tokenizer().model_bytes, Usage(end_ids=(5, 2, 5)))
    assert words.own_ends.usage.end_ids == (5,)
    assert Words(None, Usage(end_ids=(2,))).own_ends.usage.end_ids == (2,)
