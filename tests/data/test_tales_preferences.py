"""Pairs of answers: ratings that mean something, labels of safety, no prize for length."""

import json
from typing import NamedTuple

import numpy as np
import pytest

from llama_jax.config import InputError
from llama_jax.data.corpora.tales import defects
from llama_jax.data.corpora.tales.dice import Dice
from llama_jax.data.corpora.tales.instructions import instruction
from llama_jax.data.corpora.tales.judge import Judgement, judge
from llama_jax.data.corpora.tales.preferences import MIXES, MOST_WORDS, preference, score
from llama_jax.data.corpora.tales.prose import sentences, words
from llama_jax.data.corpora.tales.reading import read
from llama_jax.data.records import Preference, check_messages, to_json

PAIRS = 300


class Judged(NamedTuple):
    """Pairs of one kind, what the judge finds in their answers, and how much better the chosen."""

    kind: str
    pairs: list[Preference]
    chosen: list[Judgement]
    rejected: list[Judgement]
    gaps: np.ndarray
    ratings: np.ndarray


@pytest.fixture(scope="module", params=list(MIXES))
def judged(request) -> Judged:
    kind = request.param
    pairs = [preference(i, "train", kind) for i in range(PAIRS)]
    chosen = [judge(p.messages, p.chosen) for p in pairs]
    rejected = [judge(p.messages, p.rejected) for p in pairs]
    gaps = [score(a, kind) - score(b, kind) for a, b in zip(chosen, rejected, strict=True)]
    return Judged(
        kind, pairs, chosen, rejected, np.array(gaps), np.array([p.rating for p in pairs])
    )


def test_pure_function_of_index_split_kind_and_seed():
    assert preference(5) == preference(5)
    others = (
        preference(5), preference(6), preference(5, "validation"), preference(5, seed=1),
        preference(5, kind="safety"),
    )  # fmt: skip
    assert len({to_json(pair) for pair in others}) == 5
    with pytest.raises(InputError, match="'honesty' is unknown; kinds are helpfulness, safety"):
        preference(0, "train", "honesty")
    with pytest.raises(InputError, match="split='test' is unknown"):
        preference(0, "test")


def test_pairs_are_records_of_two_different_answers(judged):
    for pair in judged.pairs:
        assert check_messages(pair.messages, "user", "here")
        assert pair.chosen != pair.rejected
        assert pair.chosen.strip()
        assert pair.rejected.strip()
    for pair in judged.pairs[:20]:
        values = json.loads(to_json(pair))
        assert Preference(**values | {"messages": tuple(values["messages"])}) == pair


def test_what_the_pairs_are_about(judged):
    share = np.mean([read(pair.messages).kind == "unkind" for pair in judged.pairs])
    assert share == pytest.approx(dict(MIXES[judged.kind]).get("unkind", 0), abs=0.08)


def test_the_gap_grows_with_the_rating(judged):
    means = [judged.gaps[judged.ratings == rating].mean() for rating in range(4)]
    assert means == sorted(means)
    assert means[0] < 0.05
    assert means[3] > 0.5
    assert min(np.mean(judged.ratings == rating) for rating in range(4)) > 0.1


def test_who_judges_well_is_right_less_often_at_lower_ratings(judged):
    right = np.where(abs(judged.gaps) < 1e-9, 0.5, judged.gaps > 0)
    accuracy = [right[judged.ratings == rating].mean() for rating in range(4)]
    assert accuracy == sorted(accuracy)
    assert 0.45 < accuracy[0] < 0.75
    assert 0.75 < accuracy[1] < 0.98
    assert accuracy[3] == 1


def test_length_does_not_tell_the_better_answer(judged):
    lengths = np.array([[len(p.chosen.split()), len(p.rejected.split())] for p in judged.pairs])
    longer = np.sign(lengths[:, 0] - lengths[:, 1]).mean() / 2 + 0.5
    assert 0.43 < longer < 0.62  # 0.57 and 0.52 over 4,000 pairs: haste is often short


def test_labels_of_safety_are_the_judges_and_safety_comes_first(judged):
    for pair, chosen, rejected in zip(judged.pairs, judged.chosen, judged.rejected, strict=True):
        assert (pair.safe_chosen, pair.safe_rejected) == (chosen.safe, rejected.safe)
    worse = [pair for pair in judged.pairs if pair.safe_rejected and not pair.safe_chosen]
    unsafe = [pair for pair in judged.pairs if not pair.safe_rejected]
    if judged.kind == "safety":
        assert not worse
        assert len(unsafe) > PAIRS / 5
        assert any(not pair.safe_chosen for pair in unsafe)  # some are unsafe on both sides
    else:
        assert len(worse) < PAIRS / 50


def test_chosen_answers_are_better_and_not_always_perfect(judged):
    chosen = np.array([found.helpfulness for found in judged.chosen])
    rejected = np.array([found.helpfulness for found in judged.rejected])
    assert chosen.mean() > rejected.mean() + 0.2
    assert 0.2 < np.mean(chosen > 0.999) < 0.8


def test_false_refusals_lose(judged):
    if judged.kind == "helpfulness":
        return
    pairs = list(zip(judged.chosen, judged.rejected, strict=True))
    lost = sum(b.false_refusal and not a.false_refusal for a, b in pairs)
    won = sum(a.false_refusal and not b.false_refusal for a, b in pairs)
    assert lost > 15
    assert won < lost / 3  # against answers that are worse still


def test_held_out_pairs_ask_what_no_training_pair_asks():
    train = {read(preference(i).messages).wishes for i in range(120)}
    held_out = {read(preference(i, "validation").messages).wishes for i in range(40)}
    train, held_out = ({w for w in wishes if any(w)} for wishes in (train, held_out))
    assert len(held_out) > 12
    # a harmless request names a hero alone, and so may two of them
    assert not {w for w in train & held_out if sum(value is not None for value in w) > 1}


@pytest.mark.parametrize("defect", [defect for defect, _ in defects._DEFECTS])
def test_every_defect_costs_something(defect):
    losses = []
    for i in range(15):
        messages = instruction(i, kind="story").messages
        parts = sentences(messages[-1]["content"])
        defect(parts, Dice(0, i, "train"))
        assert " ".join(parts) != messages[-1]["content"]
        found = judge(messages[:-1], " ".join(parts), finished=defect is not defects.cut)
        losses.append(1 - found.helpfulness)
    assert np.mean(losses) > 0.03 or defect in (defects.drop, defects.pad)
    assert min(losses) > -1e-9


def test_an_answer_that_breaks_off_is_not_finished():
    story = "Mia sat down. Then Mia went home."
    cut = 0
    for i in range(60):
        text, finished = defects.damage(story, 1, Dice(0, i, "train"))
        cut += not finished
        assert finished or story.startswith(text)
    assert 2 < cut < 20
    assert defects.damage(story, 0, Dice(0, 0, "train")) == (story, True)


def test_a_jumbled_answer_keeps_its_words_and_is_no_english():
    for i in range(15):
        messages = instruction(i, kind="story").messages
        text = messages[-1]["content"]
        jumbled = defects.jumbled(text, Dice(0, i, "train"))
        assert jumbled != text
        assert sorted(jumbled.split()) == sorted(text.split())
        assert judge(messages[:-1], jumbled).helpfulness < 0.4


def test_conversations_are_short_enough_to_stand_before_both_answers(judged):
    lengths = [sum(len(words(m["content"])) for m in pair.messages) for pair in judged.pairs]
    assert max(lengths) <= MOST_WORDS
    if judged.kind == "helpfulness":
        assert max(lengths) > 0.8 * MOST_WORDS  # some were drawn again
