"""The bank of rejection sampling: who wins, what is scored anew, what a file may hold."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from etils import epath

from llama_jax.align.bank import Sample, best_of_n, read_samples, scored, to_line, winners
from llama_jax.align.rewards import Judges
from llama_jax.align.scoring import RewardModel, Scorer
from llama_jax.config import InputError
from llama_jax.data.tokenizer import train_tokenizer
from tests.align.tiny_chat import MODEL

TOKENIZER = train_tokenizer(["[INST] Is it? [/INST] It is."] * 20, 290)

ONE = Sample(
    prompt_id="p", messages=({"role": "user", "content": "Is it?"},), safety=False,
    tokens=(5, 6, 7, 2), text="It is.", finish="stop", round=1, sample=0, policy="a" * 64,
    temperature=1.0,
)  # fmt: skip


def answer(text, **changes):
    return replace(ONE, text=text, **changes)


def test_the_best_answer_to_each_prompt_wins_in_the_order_of_the_prompts():
    found = winners([
        (answer("A", prompt_id="q"), 1.0), (answer("B"), 0.5), (answer("C", sample=1), 0.7),
        (answer("D", prompt_id="q", sample=1), 0.9), (answer("E", sample=2), 0.6),
    ])  # fmt: skip
    assert [(s.text, score) for s, score in found] == [("A", 1.0), ("C", 0.7)]


def test_ties_go_to_the_shorter_answer_then_to_the_earlier_one():
    long, short = answer("long", tokens=(1,) * 9), answer("short", sample=1, tokens=(1, 2))
    assert winners([(long, 1.0), (short, 1.0)])[0][0] is short
    later = answer("later", round=2, sample=0)
    earlier = answer("earlier", round=1, sample=5)
    assert winners([(later, 1.0), (earlier, 1.0)])[0][0] is earlier
    second, first = answer("second", sample=3), answer("first", sample=2)
    assert winners([(second, 1.0), (first, 1.0)])[0][0] is first


def test_an_answer_that_was_cut_off_wins_only_where_all_were():
    cut, whole = answer("cut", finish="length"), answer("whole", sample=1)
    assert winners([(cut, 9.0), (whole, 0.0)])[0][0] is whole
    other = answer("other", finish="length", sample=1)
    assert winners([(cut, 9.0), (other, 0.0)])[0][0] is cut


def test_a_prompt_whose_answers_are_all_alike_has_no_winner():
    assert winners([(answer("same", sample=i), float(i)) for i in range(3)]) == []
    assert len(winners([(answer("alone"), 0.0)])) == 1  # of one sample nothing can be said


@pytest.mark.parametrize("text", ["", "You: [INST] no", "<<SYS>>", "the end </s>"])
def test_what_cannot_stand_in_a_conversation_never_wins(text):
    good = answer("good", sample=1)
    assert winners([(answer(text), 9.0), (good, 0.0)])[0][0] is good
    assert winners([(answer(text), 9.0)]) == []


def test_best_of_n_is_the_mean_over_all_choices_of_n():
    scores = np.random.default_rng(0).standard_normal((3, 5))
    found = best_of_n(scores, (1, 2, 4, 8))
    assert found["n"] == [1, 2, 4]  # of five samples no eight can be taken
    for n, mean, error in zip((1, 2, 4), found["max"], found["max_error"], strict=True):
        subsets = [list(c) for c in itertools.combinations(range(5), n)]
        best = np.mean([scores[:, chosen].max(axis=1) for chosen in subsets], axis=0)
        assert mean == pytest.approx(best.mean(), rel=1e-5)
        assert error == pytest.approx(best.std() / np.sqrt(3), rel=1e-5)
    assert found["median"] == pytest.approx([np.median(scores, axis=1).mean()] * 3)


class Judge(RewardModel):
    """Scores a text by its length times a factor; counts how often it is asked."""

    def __init__(self, factor):
        super().__init__("rm", f"{factor:+.0f}" * 8, Scorer(MODEL, {}, 1))
        self.__dict__.update(factor=factor, asked=[])

    def scores(self, rows):
        self.asked.append(len(rows["tokens"]))
        return (self.factor * rows["segment_ids"].sum(1)).astype(np.float32)


def test_scores_are_kept_until_the_judges_change(tmp_path):
    folder = epath.Path(tmp_path)
    samples = [ONE, answer("No.", sample=1, tokens=(8, 2))]
    prompt = len(TOKENIZER.encode("[INST] Is it? [/INST]", bos=True))
    first, second = Judge(1.0), Judge(-2.0)
    lengths = np.array([prompt + 4, prompt + 2], np.float32)
    for judge, expected in ((first, lengths), (first, lengths), (second, -2 * lengths)):
        found = scored(folder, samples, Judges(judge, None), TOKENIZER, 64)
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == np.float32
    assert (first.asked, second.asked) == ([2], [2])
    lines = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert [(m["prompt_id"], m["sample"], m["judges"], m["score"]) for m in lines] == [
        ("p", 0, "-2" * 8, -2 * lengths[0]), ("p", 1, "-2" * 8, -2 * lengths[1])
    ]  # fmt: skip
    # More samples than scores: the file is of another call.
    samples.append(answer("Oh.", sample=2))
    assert len(scored(folder, samples, Judges(second, None), TOKENIZER, 64)) == 3
    assert second.asked == [2, 3]


def test_samples_come_back_as_they_were_written(tmp_path):
    file = epath.Path(tmp_path) / "samples.jsonl"
    samples = [ONE, answer("Ünïcode\n", sample=1)]
    assert read_samples(file) == []
    file.write_text("".join(map(to_line, samples)))
    assert read_samples(file, policy="a" * 64) == samples
    file.write_text(file.read_text() + to_line(ONE)[:40])  # a kill in the middle of a line
    assert read_samples(file) == samples


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (to_line(replace(ONE, policy="b" * 64)), "row 2 was drawn by another model (digest bbbbbb"),
        ("{}\n", "row 2 is not a sample"),
        ("not JSON\n", "row 2 is not a sample"),
        ("[1]\n", "row 2 is not a sample"),
        (json.dumps({"messages": [], "tokens": []}) + "\n", "row 2 is not a sample"),
    ],
)
def test_a_bank_of_something_else_is_refused_with_its_row(tmp_path, line, message):
    file = epath.Path(tmp_path) / "samples.jsonl"
    file.write_text(to_line(ONE) + line)
    with pytest.raises(InputError) as error:
        read_samples(file, policy="a" * 64)
    assert message in str(error.value)
    assert str(file) in str(error.value)
