"""Calibration of a reward model: its confidence against its accuracy on pairs of answers."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from llama_jax.align.scoring import RewardModel, rows_of
from llama_jax.config import require
from llama_jax.data.chat import encode_answer, encode_prompt
from llama_jax.data.records import RATINGS, Preference
from llama_jax.data.tokenizer import Tokenizer


class Bin(NamedTuple):
    """Pairs of which a reward model is about equally certain."""

    predicted: float
    """Mean certainty, 0.5 to 1: sigmoid of the distance of the two scores."""
    observed: float
    """Share of pairs in which the model prefers the chosen answer; ties count half."""
    pairs: int


def calibration(gaps: Float[np.ndarray, " n"], *, bins: int = 8) -> list[Bin]:
    """Bins of equally many pairs by certainty, from the differences of chosen and rejected scores.

    For a calibrated model, observed equals predicted. Raises InputError with fewer pairs than bins.
    """
    require(len(gaps) >= bins > 0, f"{len(gaps)} pairs are too few for {bins} bins")
    gaps = np.asarray(gaps, np.float64)
    certainty = 1 / (1 + np.exp(-np.abs(gaps)))
    right = np.where(gaps == 0, 0.5, gaps > 0)
    parts = np.array_split(np.argsort(certainty, kind="stable"), bins)
    return [Bin(float(certainty[p].mean()), float(right[p].mean()), len(p)) for p in parts]


def pair_gaps(
    model: RewardModel, tokenizer: Tokenizer, pairs: Sequence[Preference], *, seq_len: int
) -> Float[np.ndarray, " n"]:
    """Score of the chosen answer minus that of the rejected one; NaN for pairs longer than
    `seq_len`."""
    rows, fits = [], []
    for pair in pairs:
        prompt = encode_prompt(tokenizer, pair.messages)
        both = [[*prompt, *encode_answer(tokenizer, t)] for t in (pair.chosen, pair.rejected)]
        fits.append(max(map(len, both)) <= seq_len)
        rows += both if fits[-1] else []
    require(rows, f"none of {len(pairs)} pairs fits {seq_len} tokens")
    scores = model.scores(rows_of(rows, seq_len))
    gaps = np.full(len(pairs), np.nan, np.float32)
    gaps[fits] = scores[::2] - scores[1::2]
    return gaps


def rated_accuracy(pairs: Sequence[Preference], gaps: Float[np.ndarray, " n"]) -> dict[str, float]:
    """For each rating, the share of pairs whose chosen answer has the higher score; the highest
    rating first, NaN for one without pairs.

    gaps: from `pair_gaps`; pairs with NaN are not counted.
    """
    ratings = np.array([pair.rating for pair in pairs])

    def share(rating: int) -> float:
        rated = gaps[(ratings == rating) & ~np.isnan(gaps)]
        return float(np.mean(rated > 0)) if len(rated) else float("nan")

    return {name: share(rating) for rating, name in reversed([*enumerate(RATINGS)])}
