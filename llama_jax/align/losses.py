"""Alignment losses and estimators as pure functions.

`*_terms` are losses of single pairs or tokens, zero outside their mask. A training step sums them
and divides by the count of the global batch; `*_loss` are the means over a single batch.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from llama_jax.align.advantages import (
    gae,
    group_advantages,
    penalize_truncated,
    shaped_rewards,
    varied_groups,
)
from llama_jax.align.gauges import KL, explained_variance, kl_estimates, reward_hacking
from llama_jax.align.masked import (
    Mask,
    as_mask,
    floats,
    masked_mean,
    masked_sum,
    masked_variance,
    masked_whiten,
    under,
)
from llama_jax.align.scores import (
    MARGINS,
    SAFETY_THRESHOLD,
    ScoreScale,
    best_of_n_kl,
    combined_score,
    max_of_k,
    merge_scales,
    score_scale,
    whiten_scores,
)

__all__ = [
    "KL",
    "MARGINS",
    "SAFETY_THRESHOLD",
    "ScoreScale",
    "best_of_n_kl",
    "combined_score",
    "dpo_loss",
    "explained_variance",
    "gae",
    "group_advantages",
    "implicit_rewards",
    "kl_estimates",
    "kl_terms",
    "masked_mean",
    "masked_sum",
    "masked_variance",
    "masked_whiten",
    "max_of_k",
    "merge_scales",
    "pairwise_loss",
    "pairwise_terms",
    "penalize_truncated",
    "policy_clipped",
    "policy_loss",
    "policy_terms",
    "reward_hacking",
    "safety_loss",
    "safety_terms",
    "score_scale",
    "shaped_rewards",
    "value_clipped",
    "value_loss",
    "value_terms",
    "varied_groups",
    "whiten_scores",
]

Tokens = Float[Array, "B T"]
Rows = Float[Array, " B"]


def pairwise_terms(chosen: Rows, rejected: Rows, margin: Rows) -> Rows:
    """-log sigmoid(chosen - rejected - margin) of each pair (Llama 2, equation 2).

    Raises:
      TypeError: an argument holds integers.
      ValueError: an argument is not [B], as scores [B,1] are not.
    """
    chosen, rejected, margin = floats("B", chosen=chosen, rejected=rejected, margin=margin)
    return jax.nn.softplus(margin + rejected - chosen)


def pairwise_loss(chosen: Rows, rejected: Rows, margin: Rows) -> Float[Array, ""]:
    """Mean of `pairwise_terms`, the loss of a reward model."""
    return jnp.mean(pairwise_terms(chosen, rejected, margin))


def safety_terms(scores: Rows, safe: Bool[Array, " B"], mask: Mask) -> Rows:
    """-log sigmoid(score) of safe answers, -log sigmoid(-score) of unsafe ones.

    The auxiliary loss of the safety reward model (Llama 2, section 3.2.2) on the score itself,
    which gives its sigmoid a meaning. mask [B]: the answers that have a label.
    """
    counted, scores = under(mask, "B", scores=scores)
    safe = as_mask(safe, scores.shape, "safe")
    return jnp.where(counted, jax.nn.softplus(jnp.where(safe, -scores, scores)), 0)


def safety_loss(scores: Rows, safe: Bool[Array, " B"], mask: Mask) -> Float[Array, ""]:
    """Mean of `safety_terms` over the answers with a label; 0 where none has."""
    return masked_mean(safety_terms(scores, safe, mask), mask)


def _policy_parts(logp, old_logp, advantages, mask, clip):
    """Losses of a token with its ratio as it is and with its ratio clipped."""
    _, logp, old_logp, advantages = under(
        mask, "B T", logp=logp, old_logp=old_logp, advantages=advantages
    )
    ratio = jnp.exp(logp - old_logp)
    return -advantages * ratio, -advantages * jnp.clip(ratio, 1 - clip, 1 + clip)


def policy_terms(
    logp: Tokens, old_logp: Tokens, advantages: Tokens, mask: Mask, *, clip: float
) -> Tokens:
    """max(-A ratio, -A clip(ratio, 1 - clip, 1 + clip)) of each token (Schulman et al. 2017).

    ratio = exp(logp - old_logp). 0 outside the mask, whatever stands there.
    """
    return jnp.maximum(*_policy_parts(logp, old_logp, advantages, mask, clip))


def policy_clipped(
    logp: Tokens, old_logp: Tokens, advantages: Tokens, mask: Mask, *, clip: float
) -> Tokens:
    """1.0 for each token whose loss is the clipped one and has no gradient, else 0.0."""
    plain, clipped = _policy_parts(logp, old_logp, advantages, mask, clip)
    return (clipped > plain).astype(plain.dtype)


def policy_loss(
    logp: Tokens, old_logp: Tokens, advantages: Tokens, mask: Mask, *, clip: float
) -> Float[Array, ""]:
    """PPO's clipped loss, the mean of `policy_terms` over all tokens of the mask.

    A mean over tokens, not over sequences of means, which would be biased.
    """
    return masked_mean(policy_terms(logp, old_logp, advantages, mask, clip=clip), mask)


def kl_terms(logp: Tokens, old_logp: Tokens, ref_logp: Tokens, mask: Mask) -> Tokens:
    """KL(policy || reference) of each token as a loss: k3 times exp(logp - old_logp).

    The expectation over tokens that the old policy drew, and its gradient, are those of the KL
    divergence of the distributions after the tokens before; without the ratio the gradient of k3
    is that of KL(reference || policy). 0 outside the mask.
    """
    _, logp, old_logp, ref_logp = under(
        mask, "B T", logp=logp, old_logp=old_logp, ref_logp=ref_logp
    )
    return jnp.exp(logp - old_logp) * kl_estimates(logp, ref_logp, mask).k3


def _value_parts(values, old_values, returns, mask, clip):
    """Half squared errors of the values as they are, and clipped to within `clip` of the old."""
    _, values, old_values, returns = under(
        mask, "B T", values=values, old_values=old_values, returns=returns
    )
    near = values if clip is None else old_values + jnp.clip(values - old_values, -clip, clip)
    return jnp.square(values - returns) / 2, jnp.square(near - returns) / 2


def value_terms(
    values: Tokens, old_values: Tokens, returns: Tokens, mask: Mask, *, clip: float | None
) -> Tokens:
    """Half the larger squared error of a token's value and of that value clipped to within `clip`
    of the old one.

    clip None: the plain squared error. 0 outside the mask.
    """
    return jnp.maximum(*_value_parts(values, old_values, returns, mask, clip))


def value_clipped(
    values: Tokens, old_values: Tokens, returns: Tokens, mask: Mask, *, clip: float | None
) -> Tokens:
    """1.0 for each token whose loss is the clipped one, else 0.0."""
    plain, clipped = _value_parts(values, old_values, returns, mask, clip)
    return (clipped > plain).astype(plain.dtype)


def value_loss(
    values: Tokens, old_values: Tokens, returns: Tokens, mask: Mask, *, clip: float | None
) -> Float[Array, ""]:
    """PPO's clipped value loss, the mean of `value_terms` over all tokens of the mask."""
    return masked_mean(value_terms(values, old_values, returns, mask, clip=clip), mask)


