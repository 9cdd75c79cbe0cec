"""OpenAssistant's messages, one a row: the same trees as where a row is a whole tree."""

import json
import random

import pytest

from llama_jax.config import InputError
from llama_jax.data import formats
from tests.data.formats.files import counts, read, write

LIST = (  # id, parent, role, text, and what else is said
    ("q", None, "prompter", "why", {}),
    ("a", "q", "assistant", "because", {"rank": 1}),
    ("b", "q", "assistant", "so", {"rank": 0}),
    ("c", "b", "prompter", "how", {}),
    ("d", "c", "assistant", "thus", {"synthetic": True}),
    ("e", "c", "assistant", "like this", {"rank": None}),
    ("Q", None, "prompter", "who", {}),
    ("A", "Q", "assistant", "me", {"rank": 0}),
    ("B", "Q", "assistant", "nobody", {"rank": 1, "deleted": True}),
)


def rows_of(messages):
    return [
        {"message_id": name, "parent_id": parent, "message_tree_id": "t", "role": role,
         "text": text, "lang": "en", **more}
        for name, parent, role, text, more in messages
    ]  # fmt: skip


def tree_of(name):
    """The message and all below it, as the trees are published."""
    (found,) = [m for m in LIST if m[0] == name]
    replies = [tree_of(m[0]) for m in LIST if m[1] == name]
    return {"role": found[2], "text": found[3], **found[4], "replies": replies}


TREES = [{"message_tree_id": name, "prompt": tree_of(name)} for name in "qQ"]


@pytest.mark.parametrize("kind", ["dialogue", "preference", "prompt"])
def test_messages_make_the_records_of_their_trees(tmp_path, kind):
    (tmp_path / "trees").mkdir()
    _, expected = read(tmp_path / "trees", TREES, kind)
    reading, found = read(tmp_path, rows_of(LIST), kind)
    assert [record.source for record in found] == ["openassistant-messages"] * len(found)
    assert [json.dumps(r.messages) for r in found] == [json.dumps(r.messages) for r in expected]
    if kind == "preference":
        assert [(r.chosen, r.rejected) for r in found] == [("so", "because")]
    assert reading.report.rows == len(LIST)
    assert counts(reading.report.dropped)["a message that was deleted"] == (1, "row 7")


def test_messages_lie_anywhere_in_a_folder(tmp_path):
    shuffled = rows_of(LIST)
    random.Random(3).shuffle(shuffled)
    write(tmp_path, shuffled[:4], "a.jsonl")
    write(tmp_path, shuffled[4:], "b.jsonl")
    found = list(formats.open_records(tmp_path, "dialogue"))
    assert sorted(m["content"] for r in found for m in r.messages) == sorted(
        ["why", "so", "how", "like this", "who", "me"]
    )


def test_what_hangs_below_a_message_that_is_missing_is_dropped_and_counted(tmp_path):
    reading, found = read(tmp_path, rows_of([m for m in LIST if m[0] != "b"]), "dialogue")
    assert [r.messages[-1]["content"] for r in found] == ["because", "me"]
    dropped = counts(reading.report.dropped)
    assert dropped["a message whose parent is not in the data"] == (3, "row 3")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"message_id": "A"}, r"row 9: message_id 'A' comes twice"),
        ({"message_id": 7}, r"row 9: message_id must be text, not 7"),
        ({"parent_id": ["Q"]}, r"row 9: parent_id must be text, not \['Q'\]"),
        ({"parent_id": "B"}, r"row 9: this message is an answer to itself"),
        ({"role": "prompter"}, r"row 7: the role of this message must be assistant"),
        ({"rank": -1}, r"row 7: rank must be"),
    ],
)
def test_messages_that_make_no_tree_are_refused_with_their_row(tmp_path, change, said):
    rows = rows_of(LIST)
    rows[-1] = {**rows[-1], "deleted": None, **change}
    with pytest.raises(InputError, match=said):
        read(tmp_path, rows, "preference")


def test_a_circle_that_others_hang_on_is_found(tmp_path):
    circle = [("x", "y", "assistant", "1", {}), ("y", "z", "prompter", "2", {}),
              ("z", "y", "assistant", "3", {})]  # fmt: skip
    with pytest.raises(InputError, match="row 11: this message is an answer to itself"):
        read(tmp_path, rows_of((*LIST, *circle)), "prompt")
