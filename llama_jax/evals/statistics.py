"""Confidence intervals of averages, and paired tests of two models on the same prompts."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from llama_jax.config import require

Z95 = 1.959963984540054
"""Quantile of the normal distribution that leaves 2.5 % above it."""


class Interval(NamedTuple):
    """Bounds of a 95 % confidence interval."""

    low: float
    high: float


def mean_interval(
    values: Sequence[float] | Float[np.ndarray, " n"], *, draws: int = 2000, seed: int = 0
) -> Interval:
    """Interval of a mean, by the percentile bootstrap (Efron 1979), without assuming a
    distribution.

    Raises InputError without values.
    """
    x = np.asarray(values, np.float64)
    require(x.size, "a mean of no values has no interval")
    rng = np.random.default_rng(seed)
    means = x[rng.integers(0, x.size, (draws, x.size))].mean(axis=1)
    low, high = np.percentile(means, (2.5, 97.5))
    return Interval(float(low), float(high))


def wilson_interval(successes: float, trials: int) -> Interval:
    """Interval of a share (Wilson 1927): valid near 0 and 1, where the normal approximation is not.

    Raises InputError unless 0 <= successes <= trials and there are trials.
    """
    require(trials > 0, "a share of no trials has no interval")
    require(0 <= successes <= trials, f"{successes} successes in {trials} trials are impossible")
    share, z2 = successes / trials, Z95**2
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    spread = share * (1 - share) / trials + z2 / (4 * trials**2)
    half = Z95 / (1 + z2 / trials) * math.sqrt(spread)
    return Interval(max(0.0, centre - half), min(1.0, centre + half))


def paired_p_value(
    ours: Sequence[float], theirs: Sequence[float], *, draws: int = 10_000, seed: int = 0
) -> float:
    """Probability that pairs without a true difference differ at least this much in favour of ours.

    A one-sided permutation test: the sign of each difference is drawn at random. The smallest value
    that it can give is 1/(draws + 1).

    Raises InputError if the lengths differ or there is no pair.
    """
    difference = _differences(ours, theirs)
    rng = np.random.default_rng(seed)
    signs = rng.integers(0, 2, (draws, difference.size)) * 2 - 1
    at_least = np.sum(signs @ difference >= difference.sum() - 1e-12)
    return float((at_least + 1) / (draws + 1))


def _differences(ours: Sequence[float], theirs: Sequence[float]) -> Float[np.ndarray, " n"]:
    require(
        len(ours) == len(theirs) > 0,
        f"{len(ours)} and {len(theirs)} values are not pairs of the same prompts",
    )
    return np.asarray(ours, np.float64) - np.asarray(theirs, np.float64)


class WinRate(NamedTuple):
    """How often one model's answer is the better one; ties count half."""

    rate: float
    interval: Interval
    wins: int
    ties: int
    losses: int


def win_rate(ours: Sequence[float], theirs: Sequence[float]) -> WinRate:
    """From scores of answers to the same prompts. Raises InputError as `paired_p_value`."""
    difference = _differences(ours, theirs)
    wins, losses = int(np.sum(difference > 0)), int(np.sum(difference < 0))
    ties = difference.size - wins - losses
    points = wins + ties / 2
    interval = wilson_interval(points, difference.size)
    return WinRate(points / difference.size, interval, wins, ties, losses)
