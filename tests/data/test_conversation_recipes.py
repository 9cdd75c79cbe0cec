"""Dialogues and preferences as stored rows, against the template and against plain Python."""

import logging
from collections import Counter
from dataclasses import dataclass, replace

import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax.config import DataConfig, InputError
from llama_jax.data.chat import encode_answer, encode_dialogue, encode_prompt
from llama_jax.data.conversation_recipes import PackedDialogues, PreferencePairs
from llama_jax.data.loader import Loader
from llama_jax.data.packing import target_mask
from llama_jax.data.prepare import prepare_recipes
from llama_jax.data.records import Dialogue, Preference
from llama_jax.ops.loss import next_token_targets
from tests.data.test_chat import talk, trained_text

T = 160


@dataclass(frozen=True)
class Listed:
    """Records in memory; every fourth is held out."""

    items: tuple
    name = "listed"

    @property
    def identity(self):
        return repr(self.items)

    def chunks(self, split):
        return [range(i, min(i + 5, len(self.items))) for i in range(0, len(self.items), 5)]

    def records(self, split, chunk, counts):
        for i in chunk:
            if (i % 4 == 3) == (split == "validation"):
                yield f"listed, row {i}", self.items[i]
        if split == "train" and chunk[0] == 0:
            counts["dropped: a tie"] += 2


def dialogues():
    story = "Mia went to the park with her red ball and had a very happy day"
    for i in range(22):
        words = story.split()
        system = f"You are owl {i}." if i % 3 == 0 else None
        turns = ["Hello!", " ".join(words[: 1 + i % 9]), "More?", " ".join(words[2 : 4 + i % 7])]
        yield Dialogue(messages=tuple(talk(*turns[: 2 + 2 * (i % 3 == 1)], system=system)))


def prepare(recipe, cache, split="train"):
    config = DataConfig(dataset="listed", cache_dir=str(cache), workers=1)
    return prepare_recipes([(recipe, 1.0)], config)[split]


def whole(mixture):
    return Loader(mixture, batch_size=mixture.num_records, seed=0, shuffle=False).batch(0)


def segments(batch):
    """(ids, mask) of every segment of every row."""
    for tokens, numbers, mask in zip(
        batch["tokens"], batch["segment_ids"], batch["loss_mask"], strict=True
    ):
        for number in range(1, numbers.max() + 1):
            at = numbers == number
            yield tokens[at].tolist(), mask[at].astype(bool).tolist()


@pytest.fixture(scope="module")
def items():
    return tuple(dialogues())


def test_rows_hold_every_dialogue_whole(tokenizer, tmp_path, items):
    recipe = PackedDialogues(Listed(items), tokenizer, T)
    for split in ("train", "validation"):
        batch = whole(prepare(recipe, tmp_path, split))
        expected = [
            encode_dialogue(tokenizer, item.messages)
            for i, item in enumerate(items)
            if (i % 4 == 3) == (split == "validation")
        ]
        assert sorted(segments(batch)) == sorted(map(tuple, expected))
        assert {n: (v.shape[1:], v.dtype.name) for n, v in batch.items()} == {
            "tokens": ((T,), "int32"),
            "segment_ids": ((T,), "int32"),
            "positions": ((T,), "int32"),
            "loss_mask": ((T,), "uint8"),
        }
        rows = len(batch["tokens"])
        assert rows < len(expected)
        ends = [np.flatnonzero(row == 1) for row in batch["segment_ids"]]
        np.testing.assert_array_equal(
            batch["positions"][0, : len(ends[0])], np.arange(len(ends[0]))
        )


