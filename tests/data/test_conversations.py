"""Conversations from files and corpora to what training reads."""

import json
import logging
from collections import Counter
from functools import partial

import numpy as np
import pytest

from llama_jax.config import DataConfig, InputError
from llama_jax.data import record_sources
from llama_jax.data.chat import encode_answer, encode_dialogue, encode_prompt
from llama_jax.data.conversations import (
    prepare_dialogues,
    prepare_preferences,
    prepare_prompts,
    prompt_id,
)
from llama_jax.data.corpora import tales
from llama_jax.data.corpora.tales.judge import judge
from llama_jax.data.record_sources import Generated, RecordFiles, first_question, resolve_records
from llama_jax.data.records import Dialogue, Preference, Prompt, to_json
from llama_jax.data.split import in_validation
from tests.data.test_chat import talk
from tests.data.test_conversation_recipes import segments, whole

T = 160


def dialogue(i: int, split: str = "train") -> Dialogue:
    return Dialogue(messages=tuple(talk(f"Who is {i} in {split}?", f"Owl {i}.")), source="owls")


def write(path, records) -> str:
    path.write_text("".join(to_json(record) + "\n" for record in records))
    return str(path)


def config(dataset, cache) -> DataConfig:
    return DataConfig(dataset=str(dataset), cache_dir=str(cache), workers=1)


def ids(tokenizer, records):
    return sorted(encode_dialogue(tokenizer, record.messages)[0] for record in records)


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(record_sources, "_PART_BYTES", 1000)


def test_dialogues_of_a_file(tokenizer, tmp_path, small_parts):
    records = [dialogue(i) for i in range(60)]
    path = write(tmp_path / "owls.jsonl", records)
    mixtures = prepare_dialogues(config(path, tmp_path / "cache"), tokenizer, seq_len=T)
    for split, wanted in (("train", False), ("validation", True)):
        expected = [r for r in records if in_validation(r.messages[0]["content"]) == wanted]
        assert 0 < len(expected) < 60
        found = sorted(tokens for tokens, _ in segments(whole(mixtures[split])))
        assert found == ids(tokenizer, expected)
        assert mixtures[split].parts[0].name == "owls"


def test_the_first_question_decides_the_split():
    held_out = next(q for i in range(100) if in_validation(q := f"question {i}"))
    for messages in (
        talk(held_out),
        talk(f" {held_out}\n", "a", "b", system="Be kind."),
        talk(held_out, "another answer", "more?"),
    ):
        assert in_validation(first_question(Prompt(messages=tuple(messages))))


def test_parts_of_a_file_are_all_of_it_once(tmp_path, small_parts):
    path = write(tmp_path / "owls.jsonl", [dialogue(i) for i in range(60)])
    source = RecordFiles(path, "dialogue")
    chunks = source.chunks("train")
    assert 3 < len(chunks) < 60
    parts = [
        [record for split in ("train", "validation")
         for _, record in source.records(split, chunk, Counter())] for chunk in chunks
    ]  # fmt: skip
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert sorted(r.messages[0]["content"] for part in parts for r in part) == sorted(
        dialogue(i).messages[0]["content"] for i in range(60)
    )


def test_what_formats_drop_is_counted_once(tokenizer, tmp_path, small_parts, caplog):
    rows = [{"prompt": f"Who is {i}?", "chosen": "An owl.", "rejected": "Nobody."}
            for i in range(40)]  # fmt: skip
    rows += [{"prompt": "Who?", "chosen": "An owl.", "rejected": "An owl."}] * 3
    path = tmp_path / "trl.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with caplog.at_level(logging.INFO):
        mixtures = prepare_preferences(config(path, tmp_path / "cache"), tokenizer, seq_len=T)
    assert sum(m.num_records for m in mixtures.values()) == 40
    assert caplog.text.count("dropped: the two answers are the same") == 1
    assert "3 dropped: the two answers are the same" in caplog.text
    assert "40 noted: nobody rated the pair" in caplog.text
    batch = whole(mixtures["train"])
    assert batch["tokens"].shape[1:] == (2, T)
    assert (batch["rating"] == -1).all()


def test_fingerprint_is_that_of_the_content(tokenizer, tmp_path):
    def prepare(path, **kwargs):
        return prepare_dialogues(config(path, tmp_path / "cache"), tokenizer, seq_len=T, **kwargs)

    first = prepare(write(tmp_path / "a.jsonl", [dialogue(i) for i in range(3)]))["train"]
    again = prepare(write(tmp_path / "b.jsonl", [dialogue(i) for i in range(3)]))["train"]
    other = prepare(write(tmp_path / "c.jsonl", [dialogue(i) for i in range(1, 4)]))["train"]
    assert first.fingerprint == again.fingerprint != other.fingerprint


