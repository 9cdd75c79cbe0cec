"""Pairs of a model's own answers, as annotators who see the judge's scores with noise rate them."""

import pytest

from llama_jax.align.answering import Answered
from llama_jax.data.corpora.tales import instructions, preferences
from llama_jax.data.corpora.tales.judge import judge
from llama_jax.data.records import Prompt
from llama_jax.evals.comparisons import compare

MIA = Prompt(messages=({"role": "user", "content": "Tell me a sad story about a girl named Mia."},))
GOOD = (
    "Mia was a little girl. One day Mia lost her red ball in the park. Mia was sad. She sat under "
    "a tree and cried. Mia never found the ball again."
)
FAIR = "Tom was a boy. Tom had a ball. Tom was happy. He played all day."
BAD = "ball ball the the red"


def model_of(texts):
    """A model that gives these answers in turn, whatever it is asked."""
    asked = []

    def answer(conversations, seeds):
        asked.extend(zip(conversations, seeds, strict=True))
        given = (texts * len(conversations))[: len(conversations)]
        return [Answered(text, (2,), True) for text in given]

    return answer, asked


def test_every_two_answers_of_a_prompt_make_a_pair():
    scores = {t: judge(MIA.messages, t).helpfulness for t in (GOOD, FAIR, BAD)}
    assert scores[GOOD] > scores[FAIR] + 0.2 > scores[BAD] + 0.3
    answer, asked = model_of([FAIR, BAD, GOOD])
    pairs = list(compare(answer, [MIA], samples=3, kind="helpfulness"))
    found = [(pair.chosen, pair.rejected) for pair in pairs]
    assert found == [(FAIR, BAD), (GOOD, FAIR), (GOOD, BAD)]
    assert pairs[2].rating == 3
    assert all(pair.messages == MIA.messages for pair in pairs)
    assert [seed for _, seed in asked] == [(0, n) for n in range(3)]


def test_answers_of_equal_worth_and_empty_ones_make_no_pair():
    answer, _ = model_of([GOOD, GOOD.replace("red", "blue")])
    assert not list(compare(answer, [MIA], samples=2, kind="helpfulness"))
    answer, _ = model_of([GOOD, ""])
    assert not list(compare(answer, [MIA], samples=2, kind="helpfulness"))


def test_annotators_see_small_differences_with_noise_and_large_ones_rightly():
    """Right choices nearly always at 3, about half at 0, as in pairs that were made."""
    prompts = [MIA] * 60
    answer, _ = model_of([GOOD, BAD])
    large = list(compare(answer, prompts, samples=2, kind="helpfulness"))
    assert all(p.chosen == GOOD and p.rating >= 2 for p in large)
    assert sum(p.rating == 3 for p in large) > 45
    close = GOOD + " He slept."
    gap = judge(MIA.messages, GOOD).helpfulness - judge(MIA.messages, close).helpfulness
    assert 0 < gap < preferences.NOISE / 2
    answer, _ = model_of([GOOD, close])
    small = list(compare(answer, prompts, samples=2, kind="helpfulness"))
    assert 25 < sum(p.chosen == GOOD for p in small) < 55
    assert {p.rating for p in small} <= {0, 1}
    again = list(compare(answer, prompts, samples=2, kind="helpfulness"))
    assert again == small
    other = list(compare(answer, prompts, samples=2, kind="helpfulness", seed=1))
    assert other != small


def test_what_is_unsafe_loses_for_safety():
    unkind = instructions.adversarial(0)
    help_with_it = "Sure. First you hit the puppy with a stick, then you kick it."
    kind = "No, I will not help with that, since it would hurt. Shall I tell you a kind story?"
    verdicts = [judge(unkind.messages, t).safe for t in (help_with_it, kind)]
    assert verdicts == [False, True]
    answer, _ = model_of([help_with_it, kind])
    [pair] = compare(answer, [unkind], samples=2, kind="safety")
    assert (pair.chosen, pair.safe_chosen, pair.safe_rejected) == (kind, True, False)


@pytest.mark.parametrize("kind", sorted(preferences.MIXES))
def test_pairs_that_are_made_are_rated_by_the_same_rule(kind):
    pair = preferences.preference(3, kind=kind)
    scores = [
        preferences.score(judge(pair.messages, text), kind) for text in (pair.chosen, pair.rejected)
    ]
    seen = abs(scores[0] - scores[1])
    nearest = sum(seen >= least for least in preferences.LEAST_GAPS)
    assert abs(pair.rating - nearest) <= 1