def test_targets_of_the_loss_are_the_answers(tokenizer, tmp_path, items):
    batch = whole(prepare(PackedDialogues(Listed(items), tokenizer, T), tmp_path))
    targets, mask = next_token_targets(
        *(jnp.array(batch[name]) for name in ("tokens", "segment_ids")),
        jnp.array(batch["loss_mask"], bool),
    )
    trained = np.asarray(targets)[np.asarray(mask)].tolist()
    expected = [
        token
        for i, item in enumerate(items)
        if i % 4 != 3
        for message in item.messages
        if message["role"] == "assistant"
        for token in encode_answer(tokenizer, message["content"])
    ]
    assert sorted(trained) == sorted(expected)
    assert int(target_mask(batch).sum()) == len(expected)


def test_what_is_left_out_is_counted(tokenizer, tmp_path, caplog):
    words = "the red ball and the happy dog ran home " * 3
    items = (
        Dialogue(messages=tuple(talk("Hi", "Hello!", "And?", words, system="Be kind."))),
        Dialogue(messages=tuple(talk("Hi", words * 4))),
        Dialogue(messages=(*talk("Hi"), {"role": "assistant", "content": "Oh", "train": False})),
        Dialogue(messages=tuple(talk("Hi", "Held out."))),
    )
    limit = len(encode_dialogue(tokenizer, talk("And?", words, system="Be kind."))[0])
    recipe = PackedDialogues(Listed(items), tokenizer, limit)
    with caplog.at_level(logging.INFO):
        mixture = prepare(recipe, tmp_path)
    ((ids, mask),) = segments(whole(mixture))
    assert (ids, mask) == encode_dialogue(tokenizer, talk("And?", words, system="Be kind."))
    assert trained_text(tokenizer, ids, mask) == f" {words.strip()} |"
    line = (
        f"data listed: train: 3 dialogues read, 1 row of {limit} tokens, 100.0 % full; "
        "1 shortened by their oldest turns; 2 dropped: a tie; 1 dropped: no answer is trained on; "
        "1 dropped: the last turn alone is too long; validation: 1 dialogue read, 1 row of "
    )
    assert line in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO):
        assert prepare(recipe, tmp_path) == mixture  # from the cache, which knows the counts
    assert line in caplog.text
    assert "preparing" not in caplog.text


def test_counts_outlive_an_interruption(tokenizer, tmp_path, items, monkeypatch, caplog):
    from llama_jax.data import shards

    recipe, write_shard, calls = (
        PackedDialogues(Listed(items), tokenizer, T),
        shards.write_shard,
        [],
    )

    def dies_at_third(job):
        calls.append(job)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return write_shard(job)

    monkeypatch.setattr(shards, "write_shard", dies_at_third)
    with pytest.raises(KeyboardInterrupt):
        prepare(recipe, tmp_path)
    with caplog.at_level(logging.INFO):
        prepare(recipe, tmp_path)
    assert "2 of 10 shards are done already" in caplog.text
    assert "train: 17 dialogues read" in caplog.text
    assert "2 dropped: a tie" in caplog.text


def test_a_corpus_that_is_all_held_out_is_trained_on(tokenizer, tmp_path, items):
    class HeldOut(Listed):
        def records(self, split, chunk, counts):
            if split == "validation":
                yield from super().records("train", chunk, Counter())

    config = DataConfig(dataset="x", cache_dir=str(tmp_path), workers=1)
    recipe = PackedDialogues(HeldOut(items[:2]), tokenizer, T)
    mixtures = prepare_recipes([(recipe, 1.0)], config)
    assert list(mixtures) == ["train"]
    assert len(list(segments(whole(mixtures["train"])))) == 2


def test_nothing_is_left(tokenizer, tmp_path, items):
    recipe = PackedDialogues(Listed(items), tokenizer, 8)
    with pytest.raises(
        InputError, match=r"data listed holds no dialogue to train on: train: 17 dialogues read, "
        r"0 rows .* 17 dropped: the last turn alone is too long",
    ):  # fmt: skip
        prepare(recipe, tmp_path)


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        (("Say [INST]", "No."), r"listed, row 1, message 0 holds \[INST\]"),
        (("Hi", "Hello!", "And?"), "listed, row 1: the last message must be the assistant's"),
    ],
)
def test_bad_dialogue_is_named(tokenizer, tmp_path, items, turns, reason):
    recipe = PackedDialogues(
        Listed((items[0], Dialogue(messages=tuple(talk(*turns))))), tokenizer, T
    )
    with pytest.raises(InputError, match=reason):
        prepare(recipe, tmp_path)