def test_a_mixture_of_files_and_a_corpus(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setitem(tales._GENERATORS["tales"], "dialogue", dialogue)
    path = write(tmp_path / "a.jsonl", [dialogue(i, "file") for i in range(3)])
    spec = f"tales:41=3,{path}=1"
    mixtures = prepare_dialogues(config(spec, tmp_path / "cache"), tokenizer, seq_len=T)
    assert mixtures["train"].weights == (0.75, 0.25)
    tokens = [tokens for tokens, _ in segments(whole(mixtures["train"]))]
    expected = [dialogue(i) for i in range(41)] + [dialogue(i, "file") for i in range(3)]
    assert sorted(tokens) == ids(tokenizer, expected)
    held_out = [tokens for tokens, _ in segments(whole(mixtures["validation"]))]
    assert sorted(held_out) == ids(tokenizer, [dialogue(i, "validation") for i in range(3)])


def test_what_can_be_named(tmp_path):
    ((source, weight),) = resolve_records("tales", "prompt")
    assert isinstance(source, Generated)
    assert (source.num_train, weight) == (20_000, 1.0)
    assert source.identity != resolve_records("tales:5", "prompt")[0][0].identity
    ((unkind, _),) = resolve_records("tales_safety", "prompt")
    assert all(p.safety for _, p in unkind.records("train", range(5), Counter()))
    ((harmless, _),) = resolve_records("tales_harmless", "prompt")
    records = [p for _, p in harmless.records("train", range(5), Counter())]
    assert not any(p.safety or judge(p.messages, "", True).refused for p in records)
    assert all("topic" in judge(p.messages, "", True).wishes for p in records)
    with pytest.raises(InputError, match="tales_harmless has prompts, no preferences"):
        resolve_records("tales_harmless", "preference")
    with pytest.raises(InputError, match="tales_safety has preferences and prompts, no dialogues"):
        resolve_records("tales_safety", "dialogue")
    with pytest.raises(InputError, match="tales:N with the number to train on"):
        resolve_records("tales:x", "prompt")
    write(tmp_path / "owls.jsonl", [dialogue(0)])
    with pytest.raises(InputError, match=r"owl.jsonl is neither a corpus .*did you mean .*owls"):
        resolve_records(str(tmp_path / "owl.jsonl"), "dialogue")
    with pytest.raises(InputError, match="tales_safety, tales_harmless, chitchat"):
        resolve_records("nothing", "dialogue")


def test_prompts(tokenizer, tmp_path, caplog):
    long = "word " * 40
    records = [
        Prompt(messages=tuple(talk("Hi")), safety=True, source="a"),
        Prompt(messages=tuple(talk(" Hi ")), source="b"),
        Prompt(messages=tuple(talk("Hi", "Hello!", "Who?", system="Be kind."))),
        Prompt(messages=tuple(talk(long))),
    ]
    assert not any(in_validation(first_question(record)) for record in records)
    path = write(tmp_path / "p.jsonl", records)
    limit = len(encode_prompt(tokenizer, records[2].messages))
    with caplog.at_level(logging.INFO):
        prompts = prepare_prompts(config(path, tmp_path), tokenizer, max_tokens=limit)
    assert list(prompts) == ["train"]
    first, second = prompts["train"]
    assert (first.safety, first.source, first.share) == (True, "a", 0.5)
    assert first.tokens == tuple(encode_prompt(tokenizer, talk("Hi")))
    assert len(second.tokens) == limit
    assert second.id == prompt_id(talk("Hi", "Hello!", "Who?", system="Be kind."))
    assert len({first.id, second.id, prompt_id(talk("Hi", "Hello!", "Who?"))}) == 3
    assert first.id == "8633c1430ea4517d"
    assert (
        f"train: 4 prompts read, 2 kept; 1 dropped: longer than {limit} tokens; "
        "1 dropped: the same prompt was there before" in caplog.text
    )


def test_prompts_of_a_mixture_are_drawn_by_weight(tokenizer, tmp_path):
    one = write(tmp_path / "1.jsonl", [Prompt(messages=tuple(talk(f"one {i}"))) for i in range(4)])
    two = write(tmp_path / "2.jsonl", [Prompt(messages=tuple(talk("two")))])
    spec = config(f"{one}=1,{two}=3", tmp_path)
    prompts = prepare_prompts(spec, tokenizer, max_tokens=T)["train"]
    shares = {p.messages[0]["content"]: p.share for p in prompts}
    assert sum(shares.values()) == pytest.approx(1)
    assert shares.pop("two") == pytest.approx(0.75)
    np.testing.assert_allclose(list(shares.values()), 0.25 / len(shares))


def test_a_prompt_that_is_held_out_alone_is_trained_on(tokenizer, tmp_path):
    held_out = next(q for i in range(100) if in_validation(q := f"question {i}"))
    path = write(tmp_path / "p.jsonl", [Prompt(messages=tuple(talk(held_out)))])
    prompts = prepare_prompts(config(path, tmp_path), tokenizer, max_tokens=T)
    assert [p.messages[0]["content"] for p in prompts["train"]] == [held_out]


def row(**values) -> str:
    return json.dumps(values) + "\n"


PREPARE = {
    "dialogue": partial(prepare_dialogues, seq_len=T),
    "preference": partial(prepare_preferences, seq_len=T),
    "prompt": partial(prepare_prompts, max_tokens=T),
}
GOOD = row(messages=talk("Hi", "Hello!"))


@pytest.mark.parametrize(
    ("kind", "text", "reason"),
    [
        ("dialogue", GOOD + row(messages=talk("Hi", "Hello!")[1:]),
         r"bad.jsonl, row 2.* message 0: expected a user message, not assistant"),
        ("dialogue", GOOD + row(messages=talk("Hi", " ")), "row 2.*assistant's answer is empty"),
        ("dialogue", row(messages=[{"role": "tool", "content": "x"}]), "row 1.*'tool'"),
        ("dialogue", GOOD + row(messages=talk("<<SYS>>", "x")), "row 2, message 0 holds <<SYS>>"),
        ("dialogue", GOOD + row(instruction="x", output="y"), "row 2 is alpaca, but the first row"),
        ("dialogue", GOOD + row(messages=talk("Hi", "Bye</s>")), "row 2, message 1 ends with </s>"),
        ("preference", row(messages=talk("Hi"), chosen="a", rejected="a"),
         "holds no preference: all of its 1 rows were dropped .*answers are the same"),
        ("preference", row(messages=talk("Hi"), chosen="a", rejected="b", rating=4),
         "row 1.*rating must be a number from 0 to 3, not 4"),
        ("preference", GOOD, "can be read as dialogue or prompt, not as preference"),
        ("prompt", row(messages=talk("Hi " * 99)),
         r"data bad holds no prompt of at most 160 tokens; the shortest has \d+: "),
    ],
)  # fmt: skip
def test_bad_files(tokenizer, tmp_path, kind, text, reason):
    path = tmp_path / "bad.jsonl"
    path.write_text(text)
    with pytest.raises(InputError, match=reason) as caught:
        PREPARE[kind](config(path, tmp_path), tokenizer)
    assert "\n" not in str(caught.value)


def test_answers_of_a_preference_file_are_in_its_rows(tokenizer, tmp_path):
    record = Preference(
        messages=tuple(talk("Hi")), chosen="Hello!", rejected="Go!", rating=2, safe_rejected=False
    )
    path = write(tmp_path / "p.jsonl", [record])
    batch = whole(prepare_preferences(config(path, tmp_path), tokenizer, seq_len=T)["train"])
    answers = [row[mask > 0].tolist() for row, mask in zip(
        batch["tokens"][0], batch["loss_mask"][0], strict=True)]  # fmt: skip
    assert answers == [encode_answer(tokenizer, text) for text in ("Hello!", "Go!")]
    assert batch["rating"].tolist() == [[2]]
    assert batch["safe"].tolist() == [[[-1, 0]]]


def test_the_halves_of_a_file_are_apart_and_make_up_the_whole(tokenizer, tmp_path):
    pairs = [
        Preference(messages=tuple(talk(f"Who is {i % 20}?")), chosen=f"Owl {i}.", rejected="No.")
        for i in range(40)
    ]
    data = config(write(tmp_path / "pairs.jsonl", pairs), tmp_path / "cache")
    rows = {}
    for half in ("all", "first", "second"):
        mixtures = prepare_preferences(data, tokenizer, seq_len=T, half=half)
        tokens = [whole(mixture)["tokens"][:, 0] for mixture in mixtures.values()]
        rows[half] = sorted(np.concatenate(tokens).tolist())
    assert 0 < len(rows["first"]) < 40
    assert sorted(rows["first"] + rows["second"]) == rows["all"]
    # Both pairs with one question are in one half.
    questions = {half: {str(r[:24]) for r in rows[half]} for half in ("first", "second")}
    assert len(rows["first"]) % 2 == len(rows["second"]) % 2 == 0
    assert questions["first"].isdisjoint(questions["second"])
