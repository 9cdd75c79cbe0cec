"""The order of prompts: permutations, mixed by shares, the same wherever one begins."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_jax.align.iterations import of_helpfulness
from llama_jax.align.prompt_order import prompt_order, sample_of
from llama_jax.data.conversations import EncodedPrompt


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(0, 3))
def test_each_epoch_of_one_share_is_a_permutation(count, seed):
    order = prompt_order([0.5] * count, seed, 0, 4 * count)
    epochs = [order[i : i + count] for i in range(0, 4 * count, count)]
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)


def test_epochs_and_seeds_differ():
    order = prompt_order([1.0] * 20, 0, 0, 40)
    assert order[:20] != order[20:]
    assert order != prompt_order([1.0] * 20, 1, 0, 40)


SHARES = [0.1] * 5 + [0.05] * 4 + [0.3]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 60), st.integers(0, 30))
def test_the_order_does_not_depend_on_where_one_begins(start, wanted):
    whole = prompt_order(SHARES, 3, 0, 100)
    assert prompt_order(SHARES, 3, start, wanted) == whole[start : start + wanted]


@pytest.mark.parametrize("start", [0, 777])
def test_shares_are_kept_in_short_stretches_too(start):
    drawn = np.bincount(prompt_order(SHARES, 0, start, 200), minlength=len(SHARES)) / 200
    for group in (range(5), range(5, 9), (9,)):
        wanted = sum(SHARES[p] for p in group)
        assert abs(sum(drawn[p] for p in group) - wanted) <= 3 / 200
    assert np.ptp(drawn[:5]) <= 2 / 200  # each as often as the others of its share


def prompts(**counts):
    """So many prompts of each source, whose share is its own."""
    shares = {"stories": 0.6, "unkind": 0.4}
    return tuple(
        EncodedPrompt(f"{name}-{i}", (), (1,), name == "unkind", name, shares[name] / count)
        for name, count in counts.items()
        for i in range(count)
    )


@pytest.mark.parametrize("unkind", [50, 4])
def test_a_sample_has_each_data_set_in_its_share_and_no_prompt_twice(unkind):
    """The first prompts of a mixture would all be of the first data set."""
    found = sample_of(prompts(stories=100, unkind=unkind), 0, 20)
    assert len({p.id for p in found}) == 20
    assert sum(p.safety for p in found) == min(8, unkind)
    assert found == sample_of(prompts(stories=100, unkind=unkind), 0, 20)
    assert found != sample_of(prompts(stories=100, unkind=unkind), 1, 20)


def test_a_sample_of_more_than_there_are_is_all_of_them():
    whole = prompts(stories=3, unkind=2)
    assert sample_of(whole, 0, 5) == sample_of(whole, 0, 9) == list(whole)
    assert sample_of((), 0, 5) == []


def test_a_model_of_helpfulness_scores_no_answers_to_unkind_prompts():
    scores = np.array([1.0, 2.0, 3.0, -9.0, -8.0])
    assert of_helpfulness(scores, prompts(stories=3, unkind=2)).tolist() == [1.0, 2.0, 3.0]
    assert of_helpfulness(scores[3:], prompts(unkind=2)).tolist() == [-9.0, -8.0]
