"""Advantages from scores: the shaped reward and GAE of PPO, the group advantages of GRPO."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from llama_jax.align.masked import Mask, as_mask, floats, under


def penalize_truncated(
    scores: Float[Array, " B"], truncated: Bool[Array, " B"], *, penalty: float
) -> Float[Array, " B"]:
    """Subtracts the penalty from the scores of truncated answers, and leaves the others as they
    are.

    The penalty is in units of the scores: for whitened scores, 1 is one standard deviation.
    """
    (scores,) = floats("B", scores=scores)
    return scores - penalty * as_mask(truncated, scores.shape, "truncated")


def shaped_rewards(
    scores: Float[Array, " B"],
    old_logp: Float[Array, "B T"],
    ref_logp: Float[Array, "B T"],
    mask: Mask,
    *,
    beta: float,
) -> Float[Array, "B T"]:
    """-beta (old_logp - ref_logp) at each chosen token, plus the score at the last one.

    The KL penalty of Llama 2, equation 4, in its estimator k1, nats. A row without chosen tokens
    has no place for its score.
    """
    (scores,) = floats("B", scores=scores)
    counted, old_logp, ref_logp = under(mask, "B T", old_logp=old_logp, ref_logp=ref_logp)
    if scores.shape != counted.shape[:1]:
        raise ValueError(f"scores has the shape {scores.shape}, but mask has {counted.shape}")
    positions = jnp.arange(counted.shape[1])[None]
    final = jnp.max(jnp.where(counted, positions, -1), axis=1, keepdims=True)
    return beta * (ref_logp - old_logp) + jnp.where(positions == final, scores[:, None], 0)


def gae(
    rewards: Float[Array, "B T"],
    values: Float[Array, "B T"],
    mask: Mask,
    *,
    gamma: float,
    lam: float,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """Advantages and returns of one answer a row (Schulman et al. 2016); 0 outside the mask.

    delta_t = r_t + gamma v_{t+1} - v_t and A_t = delta_t + gamma lam A_{t+1}, where what follows
    counts only if the next position is in the mask; returns are A + v. An answer that was cut off
    is not bootstrapped.
    """
    counted, rewards, values = under(mask, "B T", rewards=rewards, values=values)

    def following(a):
        return jnp.pad(a[:, 1:], ((0, 0), (0, 1)))

    deltas = rewards + gamma * following(values) - values
    decays = gamma * lam * following(counted.astype(values.dtype))

    def back(advantage, now):
        delta, decay = now
        advantage = delta + decay * advantage
        return advantage, advantage

    start = jnp.zeros_like(deltas[:, 0])
    _, advantages = jax.lax.scan(back, start, (deltas.T, decays.T), reverse=True)
    advantages = jnp.where(counted, advantages.T, 0)
    return advantages, advantages + values


def varied_groups(rewards: Float[Array, "P N"]) -> Bool[Array, " P"]:
    """Marks the prompts whose answers got different rewards; the others carry no signal."""
    (rewards,) = floats("P N", rewards=rewards)
    return jnp.max(rewards, axis=1) > jnp.min(rewards, axis=1)


def group_advantages(rewards: Float[Array, "P N"]) -> Float[Array, "P N"]:
    """(r - mean) / (std + 1e-6) among the N answers to each prompt (GRPO, Shao et al. 2024).

    std divides by N - 1. A prompt whose answers all got one reward has advantages of exactly 0.

    Raises:
      ValueError: N is 1.
    """
    (rewards,) = floats("P N", rewards=rewards)
    if rewards.shape[1] < 2:
        raise ValueError(f"rewards {rewards.shape} needs two or more answers to each prompt")
    centred = rewards - jnp.mean(rewards, axis=1, keepdims=True)
    std = jnp.std(rewards, axis=1, keepdims=True, ddof=1)
    return jnp.where(varied_groups(rewards)[:, None], centred / (std + 1e-6), 0)
