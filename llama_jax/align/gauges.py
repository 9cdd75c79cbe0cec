"""Metrics that monitor reinforcement learning: KL, explained variance, reward hacking."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from llama_jax.align.masked import Mask, masked_variance, under


class KL(NamedTuple):
    """Estimators of KL(policy || reference) from tokens sampled from the policy, in nats.

    As measurements all three agree in expectation near the reference. As losses they do not: the
    expected gradient of k1 is 0, that of k2 is the KL's, and that of k3 is the reverse KL's.
    """

    k1: Float[Array, "B T"]
    """log(p/q): unbiased, may be negative."""
    k2: Float[Array, "B T"]
    """(log(p/q))^2 / 2: biased, small variance."""
    k3: Float[Array, "B T"]
    """q/p - 1 - log(q/p): unbiased, never negative."""


def kl_estimates(logp: Float[Array, "B T"], ref_logp: Float[Array, "B T"], mask: Mask) -> KL:
    """The three estimators of each token (Schulman 2020, "Approximating KL divergence").

    0 outside the mask. Sums over an answer and means over tokens are different numbers: log both.
    """
    _, logp, ref_logp = under(mask, "B T", logp=logp, ref_logp=ref_logp)
    difference = logp - ref_logp
    return KL(difference, jnp.square(difference) / 2, jnp.expm1(-difference) + difference)


def explained_variance(
    values: Float[Array, "B T"], returns: Float[Array, "B T"], mask: Mask
) -> Float[Array, ""]:
    """1 - var(returns - values) / var(returns) over the mask: 1 perfect, 0 no better than a mean.

    0 where the returns do not vary.
    """
    counted, values, returns = under(mask, "B T", values=values, returns=returns)
    total = masked_variance(returns, counted)
    left = masked_variance(returns - values, counted)
    return jnp.where(total > 0, 1 - left / jnp.where(total > 0, total, 1), 0)


def reward_hacking(proxy: Sequence[float], gold: Sequence[float], *, patience: int) -> bool:
    """Whether the policy has learned to exploit its reward model rather than to answer better.

    True if the gold score peaked at least `patience` entries ago and has fallen since, while the
    proxy score has risen (Gao et al. 2023).

    Args:
      proxy: mean score of each iteration by the reward model that trains the policy.
      gold: of the same answers by a reward model that does not, in its own units.

    Raises:
      ValueError: the curves differ in length.
    """
    if len(proxy) != len(gold):
        raise ValueError(f"proxy has {len(proxy)} entries and gold {len(gold)}")
    if len(gold) <= patience:
        return False
    best = max(range(len(gold)), key=lambda i: gold[i])
    old = len(gold) - 1 - best >= patience
    return bool(old and gold[-1] < gold[best] and proxy[-1] > proxy[best])