def test_fingerprints_follow_what_changes_records(tokenizer, tmp_path, items):
    recipe = PackedDialogues(Listed(items[:8]), tokenizer, T)
    changed = [
        recipe,
        replace(recipe, seq_len=T + 1),
        replace(recipe, source=Listed(items[:9])),
        PreferencePairs(recipe.source, tokenizer, T),
        PreferencePairs(recipe.source, tokenizer, T, per_row=2),
    ]
    assert len({other.identity for other in changed}) == 5
    assert replace(recipe).identity == recipe.identity


PAIRS = (
    Preference(messages=tuple(talk("Hi")), chosen="Hello, my friend!", rejected="What?", rating=3,
               safe_chosen=True, safe_rejected=False),
    Preference(messages=tuple(talk("Hi", "Hello!", "Who?", system="Be kind.")), chosen=" An owl. ",
               rejected="Go!", margin=0.5),
    Preference(messages=tuple(talk("Hi")), chosen="b", rejected="a " * 90),
    Preference(messages=tuple(talk("Held out")), chosen="a", rejected="b"),
    Preference(messages=tuple(talk("Hi")), chosen="Yes.", rejected="No.", rating=0),
)  # fmt: skip


def test_pairs_of_rows(tokenizer, tmp_path, caplog):
    shortened = encode_prompt(tokenizer, talk("Who?", system="Be kind."))
    limit = len(shortened) + len(encode_answer(tokenizer, "An owl."))
    with caplog.at_level(logging.INFO):
        mixture = prepare(PreferencePairs(Listed(PAIRS), tokenizer, limit), tmp_path)
    batch = whole(mixture)
    assert {n: (v.shape, v.dtype.name) for n, v in batch.items()} == {
        "tokens": ((3, 2, limit), "int32"),
        "segment_ids": ((3, 2, limit), "int32"),
        "positions": ((3, 2, limit), "int32"),
        "loss_mask": ((3, 2, limit), "uint8"),
        "rating": ((3, 1), "int32"),
        "margin": ((3, 1), "float32"),
        "safe": ((3, 1, 2), "int8"),
    }
    prompts = talk("Hi"), talk("Who?", system="Be kind."), talk("Hi")
    answers = ("Hello, my friend!", "What?"), ("An owl.", "Go!"), ("Yes.", "No.")
    for pair, (prompt, texts) in enumerate(zip(prompts, answers, strict=True)):
        for side, text in enumerate(texts):
            before, after = encode_prompt(tokenizer, prompt), encode_answer(tokenizer, text)
            used = len(before) + len(after)
            row = {name: batch[name][pair, side] for name in ("tokens", "segment_ids", "loss_mask")}
            assert row["tokens"].tolist() == before + after + [0] * (limit - used)
            assert row["segment_ids"].tolist() == [1] * used + [0] * (limit - used)
            marks = [0] * len(before) + [1] * len(after) + [0] * (limit - used)
            assert row["loss_mask"].tolist() == marks
            positions = [*range(used), *[0] * (limit - used)]
            assert batch["positions"][pair, side].tolist() == positions
    assert batch["rating"].tolist() == [[3], [-1], [0]]
    np.testing.assert_array_equal(batch["margin"], [[np.nan], [0.5], [np.nan]])
    assert batch["safe"].tolist() == [[[1, 0]], [[-1, -1]], [[-1, -1]]]
    assert "train: 4 preferences read, 3 pairs; 1 shortened" in caplog.text
    assert "1 dropped: the last turn alone is too long" in caplog.text


