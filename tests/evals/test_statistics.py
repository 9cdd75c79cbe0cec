"""Intervals and tests against closed forms, published values and enumeration."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_jax.config import InputError
from llama_jax.evals.statistics import mean_interval, paired_p_value, wilson_interval, win_rate


def test_the_bootstrap_agrees_with_the_normal_interval_of_many_values():
    x = np.random.default_rng(0).normal(3.0, 2.0, 4000)
    low, high = mean_interval(x)
    half = 1.96 * x.std(ddof=1) / math.sqrt(x.size)
    assert low == pytest.approx(x.mean() - half, abs=0.01)
    assert high == pytest.approx(x.mean() + half, abs=0.01)
    assert mean_interval([2.0, 2.0]) == (2.0, 2.0)
    with pytest.raises(InputError, match="no values"):
        mean_interval([])


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    # Newcombe 1998, table I, method 3.
    [
        (81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)  # fmt: skip
def test_wilson_gives_the_published_intervals(successes, trials, low, high):
    found = wilson_interval(float(successes), trials)
    assert found == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
@settings(deadline=None, max_examples=50)
def test_wilson_solves_its_equation(case):
    """The bounds are the shares from which the observed one is z standard errors away."""
    successes, trials = case
    share = successes / trials
    for bound in wilson_interval(float(successes), trials):
        error = math.sqrt(bound * (1 - bound) / trials)
        assert abs(abs(share - bound) - 1.959963984540054 * error) < 1e-7


def test_the_permutation_test_agrees_with_all_permutations():
    ours, theirs = [1.0, 2.0, 0.5, 3.0, 1.5, 2.5], [0.5, 1.8, 0.9, 1.0, 1.6, 1.0]
    d = np.subtract(ours, theirs)
    signs = np.array(list(itertools.product((-1, 1), repeat=6)))
    exact = np.mean(signs @ d >= d.sum() - 1e-12)
    assert paired_p_value(ours, theirs, draws=200_000) == pytest.approx(exact, abs=0.003)
    assert paired_p_value(theirs, ours) > 0.9
    assert paired_p_value([1.0] * 30, [0.0] * 30) < 0.001
    with pytest.raises(InputError, match="2 and 1 values are not pairs"):
        paired_p_value([1.0, 2.0], [1.0])


def test_ties_count_half():
    found = win_rate([1.0, 2.0, 3.0, 4.0], [0.0, 2.0, 5.0, 3.0])
    assert (found.wins, found.ties, found.losses, found.rate) == (2, 1, 1, 0.625)
    assert found.interval == wilson_interval(2.5, 4)
    with pytest.raises(InputError, match="impossible"):
        wilson_interval(5.0, 4)
