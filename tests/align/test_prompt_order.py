"""The order of prompts: permutations, mixed by shares, the same wherever one begins."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_jax.align.prompt_order import prompt_order


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
