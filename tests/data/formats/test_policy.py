"""What is dropped and counted, what is changed and noted, and what is refused."""

import pytest

from llama_jax.config import InputError
from tests.data.formats.files import chat, counts, dialogue, read

H, A = "\n\nHuman:", "\n\nAssistant:"
GOOD = {  # a row of each format from which a record comes, kept beside the one that is dropped
    "hh-rlhf": {"chosen": f"{H} a{A} b", "rejected": f"{H} a{A} c"},
    "helpsteer2": {"prompt": "a", "response_1": "b", "response_2": "c", "preference_strength": 1},
    "trl": {"prompt": "a", "chosen": "b", "rejected": "c"},
    "preference": {"messages": chat("a"), "chosen": "b", "rejected": "c"},
    "messages": {"messages": chat("a", "b")},
    "alpaca": {"instruction": "a", "output": "b"},
    "sharegpt": {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
    "ultrafeedback": {
        "instruction": "a",
        "completions": [
            {"response": "b", "overall_score": 1},
            {"response": "c", "overall_score": 2},
        ],
    },
    "ultrafeedback-binarized": {
        "chosen": chat("a", "b"), "rejected": chat("a", "c"),
        "score_chosen": 2, "score_rejected": 1,
    },
    "openassistant": {
        "message_tree_id": "1",
        "prompt": {"text": "a", "role": "prompter", "replies": [
            {"text": "b", "role": "assistant", "rank": 0},
            {"text": "c", "role": "assistant", "rank": 1}]},
    },
    "llama2-text": {"text": "[INST] a [/INST] b"},
    "mt-bench": {"question_id": 1, "category": "maths", "turns": ["a"]},
    "xstest": {"prompt": "a", "type": "homonyms", "focus": "kill", "label": "safe"},
    "chitchat": {"start": "", "messages": [[{"sender": s, "text": "t"}] for s in "xyxy"]},
    "kto": {"prompt": "a", "completion": "b", "label": True},
    "prompt-completion": {"prompt": "a", "completion": "b"},
}  # fmt: skip


def shared(*pairs):
    return {"conversations": [{"from": speaker, "value": value} for speaker, value in pairs]}


def sides(chosen, rejected):
    return {"chosen": chosen, "rejected": rejected}


def tree(**more):
    prompt = GOOD["openassistant"]["prompt"]
    return {"message_tree_id": "2", "prompt": prompt | more}


DROPPED = [
    ("hh-rlhf", sides(f"{H} a{A} b", f"{H} x{A} c"), "preference",
     "the conversations differ before the two answers"),
    ("hh-rlhf", sides(f"{H} a{A} x{A} b", f"{H} a{A} x{A} c"), "preference",
     "the conversation does not end with the human"),
    ("hh-rlhf", sides(f"{H} a{A} ", f"{H} a{A} c"), "preference", "the chosen answer is empty"),
    ("hh-rlhf", sides(f"{H} a{A} ", f"{H} a{A} c"), "dialogue", "an answer is empty"),
    ("hh-rlhf", sides(f"{H} a{A} b", f"{H} a{A}"), "preference", "the rejected answer is empty"),
    ("hh-rlhf", sides(f"{H} a{A} b", f"{H} a{A} b "), "preference", "the two answers are the same"),
    ("hh-rlhf", sides(f"{H} a{A}{H} b{A} c", f"{H} a{A}{H} b{A} d"), "preference",
     "an answer is empty"),
    ("hh-rlhf", sides(f"{H} a{A}{H} b{A} c", f"{H} a{A}{H} b{A} d"), "prompt",
     "an answer is empty"),
    ("trl", {"prompt": "a", "chosen": " ", "rejected": "c"}, "preference",
     "the chosen answer is empty"),
    ("trl", {"prompt": "a", "chosen": "c ", "rejected": "c"}, "preference",
     "the two answers are the same"),
    ("trl", sides(chat("a", "b"), chat("x", "c")), "preference",
     "the conversations differ before the two answers"),
    ("preference", {"messages": chat("a"), "chosen": "", "rejected": "c"}, "dialogue",
     "an answer is empty"),
    ("helpsteer2", GOOD["helpsteer2"] | {"preference_strength": 0}, "preference",
     "a tie: neither answer is better"),
    ("ultrafeedback-binarized", GOOD["ultrafeedback-binarized"] | {"score_rejected": 2},
     "preference", "a tie: neither answer is better"),
    ("ultrafeedback-binarized", GOOD["ultrafeedback-binarized"] | {"score_rejected": 3},
     "preference", "the rejected answer has the higher score"),
    ("ultrafeedback-binarized", GOOD["ultrafeedback-binarized"] | {"rejected": chat("x", "c")},
     "preference", "the conversations differ before the two answers"),
    ("ultrafeedback", {"instruction": "a", "completions": []}, "preference",
     "less than two scored answers"),
    ("ultrafeedback", {"instruction": "a", "completions": []}, "dialogue", "no scored answer"),
    ("openassistant", tree(deleted=True), "dialogue", "a message that was deleted"),
    ("openassistant", tree(review_result=False), "prompt", "a message that failed its review"),
    ("openassistant", tree(synthetic=True), "preference", "a message that a model wrote"),
    ("openassistant", tree(replies=[]), "dialogue", "no answer is left"),
    ("openassistant", tree(replies=[]), "preference", "no question has two ranked answers"),
    ("messages", {"messages": chat("a")}, "dialogue", "no answer"),
    ("messages", {"messages": chat(system="s")}, "prompt", "no question"),
    ("messages", {"messages": [*chat("a"), {"role": "assistant", "content": "b", "weight": 0}]},
     "dialogue", "no answer is trained on"),
    ("kto", GOOD["kto"] | {"label": False}, "dialogue", "labelled as a bad answer"),
    ("alpaca", {"instruction": "a", "output": ""}, "dialogue", "an answer is empty"),
    ("sharegpt", shared(("human", "a"), ("gpt", "<div class='x'>b\n</div>")), "dialogue",
     "an answer is HTML"),
    ("sharegpt", shared(("gpt", "b")), "dialogue", "no message of the user"),
    ("sharegpt", shared(), "prompt", "no message of the user"),
    ("chitchat", {"start": "", "messages": [[{"sender": "x", "text": "t"}]]}, "dialogue",
     "not a conversation of two people"),
    ("chitchat", {"start": "", "messages": GOOD["chitchat"]["messages"][:3]}, "dialogue",
     "less than 2 exchanges"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "row", "kind", "reason"), DROPPED)
def test_a_dropped_row(tmp_path, name, row, kind, reason):
    alone = len(read(tmp_path, [GOOD[name]], kind)[1])
    reading, records = read(tmp_path, [GOOD[name], row, row], kind)
    assert counts(reading.report.dropped) == {reason: (2, "row 2")}
    assert [len(records), reading.report.rows] == [alone, 3]
    assert f"  dropped 2: {reason} (first: row 2)" in reading.report.lines()


@pytest.mark.parametrize(
    ("name", "row", "expected", "notes"),
    [
        ("messages", {"messages": chat("a", "b", "c")}, dialogue("a", "b"),
         ["a question at the end that nobody answered was cut off"]),
        ("sharegpt", shared(("system", "s"), ("gpt", "x"), ("human", "a"), ("gpt", "b")),
         dialogue("a", "b", system="s", source="sharegpt"),
         ["answers before the first question were removed"]),
        ("sharegpt", shared(("human", "a"), ("human", "a2"), ("gpt", "b"), ("gpt", "b2")),
         dialogue("a\n\na2", "b\n\nb2", source="sharegpt"),
         ["messages of one speaker in a row were joined"]),
        ("hh-rlhf", sides(f"{H} a{A} b{A} b2{H} c{A} d", f"{H} a{A} b{A} b2{H} c{A} e"),
         dialogue("a", "b\n\nb2", "c", "d", source="hh-rlhf"),
         ["messages of one speaker in a row were joined"]),
    ],
)  # fmt: skip
def test_what_is_changed_is_noted(tmp_path, name, row, expected, notes):
    reading, records = read(tmp_path, [row], "dialogue")
    assert records == [expected]
    assert counts(reading.report.notes) == {note: (1, "row 1") for note in notes}
    assert reading.report.format == name


def test_unrated_pairs_are_noted(tmp_path):
    rows = [GOOD["trl"], GOOD["trl"] | {"margin": 0.0}, GOOD["trl"]]
    reading, _ = read(tmp_path, rows, "preference")
    assert counts(reading.report.notes) == {"nobody rated the pair": (2, "row 1")}


def test_code_that_quotes_html_is_kept(tmp_path):
    text = "Write <div>hello</div> into the file."
    _, records = read(tmp_path, [shared(("human", "a"), ("gpt", text))], "dialogue")
    assert records == [dialogue("a", text, source="sharegpt")]


def with_message(number, **values):
    said = [dict(m) for m in chat("a", "b", "c", "d")]
    said[number] |= values
    return {"messages": said}


REFUSED = [
    ("messages", with_message(1, role="tool"), "dialogue",
     r"the role of messages\[1\] must be system, user or assistant, not 'tool'"),
    ("messages", with_message(0, role="assistant"), "dialogue", "message 0: expected a user"),
    ("messages", with_message(2, role="assistant"), "dialogue", "message 2: expected a user"),
    ("messages", with_message(2, role="system"), "dialogue", "message 2: a system message must be"),
    ("messages", with_message(1, content=" "), "dialogue", "message 1: the assistant's answer is"),
    ("messages", with_message(1, content=None), "dialogue",
     r"the content of messages\[1\] must be text, not None"),
    ("messages", with_message(1, weight=2), "dialogue", "weight must be a number from 0 to 1"),
    ("messages", with_message(1, weight=0.5), "dialogue", "weight must be a whole number"),
    ("messages", with_message(1, weight=1, train=True), "dialogue", "both train and weight"),
    ("messages", with_message(0, weight=0), "dialogue", r"messages\[0\] is the user's; only the"),
    ("messages", with_message(1, train="no"), "dialogue", "train must be true or false"),
    ("messages", {"messages": "a"}, "dialogue", "messages must be a list of messages, not 'a'"),
    ("messages", {"messages": ["a"]}, "dialogue", r"messages\[0\] must be an object, not 'a'"),
    ("messages", GOOD["messages"] | {"source": "\ud800"}, "dialogue", "source holds a lone"),
    ("messages", GOOD["messages"] | {"safety": 1}, "prompt", "safety must be true or false, not 1"),
    *(("messages", with_message(n, content=f"x {tag} y"), "dialogue",
       rf"message {n} holds {tag}".replace("[", r"\["))
      for n in (0, 1) for tag in ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>")),
    ("messages", with_message(0, content="a\0b"), "dialogue", "message 0 holds a NUL character"),
    ("messages", with_message(0, content="\ude00"), "dialogue", "message 0 holds a lone surrogate"),
    ("preference", GOOD["preference"] | {"rating": 4}, "preference",
     "rating must be a number from 0 to 3, not 4"),
    ("preference", GOOD["preference"] | {"rating": True}, "preference", "rating must be a number"),
    ("preference", GOOD["preference"] | {"rating": 1.5}, "preference", "must be a whole number"),
    ("preference", GOOD["preference"] | {"messages": chat("a", "b")}, "preference",
     "the last message must be the user's"),
    ("preference", GOOD["preference"] | {"rejected": "x [INST]"}, "preference",
     r"rejected holds \[INST\]"),
    ("trl", GOOD["trl"] | {"margin": -1}, "preference", "margin must be a number from 0 to"),
    ("trl", GOOD["trl"] | {"margin": "1"}, "preference", "margin must be a number from 0 .* '1'"),
    ("trl", sides("a", "b"), "preference", "answers without what they answer; add a prompt"),
    ("trl", sides(chat("a", "b", "c"), chat("a", "b", "d")), "preference",
     "the last message of chosen must be the assistant's, not 'user'"),
    ("hh-rlhf", sides(f"{H} a{A} b", "c"), "preference", r"rejected must hold '\\n\\nAssistant:'"),
    ("hh-rlhf", sides(f"x{H} a{A} b", f"x{H} a{A} c"), "preference", "a conversation must begin"),
    ("helpsteer2", GOOD["helpsteer2"] | {"preference_strength": 4}, "preference",
     "preference_strength must be a number from -3 to 3, not 4"),
    ("ultrafeedback", {"instruction": "a", "completions": [{"response": "b", "overall_score": 11}]},
     "preference", "overall_score must be a number from 0 to 10, not 11"),
    ("ultrafeedback-binarized", GOOD["ultrafeedback-binarized"] | {"score_chosen": "9"},
     "preference", "score_chosen must be a number"),
    ("openassistant", tree(role="assistant"), "preference", "this message must be prompter"),
    ("openassistant", tree(replies=[tree()["prompt"]]), "prompt", "must be assistant, not 'prompt"),
    ("openassistant", tree(replies=1), "prompt", "replies must be a list, not 1"),
    ("sharegpt", shared(("human", "a"), ("tool", "b")), "dialogue",
     r"conversations\[1\] must be from one of system, human, .*, not 'tool'"),
    ("llama2-text", {"text": "hello [INST] a [/INST] b"}, "dialogue", "a turn must be .*'hello"),
    ("llama2-text", {"text": "[INST] a [INST] b [/INST] c"}, "dialogue", r"holds \[INST\]"),
    ("llama2-text", {"text": "[INST] a [/INST] </s>[INST] b [/INST] c"}, "dialogue",
     "the assistant's answer is empty"),
    ("mt-bench", GOOD["mt-bench"] | {"turns": []}, "prompt", "turns must be a list of texts"),
    ("mt-bench", GOOD["mt-bench"] | {"turns": ["a", 1]}, "prompt", "turns must be a list of texts"),
    ("xstest", GOOD["xstest"] | {"label": "maybe"}, "prompt", "label must be safe or unsafe"),
    ("prompt-completion", {"prompt": "a", "completion": ""}, "dialogue", "answer is empty"),
    ("kto", GOOD["kto"] | {"label": 1}, "dialogue", "label must be true or false, not 1"),
    ("alpaca", GOOD["alpaca"] | {"input": 5}, "dialogue", "input must be text, not 5"),
    ("chitchat", {"start": "", "messages": [[], "x"]}, "dialogue", "a turn must be a list of utt"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "row", "kind", "problem"), REFUSED)
def test_a_refused_row(tmp_path, name, row, kind, problem):
    with pytest.raises(InputError, match=rf"data\.jsonl, row 2.*{problem}") as caught:
        read(tmp_path, [GOOD[name], row], kind)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_tree_that_is_too_deep(tmp_path):
    prompt = {"text": "a", "role": "prompter"}
    for i in range(150):
        role = ("assistant", "prompter")[i % 2]
        prompt = {"text": "a", "role": role, "replies": [prompt]}
    row = {"message_tree_id": "1", "prompt": prompt}
    with pytest.raises(InputError, match="row 1: replies are nested more than 100 deep"):
        read(tmp_path, [row], "prompt")
