"""Ghost attention: what is asked, trained and remembered, with models of a few lines."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from llama_jax.align import ghost_attention
from llama_jax.align.answering import Answered, Answerer
from llama_jax.align.ghost_attention import (
    converse,
    messages_of,
    recall,
    synthesise,
    training_row,
)
from llama_jax.config import InputError
from llama_jax.data.chat import encode_dialogue
from llama_jax.data.ghosts import Ghost, ghost_conversations
from tests.align.tiny_chat import TinyChat

QUESTIONS = tuple(f"Question {n}?" for n in range(8))
GHOST = Ghost("Say boo.", QUESTIONS, lambda answer: "boo" in answer)
SHORT = Ghost("Say boo.", QUESTIONS[:2], GHOST.keeps)


def said(text, ended=True):
    return Answered(text, (5, 2), ended)


class Model(Answerer):
    """Answers with `reply(messages)`, and keeps what it was asked."""

    def __init__(self, reply, longest=100):
        self.__dict__.update(reply=reply, longest=longest, asked=[])

    def reads(self, messages):
        return len(messages) <= self.longest

    def answer(self, conversations, seeds):
        self.asked.extend(zip(conversations, seeds, strict=True))
        return [self.reply(messages) for messages in conversations]


def obedient(messages):
    return said("boo to you")


def deaf(messages):
    return said("no")


def forgetful(messages):
    """Keeps what the last message asks for, and forgets what an earlier one did."""
    return said("boo" if "boo" in messages[-1]["content"] else "no")


def contents(messages):
    return [m["content"] for m in messages]


def test_the_instruction_stands_before_every_question_or_the_first_alone():
    answers = [said("a"), said("b")]
    assert contents(messages_of(GHOST, answers, every=True)) == [
        "Say boo. Question 0?", "a", "Say boo. Question 1?", "b", "Say boo. Question 2?"
    ]  # fmt: skip
    assert contents(messages_of(GHOST, answers, every=False)) == [
        "Say boo. Question 0?", "a", "Question 1?", "b", "Question 2?"
    ]  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return TinyChat(tmp_path_factory.mktemp("ghosts")).prepare()


def test_exactly_the_later_answers_that_keep_the_instruction_are_trained(tiny):
    answers = [said(text) for text in ("boo", "boo.", "No.", "A boo.")]
    answers.insert(3, said("boo, cut", ended=False))
    row = training_row(GHOST, answers)
    assert contents(row.messages) == [
        "Say boo. Question 0?", "boo", "Question 1?", "boo.", "Question 2?", "No.",
        "Question 3?", "boo, cut", "Question 4?", "A boo.",
    ]  # fmt: skip
    ids, trained = encode_dialogue(tiny.tokenizer, row.messages)
    eos = tiny.tokenizer.eos_id
    answer = [i for i, t in zip(ids, trained, strict=True) if t]
    assert answer.count(eos) == 2
    first, last = answer[: answer.index(eos)], answer[answer.index(eos) + 1 : -1]
    assert [tiny.tokenizer.decode(x) for x in (first, last)] == ["boo. ", "A boo. "]
    starts = [i for i, t in enumerate(trained) if t and not trained[i - 1]]
    assert len(starts) == 2
    assert all(tiny.tokenizer.decode(ids[i - 3 : i]).endswith("[/INST]") for i in starts)


def test_a_row_has_the_loss_of_all_its_beginnings(tiny):
    """The last answer of each beginning, trained alone, reads the same ids before it."""
    answers = [said("boo"), said("boo."), said("boo boo"), said("A boo.")]
    ids, trained = encode_dialogue(tiny.tokenizer, training_row(GHOST, answers).messages)
    alone = [False] * len(ids)
    for end in range(2, len(answers) + 1):
        *before, last = training_row(GHOST, answers[:end]).messages
        quiet = [{**m, "train": False} if m["role"] == "assistant" else m for m in before]
        beginning, one = encode_dialogue(tiny.tokenizer, (*quiet, last))
        assert beginning == ids[: len(beginning)]
        assert sum(one)
        alone = [a or o for a, o in zip(alone, one + alone[len(one) :], strict=True)]
    assert alone == trained


def test_recall_counts_the_answers_that_keep_the_instruction():
    at = (1, 2, 4, 6)
    assert recall(Model(obedient), [GHOST] * 3, at, seed=0) == dict.fromkeys(at, 1.0)
    assert recall(Model(deaf), [GHOST] * 3, at, seed=0) == dict.fromkeys(at, 0.0)
    assert recall(Model(forgetful), [GHOST] * 3, at, seed=0) == {1: 1.0, 2: 0.0, 4: 0.0, 6: 0.0}
    # A conversation that ended before a turn did not keep anything there.
    assert recall(Model(obedient), [GHOST, SHORT], (2, 4), seed=0) == {2: 1.0, 4: 0.5}


def test_a_conversation_holds_the_models_own_answers_and_seeds_of_its_own():
    model = Model(forgetful)
    ghosts = [GHOST, Ghost("Say boo.", QUESTIONS[:1], GHOST.keeps)]
    answers = converse(model, ghosts, 3, seed=7, every=False)
    assert [[a.text for a in one] for one in answers] == [["boo", "no", "no"], ["boo"]]
    last, seeds = model.asked[-1]
    assert contents(last) == ["Say boo. Question 0?", "boo", "Question 1?", "no", "Question 2?"]
    assert seeds == (7, 0, 2, 0)
    assert len({seeds for _, seeds in model.asked}) == len(model.asked) == 4


def test_the_first_answer_that_keeps_the_instruction_goes_on(tiny):
    """Its neighbours are asked no more; the last one stands where none keeps it."""
    second = Ghost("Say moo.", QUESTIONS[:2], lambda answer: "moo" in answer)
    third = Ghost("Say boo, whole.", QUESTIONS[:2], GHOST.keeps)
    replies = iter([
        [said("boo 1"), said("no 1"), said("boo 1", ended=False)],
        [said("no 2"), said("")], [said("moo 3"), said("[INST] boo")],
        [said("boo 4"), said("moo 4")],
    ])  # fmt: skip
    model = Model(None)

    def answer(conversations, seeds):
        model.asked.append([*seeds])
        return next(replies, [])

    model.__dict__["answer"] = answer
    made = converse(model, [GHOST, second, third], 2, seed=7, every=True, samples=3)
    assert [[a.text for a in one] for one in made] == [["boo 1", "boo 4"], ["moo 3", "moo 4"], []]
    assert model.asked == [
        [(7, 0, 0, 0), (7, 1, 0, 0), (7, 2, 0, 0)],
        [(7, 1, 0, 1), (7, 2, 0, 1)], [(7, 1, 0, 2), (7, 2, 0, 2)],
        [(7, 0, 1, 0), (7, 1, 1, 0)], [], [],
    ]  # fmt: skip


def test_who_answers_sees_the_newest_turns_each_with_its_instruction():
    model = Model(obedient)
    (answers,) = converse(model, [GHOST], 5, seed=0, every=True, newest=2)
    assert len(answers) == 5
    assert [contents(messages) for messages, _ in model.asked] == [
        ["Say boo. Question 0?"],
        *(
            [f"Say boo. Question {n}?", "boo to you", f"Say boo. Question {n + 1}?"]
            for n in range(4)
        ),
    ]


@pytest.mark.parametrize(
    ("context_turns", "context", "longest"), [(0, 99, 56), (1, 99, 32), (2, 99, 56), (2, 50, 42)]
)
def test_prompts_get_no_more_room_than_they_need(
    tiny, monkeypatch, context_turns, context, longest
):
    """A turn is its question, 24 tokens here, and an answer of 8; a row holds 64, and the model
    that answers reads `context`."""
    found = {}

    def load(path, **settings):
        found.update(settings)
        return Model(obedient)

    opened = SimpleNamespace(tokenizer=tiny.tokenizer, config=SimpleNamespace(max_seq_len=context))
    monkeypatch.setattr(ghost_attention, "open_model", lambda path: opened)
    monkeypatch.setattr(ghost_attention.Answerer, "load", load)
    monkeypatch.setattr(ghost_attention, "ghost_conversations", lambda *a, **k: [GHOST])
    config = tiny.gatt(context_turns=context_turns, seq_len=64, max_new_tokens=8)
    assert synthesise(config, tiny.tokenizer)
    assert found["prompt_len"] == longest


@pytest.mark.parametrize(
    ("reply", "longest", "ghost"),
    [
        (obedient, 3, GHOST),  # too long for a third turn
        (obedient, 100, SHORT),  # no third question
        (lambda m: said("boo" if len(m) < 5 else ""), 100, GHOST),
        (lambda m: said("boo" if len(m) < 5 else "boo [INST]"), 100, GHOST),
    ],
)
def test_a_conversation_ends_where_it_cannot_go_on(reply, longest, ghost):
    (answers,) = converse(Model(reply, longest), [ghost], 8, seed=0, every=True)
    assert len(answers) == 2


@pytest.fixture
def experiment(tiny, monkeypatch):
    """`synthesise` of a model that replies as told."""

    def make(reply, ghosts=(GHOST, GHOST, SHORT), tokenizer=tiny.tokenizer, context=99, **changes):
        model = Model(reply)

        def load(path, **settings):
            model.__dict__["path"] = path
            return model

        opened = SimpleNamespace(tokenizer=tokenizer, config=SimpleNamespace(max_seq_len=context))
        monkeypatch.setattr(ghost_attention, "open_model", lambda path: opened)
        monkeypatch.setattr(ghost_attention.Answerer, "load", load)
        monkeypatch.setattr(ghost_attention, "ghost_conversations", lambda *a: list(ghosts))
        return synthesise(tiny.gatt(**changes), tiny.tokenizer), model

    return make


def test_conversations_that_keep_the_instruction_are_trained_on(experiment):
    made, model = experiment(obedient)
    assert len(made) == 3
    assert all(2 <= len(d.messages) // 2 <= 3 for d in made)
    asked = [m for messages, _ in model.asked for m in messages if m["role"] == "user"]
    assert all(m["content"].startswith("Say boo.") for m in asked)
    for dialogue in made:
        users = [m["content"] for m in dialogue.messages if m["role"] == "user"]
        assert [u.startswith("Say boo.") for u in users] == [True] + [False] * (len(users) - 1)


def test_another_model_may_give_the_answers(experiment, tiny):
    assert experiment(obedient)[1].path == tiny.gatt().init_from
    assert experiment(obedient, answers_from="earlier")[1].path == "earlier"
    other = SimpleNamespace(fingerprint="another")
    with pytest.raises(InputError, match="answers_from earlier has another tokenizer than init_"):
        experiment(obedient, answers_from="earlier", tokenizer=other)
    with pytest.raises(InputError, match="answers_from earlier has a context of 8 tokens"):
        experiment(obedient, answers_from="earlier", context=8, max_new_tokens=8)
    with pytest.raises(InputError, match="answers_from is empty"):
        tiny.gatt(answers_from="")
    with pytest.raises(InputError, match="samples=3 are one answer at temperature=0"):
        tiny.gatt(samples=3, temperature=0.0)


@pytest.mark.parametrize(
    "reply",
    [
        deaf,
        lambda m: said("boo", ended=False),  # cut off
        lambda m: said("boo" if len(m) == 1 else ""),  # one turn alone has nothing to remember
    ],
)
def test_what_teaches_nothing_is_left_out_and_nothing_left_is_an_error(experiment, reply):
    with pytest.raises(InputError, match=r"3 conversations with .*sft have \d complete"):
        experiment(reply)


def test_other_conversations_are_rehearsed_beside_those_that_are_made(tmp_path, monkeypatch):
    chat = TinyChat(tmp_path).prepare()
    dialogues = (tmp_path / "dialogues.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "more.jsonl").write_text("".join(dialogues[:99]))
    (tmp_path / "made.jsonl").write_text("".join(dialogues[99:]))
    made = str(tmp_path / "made.jsonl")
    monkeypatch.setattr(ghost_attention, "kept_dialogues", lambda *_: made)
    for replay, names, weights in (
        (None, [made], [1.0]),
        (f"{tmp_path}/more.jsonl=0.5", [made, f"{tmp_path}/more.jsonl"], [2 / 3, 1 / 3]),
    ):
        stage = ghost_attention.stage(chat.gatt(replay=replay))
        data = stage.prepare(chat.tokenizer)["train"]
        assert [Path(part.name).stem for part in data.parts] == [Path(n).stem for n in names]
        assert [w / sum(data.weights) for w in data.weights] == pytest.approx(weights)


def test_files_of_conversations(tiny):
    data = tiny.gatt().data
    found = ghost_conversations(data, 2, 3)
    assert [len(g.questions) for g in found] == [3, 3]
    assert found[0].instruction == "Be kind."
    assert found[0].keeps("anything at all")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"turns": ["a", "b"]}, "row 2 must be an object such as"),
        ({"instruction": " ", "turns": ["a", "b"]}, "row 2: instruction must be text, not ' '"),
        ({"instruction": "x", "turns": ["a"]}, "row 2: turns must be a list of two texts or more"),
        ({"instruction": "x", "turns": "ab"}, "row 2: turns must be a list of two texts or more"),
    ],
)
def test_a_bad_row_of_a_file_is_named(tiny, row, message):
    good = {"instruction": "x", "turns": ["a", "b"]}
    path = tiny.write("bad_ghosts.jsonl", [good, row])
    with pytest.raises(InputError) as error:
        ghost_conversations(replace(tiny.gatt().data, dataset=path), 10, 3)
    assert message in str(error.value)
    assert path in str(error.value)