def test_pairs_share_rows_whole_and_in_step(tokenizer, tmp_path, caplog):
    """Segment k of both rows is one pair, with what was said of it; no row holds too many."""
    pairs = tuple(
        replace(PAIRS[0], chosen="good " * (1 + i % 7), rejected="bad " * (1 + i % 5), margin=i / 8)
        for i in range(40)
        if i % 4 != 3
    )
    pairs = tuple(p for i in range(0, 30, 3) for p in (*pairs[i : i + 3], PAIRS[3]))
    with caplog.at_level(logging.INFO):
        mixture = prepare(PreferencePairs(Listed(pairs), tokenizer, T, per_row=3), tmp_path)
    batch = whole(mixture)
    R = len(batch["tokens"])
    assert batch["margin"].shape == (R, 3)
    assert f"30 pairs in {R} rows of {T} tokens for each answer" in caplog.text
    prompt, found = encode_prompt(tokenizer, talk("Hi")), []
    for r, k in np.ndindex(R, 3):
        sides = [batch["tokens"][r, s][batch["segment_ids"][r, s] == k + 1] for s in (0, 1)]
        if np.isnan(batch["margin"][r, k]):
            assert [len(ids) for ids in sides] == [0, 0]
            assert batch["rating"][r, k] == -1
            assert batch["safe"][r, k].tolist() == [-1, -1]
            continue
        i = round(8 * batch["margin"][r, k])
        texts = "good " * (1 + i % 7), "bad " * (1 + i % 5)
        assert [s.tolist() for s in sides] == [prompt + encode_answer(tokenizer, x) for x in texts]
        assert batch["rating"][r, k] == 3
        assert batch["safe"][r, k].tolist() == [1, 0]
        for s in (0, 1):
            own = batch["segment_ids"][r, s] == k + 1
            assert batch["positions"][r, s][own].tolist() == [*range(own.sum())]
            assert batch["loss_mask"][r, s][own].sum() == own.sum() - len(prompt)
        found.append(i)
    assert sorted(found) == [i for i in range(40) if i % 4 != 3]
    assert R < 20


def test_pairs_are_shuffled_and_filled_up_like_rows(tokenizer, tmp_path):
    mixture = prepare(PreferencePairs(Listed(PAIRS[:2]), tokenizer, T), tmp_path)
    last = Loader(mixture, batch_size=3, seed=0, shuffle=False).batch(0)
    assert last["segment_ids"].any(axis=(1, 2)).tolist() == [True, True, False]
    assert not any(last[name][2].any() for name in last)
    endless = Loader(mixture, batch_size=1, seed=0)
    seen = [endless.batch(step)["rating"].item() for step in range(4)]
    assert sorted(seen[:2]) == sorted(seen[2:]) == [-1, 3]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"chosen": " "}, "row 0: the chosen answer is empty"),
        ({"rejected": ""}, "row 0: the rejected answer is empty"),
        ({"rejected": "Hello, my friend!\n"}, "the chosen and the rejected answer are both 'Hello"),
        ({"chosen": "[/INST]"}, r"row 0, chosen holds \[/INST\]"),
        ({"rating": 4}, r"row 0: rating=4 must be 0 \(negligibly better\) to 3"),
        ({"rating": -1}, "rating=-1 must be"),
        ({"rating": True}, "rating=True must be"),
        ({"margin": -0.5}, "row 0: margin=-0.5 must be a finite number"),
        ({"margin": float("nan")}, "margin=nan must be"),
        ({"messages": tuple(talk("a", "b"))}, "last message must be the user's"),
    ],
)
def test_bad_preferences(tokenizer, tmp_path, change, reason):
    recipe = PreferencePairs(Listed((replace(PAIRS[0], **change),)), tokenizer, T)
    with pytest.raises(InputError, match=reason):
        prepare(recipe, tmp_path)
