"""Small rows of every format, with the exact records that come of them."""

import pytest

from llama_jax.config import InputError
from llama_jax.data import formats
from llama_jax.data.records import Preference, Prompt, to_json
from tests.data.formats.files import chat, counts, dialogue, read, write


def hh(*said):
    names = ("Human", "Assistant")
    return "".join(f"\n\n{names[i % 2]}: {text}" for i, text in enumerate(said))


def node(text, *replies, role="prompter", **more):
    return {"text": text, "role": role, "replies": list(replies), **more}


def answer(text, rank, *replies, **more):
    return node(text, *replies, role="assistant", rank=rank, **more)


TREE = node(
    "q",
    answer("worst", 2),
    answer("best", 0, node("ignored"), node("why", answer("so", None))),
    answer("middle", 1),
    answer("gone", 3, deleted=True),
    answer("unranked", None),
)

SINGLE = [  # format, row, kind, records
    ("messages", {"messages": chat("a", "b", system="s")}, "dialogue",
     [dialogue("a", "b", system="s")]),
    ("messages", {"messages": chat("a", "b", "c"), "source": "x"}, "dialogue",
     [dialogue("a", "b", source="x")]),
    ("messages", {"messages": chat("a", "b", "c", "d"), "safety": True}, "prompt",
     [Prompt(messages=chat("a", "b", "c"), safety=True, answer="d")]),
    ("messages", {"messages": chat("a"), "answer": "b"}, "prompt",
     [Prompt(messages=chat("a"), answer="b")]),
    ("messages", {"messages": chat("a", "b", system=" ")}, "dialogue", [dialogue("a", "b")]),
    ("preference",
     {"messages": chat("a"), "chosen": "b", "rejected": "c", "rating": 3, "safe_chosen": False},
     "preference",
     [Preference(messages=chat("a"), chosen="b", rejected="c", rating=3, safe_chosen=False)]),
    ("preference", {"messages": chat("a"), "chosen": "b", "rejected": "c"}, "dialogue",
     [dialogue("a", "b")]),
    ("prompt", {"prompt": "a"}, "prompt", [Prompt(messages=chat("a"), source="prompt")]),
    ("prompt", {"prompt": chat("a", "b", "c")}, "prompt",
     [Prompt(messages=chat("a", "b", "c"), source="prompt")]),
    ("prompt-completion", {"prompt": "a", "completion": "b"}, "dialogue",
     [dialogue("a", "b", source="prompt-completion")]),
    ("kto", {"prompt": "a", "completion": "b", "label": True}, "dialogue",
     [dialogue("a", "b", source="kto")]),
    ("kto", {"prompt": "a", "completion": "b", "label": False}, "prompt",
     [Prompt(messages=chat("a"), source="kto")]),
    ("trl", {"prompt": "a", "chosen": "b", "rejected": "c", "margin": 0.5}, "preference",
     [Preference(messages=chat("a"), chosen="b", rejected="c", margin=0.5, source="trl")]),
    ("trl", {"prompt": chat("a"), "chosen": chat("a", "b")[1:], "rejected": chat("a", "c")[1:]},
     "preference", [Preference(messages=chat("a"), chosen="b", rejected="c", source="trl")]),
    ("trl", {"chosen": chat("a", "x", "c", "d"), "rejected": chat("a", "x", "c", "e")},
     "preference",
     [Preference(messages=chat("a", "x", "c"), chosen="d", rejected="e", source="trl")]),
    ("hh-rlhf", {"chosen": hh("a", "b", "c", "d"), "rejected": hh("a", "b", "c", "e")},
     "preference",
     [Preference(messages=chat("a", "b", "c"), chosen="d", rejected="e", source="hh-rlhf")]),
    ("hh-rlhf", {"prompt": hh("a", ""), "chosen": " b", "rejected": " c"}, "preference",
     [Preference(messages=chat("a"), chosen="b", rejected="c", source="hh-rlhf")]),
    ("hh-rlhf", {"chosen": hh("a", "b"), "rejected": hh("a", "c")}, "prompt",
     [Prompt(messages=chat("a"), source="hh-rlhf")]),
    ("ultrafeedback-binarized",
     {"prompt": "a", "messages": chat("a", "b"), "chosen": chat("a", "b"),
      "rejected": chat("a", "c"), "score_chosen": 8.5, "score_rejected": 6.75},
     "preference",
     [Preference(messages=chat("a"), chosen="b", rejected="c", rating=1,
                 source="ultrafeedback-binarized")]),
    ("ultrafeedback",
     {"source": "evol", "instruction": "a", "completions": [
         {"response": "four", "overall_score": 4}, {"response": "nine", "overall_score": 9.0},
         {"response": "none", "overall_score": "N/A"}, {"response": "3.5", "overall_score": 3.5}]},
     "preference",
     [Preference(messages=chat("a"), chosen=c, rejected=r, rating=rating, source="evol")
      for c, r, rating in (("nine", "four", 3), ("nine", "3.5", 3), ("four", "3.5", 0))]),
    ("ultrafeedback",
     {"instruction": "a", "completions": [
         {"response": "low", "overall_score": 1}, {"response": "high", "overall_score": 2}]},
     "dialogue", [dialogue("a", "high", source="ultrafeedback")]),
    ("ultrafeedback", {"instruction": "a", "completions": []}, "prompt",
     [Prompt(messages=chat("a"), source="ultrafeedback")]),
    ("helpsteer2",
     {"prompt": "a", "response_1": "b", "response_2": "c", "preference_strength": -1},
     "preference",
     [Preference(messages=chat("a"), chosen="b", rejected="c", rating=1, source="helpsteer2")]),
    ("helpsteer2",
     {"prompt": "a\n<extra_id_1>Assistant\nx\n<extra_id_1>User\nc", "response_1": "b",
      "response_2": "d", "preference_strength": 3},
     "preference",
     [Preference(messages=chat("a", "x", "c"), chosen="d", rejected="b", rating=3,
                 source="helpsteer2")]),
    ("openassistant", {"message_tree_id": "1", "prompt": TREE}, "dialogue",
     [dialogue("q", "best", "why", "so", source="openassistant")]),
    ("openassistant", {"message_tree_id": "1", "prompt": TREE}, "preference",
     [Preference(messages=chat("q"), chosen=c, rejected=r, source="openassistant")
      for c, r in (("best", "middle"), ("best", "worst"), ("middle", "worst"))]),
    ("openassistant", {"message_tree_id": "1", "prompt": TREE}, "prompt",
     [Prompt(messages=m, source="openassistant")
      for m in (chat("q"), chat("q", "best", "ignored"), chat("q", "best", "why"))]),
    ("alpaca", {"instruction": "a", "input": "", "output": "b"}, "dialogue",
     [dialogue("a", "b", source="alpaca")]),
    ("alpaca", {"instruction": "a", "input": "i", "output": "b"}, "dialogue",
     [dialogue("a\n\ni", "b", source="alpaca")]),
    ("sharegpt",
     {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
     "dialogue", [dialogue("a", "b", source="sharegpt")]),
    ("sharegpt",
     {"system": "s", "conversations": [{"role": "user", "content": "a"},
                                       {"role": "assistant", "content": "b"}]},
     "dialogue", [dialogue("a", "b", system="s", source="sharegpt")]),
    ("llama2-text",
     {"text": "<s>[INST] <<SYS>>\ns\n<</SYS>>\n\na [/INST] b </s><s>[INST] c [/INST] d </s>"},
     "dialogue", [dialogue("a", "b", "c", "d", system="s", source="llama2-text")]),
    ("llama2-text", {"text": "[INST] a [/INST] b [INST] c [/INST]"}, "prompt",
     [Prompt(messages=chat("a", "b", "c"), source="llama2-text")]),
    ("xstest", {"id": "1", "prompt": "a", "type": "homonyms", "label": "safe", "focus": "kill"},
     "prompt", [Prompt(messages=chat("a"), source="xstest homonyms")]),
    ("mt-bench", {"question_id": 1, "category": "maths", "turns": ["a", "b"]},
     "prompt", [Prompt(messages=chat("a"), source="mt-bench maths")]),
    ("xstest", {"prompt": "a", "type": "contrast_homonyms", "focus": "kill"},
     "prompt", [Prompt(messages=chat("a"), safety=True, source="xstest contrast_homonyms")]),
    ("chitchat",
     {"start": "2018", "messages": [
         [{"sender": "x", "text": "a"}, {"sender": "x", "text": "a2"}],
         [{"sender": "y", "text": "b"}], [{"sender": "x", "text": " "}],
         [{"sender": "y", "text": "b2"}], [{"sender": "x", "text": "c"}],
         [{"sender": "y", "text": "d"}], [{"sender": "x", "text": "e"}]]},
     "dialogue", [dialogue("a\na2", "b\nb2", "c", "d", source="chitchat")]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "row", "kind", "expected"), SINGLE)
def test_a_row(tmp_path, name, row, kind, expected):
    reading, records = read(tmp_path, [row], kind)
    assert records == expected
    assert (reading.report.format, reading.report.rows) == (name, 1)
    assert reading.report.records == len(expected)
    _, named = read(tmp_path, [row], kind, format=name)
    assert named == expected


def test_every_format_and_kind_is_tried():
    tried = {(name, kind) for name, _, kind, _ in SINGLE}
    several = {"openassistant-messages"}  # one record needs several rows: test_openassistant.py
    assert {name for name, _ in tried} == set(formats.FORMATS) - several
    for name, form in formats.FORMATS.items():
        if name in several:
            continue
        own_readers = len({id(reader) for reader in form.reads.values()})
        assert sum(n == name for n, _ in tried) >= own_readers


def test_only_the_completion_is_trained_on(tmp_path):
    row = {"prompt": list(chat("a", "b", "c")), "completion": list(chat("a", "d")[1:])}
    _, (record,) = read(tmp_path, [row], "dialogue")
    assert [m.get("train") for m in record.messages] == [None, False, None, None]


def test_weights_say_what_is_trained_on(tmp_path):
    row = {"messages": [dict(m) for m in chat("a", "b", "c", "d")]}
    row["messages"][1]["weight"] = 0
    row["messages"][3] |= {"weight": 1, "name": None}
    _, (record,) = read(tmp_path, [row], "dialogue")
    assert [m.get("train") for m in record.messages] == [None, False, None, True]
    assert {key for m in record.messages for key in m} == {"role", "content", "train"}


def test_our_records_come_back(tmp_path):
    given = [
        Preference(messages=chat("a", system="s"), chosen="b", rejected="c", margin=1.5),
        Preference(messages=chat("a\u2028é"), chosen="b", rejected="c", rating=0, source="x",
                   safe_chosen=True, safe_rejected=False),
    ]  # fmt: skip
    path = tmp_path / "a.jsonl"
    path.write_text("".join(to_json(record) + "\n" for record in given), encoding="utf-8")
    assert list(formats.open_records(path, "preference")) == given


def test_a_reading_can_be_repeated(tmp_path):
    rows = [{"prompt": "a", "completion": "b", "label": label} for label in (True, False, True)]
    reading, records = read(tmp_path, rows, "dialogue")
    assert list(reading) == records
    assert len(records) == 2
    assert reading.report.lines() == [
        f"{tmp_path / 'data.jsonl'}: 2 dialogues from 3 rows of TRL unpaired preferences (KTO)",
        "  dropped 1: labelled as a bad answer (first: row 2)",
    ]


def test_a_folder_is_read_in_order(tmp_path):
    write(tmp_path, [{"prompt": "b"}, {"prompt": "c"}], "b.jsonl")
    write(tmp_path, [{"prompt": "a"}], "a.jsonl")
    (tmp_path / "README.md").write_text("not data")
    reading = formats.open_records(tmp_path, "prompt")
    assert [record.messages[0]["content"] for record in reading] == ["a", "b", "c"]
    write(tmp_path, [{"prompt": "d"}, {"messages": chat("a")}], "c.jsonl")
    with pytest.raises(InputError, match=r"c\.jsonl, row 2 is messages"):
        list(formats.open_records(tmp_path, "prompt"))


@pytest.mark.parametrize(
    ("row", "names"),
    [
        ({"messages": chat("a", "b"), "conversations": []}, "messages and sharegpt"),
        ({"instruction": "a", "output": "b", "completions": []}, "ultrafeedback and alpaca"),
        ({"messages": chat("a", "b"), "text": "[INST] a [/INST] b"}, "messages and llama2-text"),
    ],
)
def test_two_formats_that_fit_are_named(tmp_path, row, names):
    with pytest.raises(InputError, match=rf"row 1 fits formats {names}; name one with --format"):
        formats.open_records(write(tmp_path, [row]), "dialogue")
    if "messages" in row:
        assert read(tmp_path, [row], "dialogue", "messages")[1] == [dialogue("a", "b")]


@pytest.mark.parametrize(
    ("rows", "kind", "format", "problem"),
    [
        ([{"prompt": "a"}], "story", None, "kind 'story' is unknown"),
        ([{"prompt": "a"}], "prompt", "promt", "did you mean prompt"),
        ([{"prompt": "a"}], "dialogue", None, "can be read as prompt, not as dialogue"),
        ([{"text": "plain"}], "dialogue", None, "no known format: it has 'text'; known are mess"),
        ([{}], "dialogue", None, "it has no columns"),
        ([{"messages": chat("a", "b")}, {"conversations": []}], "dialogue", None,
         "row 2 is sharegpt, but the first row is messages"),
        ([{"messages": chat("a", "b")}, {"x": 1}], "dialogue", None, "row 2 is of no known"),
        ([{"x": 1}], "dialogue", "alpaca", "row 1 is not of format alpaca: it lacks instruction"),
        ([], "dialogue", None, "holds no rows"),
        ([], "dialogue", "alpaca", "holds no dialogue: the file is empty"),
        ([{"prompt": "a", "completion": "b", "label": False}] * 3, "dialogue", None,
         r"all of its 3 rows were dropped \(3 times labelled as a bad answer\)"),
    ],
)  # fmt: skip
def test_what_cannot_be_read(tmp_path, rows, kind, format, problem):
    with pytest.raises(InputError, match=problem):
        read(tmp_path, rows, kind, format)


def test_null_columns_are_missing_columns(tmp_path):
    rows = [{"prompt": "a", "completion": None}, {"prompt": "b", "messages": None}]
    reading, records = read(tmp_path, rows, "prompt")
    assert [len(records), reading.report.format] == [2, "prompt"]


def test_the_installed_package(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(InputError, match="pip install chitchat-dataset"):
            formats.open_records("chitchat", "dialogue")
    row = SINGLE[-1][1]
    package = tmp_path / "chitchat_dataset"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('only its data is wanted')")
    path = write(package, [{"id1": row, "id2": row | {"messages": row["messages"][:2]}}])
    path.rename(package / "dataset.json")
    monkeypatch.syspath_prepend(str(tmp_path))
    reading = formats.open_records("chitchat", "dialogue")
    assert list(reading) == SINGLE[-1][3]
    assert counts(reading.report.dropped) == {"less than 2 exchanges": (1, "row 2")}
