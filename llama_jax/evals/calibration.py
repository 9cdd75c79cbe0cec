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
    """Pairs that a reward model is about equally certain of."""

    predicted: float
    """Its mean certainty, 0.5 to 1: sigmoid of the distance of the two scores."""
    observed: float
    """Share of them in which the answer that it prefers is the chosen one; ties count half."""
    pairs: int


def calibration(gaps: Float[np.ndarray, " n"], *, bins: int = 8) -> list[Bin]:
    """Bins of equally many pairs by certainty, from the scores of chosen less rejected answers.

    A calibrated model observes what it predicts. Raises InputError with fewer pairs than bins.
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
    """Score of the chosen less that of the rejected answer; NaN for pairs beyond `seq_len`."""
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
    """Of the pairs of each rating, the share whose chosen answer has the higher score; the highest
    rating first, NaN for one without pairs.

    gaps: as `pair_gaps` finds them; pairs without one are not counted.
    """
    ratings = np.array([pair.rating for pair in pairs])

    def share(rating: int) -> float:
        rated = gaps[(ratings == rating) & ~np.isnan(gaps)]
        return float(np.mean(rated > 0)) if len(rated) else float("nan")

    return {name: share(rating) for rating, name in reversed([*enumerate(RATINGS)])}
