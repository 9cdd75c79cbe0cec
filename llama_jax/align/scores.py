"""Reward-model scores as logits: margins, the rule for two models, whitening, best of N.

A score never goes through a sigmoid and back: float32 `logit(sigmoid(x))` is infinite from x = 17.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from llama_jax.align.masked import as_mask, floats

MARGINS: dict[str, tuple[float, float, float, float]] = {
    "none": (0.0, 0.0, 0.0, 0.0),
    "small": (0.0, 1 / 3, 2 / 3, 1.0),
    "large": (0.0, 1.0, 2.0, 3.0),
}
"""By rating, 0 negligibly better to 3 significantly better (Llama 2, table 27)."""

SAFETY_THRESHOLD = math.log(0.15 / 0.85)
"""logit(0.15) = -1.734601: below it, the safety score alone judges an answer."""

SMALLEST_SPREAD = 1e-6
"""Scores with a smaller standard deviation than this count as all equal."""


def combined_score(
    score_safe: Float[Array, " B"],
    score_help: Float[Array, " B"],
    is_safety: Bool[Array, " B"],
    *,
    threshold: float = SAFETY_THRESHOLD,
) -> Float[Array, " B"]:
    """R_c of Llama 2, section 3.2.3: the safety score of safety prompts and of unsafe answers.

    score_safe where is_safety or score_safe < threshold, score_help elsewhere; all in logits.
    """
    score_safe, score_help = floats("B", score_safe=score_safe, score_help=score_help)
    asked = as_mask(is_safety, score_safe.shape, "is_safety")
    return jnp.where(jnp.logical_or(asked, score_safe < threshold), score_safe, score_help)


class ScoreScale(NamedTuple):
    """Mean and spread of scores: of one batch, of all so far (`merge_scales`), or measured once."""

    count: Float[Array, ""]
    mean: Float[Array, ""]
    variance: Float[Array, ""]
    """Population variance: divided by count."""


def score_scale(scores: Float[Array, " B"]) -> ScoreScale:
    """Mean and spread of one batch of scores."""
    (scores,) = floats("B", scores=scores)
    # Seen from one of them, scores that are all the same have exactly no spread: the rounding of
    # their mean would be divided by itself.
    offsets = scores - scores[0]
    mean = jnp.mean(offsets)
    count = jnp.asarray(scores.size, scores.dtype)
    return ScoreScale(count, scores[0] + mean, jnp.mean(jnp.square(offsets - mean)))


def merge_scales(a: ScoreScale, b: ScoreScale) -> ScoreScale:
    """The scale of both sets of scores together (Chan et al. 1979): a running scale."""
    count = a.count + b.count
    step = b.mean - a.mean
    between = jnp.square(step) * a.count * b.count / count
    return ScoreScale(
        count,
        a.mean + step * b.count / count,
        (a.variance * a.count + b.variance * b.count + between) / count,
    )


def whiten_scores(scores: Float[Array, " B"], scale: ScoreScale) -> Float[Array, " B"]:
    """(scores - mean) / standard deviation; 0 where the scale has no spread.

    `whiten_scores(s, score_scale(s))` is the paper's whitening by batch.
    """
    (scores,) = floats("B", scores=scores)
    std = jnp.sqrt(scale.variance)
    spread = std > SMALLEST_SPREAD
    return jnp.where(spread, (scores - scale.mean) / jnp.where(spread, std, 1), 0)


def max_of_k(scores: Float[Array, "*rows N"], k: int) -> Float[Array, "*rows"]:
    """Expected maximum of k answers drawn from N scored ones without replacement, unbiased.

    sum_i C(i-1, k-1) / C(N, k) s_(i) over the sorted scores: what rejection sampling with k answers
    would reach, from one bank of N.

    Raises:
      ValueError: k is not between 1 and N.
    """
    (scores,) = floats(None, scores=scores)
    N = scores.shape[-1]
    if not 1 <= k <= N:
        raise ValueError(f"{k=} must be between 1 and the number of scores, {N}")
    shares = [math.comb(i, k - 1) / math.comb(N, k) for i in range(N)]
    row = jnp.asarray(shares, scores.dtype).reshape((1,) * (scores.ndim - 1) + (N,))
    return jnp.sum(jnp.sort(scores, axis=-1) * row, axis=-1)


def best_of_n_kl(n: int) -> float:
    """Upper bound in nats of the KL of the best of n samples from the policy: ln n - (n-1)/n."""
    return math.log(n) - (n - 1) / n