def implicit_rewards(logp: Rows, ref_logp: Rows, *, beta: float) -> Rows:
    """beta (logp - ref_logp): the reward under which the policy would be optimal, for logs."""
    logp, ref_logp = floats("B", logp=logp, ref_logp=ref_logp)
    return beta * (logp - ref_logp)


def dpo_loss(
    chosen: Rows,
    rejected: Rows,
    ref_chosen: Rows,
    ref_rejected: Rows,
    *,
    beta: float,
    label_smoothing: float = 0.0,
    kind: Literal["sigmoid", "ipo"] = "sigmoid",
) -> Rows:
    """Direct preference optimisation's loss of each pair (Rafailov et al. 2023).

    With d = (chosen - ref_chosen) - (rejected - ref_rejected), -log sigmoid(beta d): ln 2 for a
    policy that is its reference. Arguments are log-probabilities of whole answers, summed over
    their tokens, EOS included, in nats.

    Args:
      label_smoothing: the probability e that a label is wrong,
        -(1 - e) log sigmoid(beta d) - e log sigmoid(-beta d) (conservative DPO).
      kind: "ipo" is (d - 1 / (2 beta))^2 (Azar et al. 2024), which has no smoothing.

    Raises:
      ValueError: shapes differ from [B], kind is unknown, or label_smoothing does not fit.
    """
    chosen, rejected, ref_chosen, ref_rejected = floats(
        "B", chosen=chosen, rejected=rejected, ref_chosen=ref_chosen, ref_rejected=ref_rejected
    )
    difference = (chosen - ref_chosen) - (rejected - ref_rejected)
    if kind == "ipo":
        if label_smoothing:
            raise ValueError(f"kind='ipo' takes no {label_smoothing=}; use 0")
        return jnp.square(difference - 1 / (2 * beta))
    if kind != "sigmoid":
        raise ValueError(f"{kind=} must be 'sigmoid' or 'ipo'")
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"{label_smoothing=} must be at least 0 and below 0.5")
    right, wrong = jax.nn.softplus(-beta * difference), jax.nn.softplus(beta * difference)
    return (1 - label_smoothing) * right + label_smoothing * wrong
