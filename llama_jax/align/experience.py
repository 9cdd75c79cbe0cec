"""Training data of PPO and GRPO from sampled answers: log-probabilities, rewards, advantages.

PPO (Llama 2, section 3.2.3) computes from a score R_c
    R~  = R_c whitened, less a penalty where the answer was cut off
    reward_t = -beta (old_logp_t - ref_logp_t), + R~ at the last token
and estimates advantages with a value model. GRPO compares the scores of answers to one prompt
(Shao et al. 2024), and puts the KL into its loss.
"""

import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from llama_jax.align.losses import (
    ScoreScale,
    explained_variance,
    gae,
    group_advantages,
    kl_estimates,
    masked_whiten,
    merge_scales,
    penalize_truncated,
    score_scale,
    shaped_rewards,
    varied_groups,
    whiten_scores,
)
from llama_jax.align.rewards import Scores, score_metrics
from llama_jax.align.scoring import Scorer, token_logprobs_of, values_of
from llama_jax.config_align import GrpoConfig, PolicyConfig, PpoConfig
from llama_jax.infer.samples import drift

Arrays = Mapping[str, np.ndarray]
"""Rows of prompts with answers: tokens, positions, segment_ids, answer and sampler_logp [R,T]."""


class Sampled(NamedTuple):
    """Log-probabilities of the answers by policy and reference, before any update."""

    old_logp: Float[np.ndarray, "R T"]
    ref_logp: Float[np.ndarray, "R T"]
    metrics: dict[str, float]
    """Metrics of scores, KL, entropy, lengths and the sampler's drift."""


def read_answers(
    config: PolicyConfig,
    *,
    rows: Arrays,
    scores: Scores,
    stopped: Bool[np.ndarray, " R"],
    policy: Scorer,
    reference: Scorer,
) -> Sampled:
    """Computes the log-probabilities of the answers at the temperature that they were sampled
    with."""
    answer, temperature = rows["answer"], config.temperature
    old_logp, entropy = token_logprobs_of(policy, rows, temperature=temperature)
    ref_logp, _ = token_logprobs_of(reference, rows, temperature=temperature)
    kl = jax.device_get(_kl(old_logp, ref_logp, answer))
    apart = drift(old_logp, rows["sampler_logp"], mask=answer)
    tokens = answer.sum(axis=1)
    metrics = score_metrics(scores) | {
        "kl/answer": float(kl.k1.sum(axis=1).mean()),
        "kl/answer_k3": float(kl.k3.sum(axis=1).mean()),
        "kl/token": float(kl.k1.sum() / max(answer.sum(), 1)),
        "kl/token_k3": float(kl.k3.sum() / max(answer.sum(), 1)),
        "policy/entropy_sampled": float(entropy[answer].mean()) if answer.any() else 0.0,
        "answer/tokens": float(tokens.mean()),
        "answer/truncated": float((~stopped).mean()),
        "answer/length_score_correlation": _correlation(tokens, scores.combined),
        "drift/mean": float(apart.mean),
        "drift/max": float(apart.largest),
    }
    return Sampled(old_logp, ref_logp, metrics)


_kl = jax.jit(kl_estimates)


def next_scale(
    config: PpoConfig, before: ScoreScale, combined: Float[np.ndarray, " R"]
) -> ScoreScale:
    """The scale for whitening: from the scores of this iteration and the earlier ones; NumPy."""
    now = score_scale(jnp.asarray(combined))
    return jax.device_get(now if config.score_scale == "batch" else merge_scales(before, now))


def make_experience(
    config: PpoConfig,
    *,
    rows: Arrays,
    scores: Scores,
    scale: ScoreScale,
    stopped: Bool[np.ndarray, " R"],
    policy: Scorer,
    reference: Scorer,
    value: Scorer,
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Rows with everything that PPO's updates read, and the metrics of the answers."""
    answer = rows["answer"]
    old_logp, ref_logp, metrics = read_answers(
        config, rows=rows, scores=scores, stopped=stopped, policy=policy, reference=reference
    )
    old_values = values_of(value, rows)
    made = _advantages(
        jnp.asarray(scores.combined),
        scale,
        ~stopped,
        answer,
        old_logp,
        ref_logp,
        old_values,
        beta=config.beta,
        gamma=config.gamma,
        lam=config.lam,
        penalty=1.0 if config.truncated == "penalty" else 0.0,
    )
    advantages, returns, whitened, explained = jax.device_get(made)
    metrics |= {
        "score/scale_mean": float(scale.mean),
        "score/scale_std": float(np.sqrt(scale.variance)),
        "score/whitened": float(whitened.mean()),
        "value/explained_variance": float(explained),
        "value/return": float(returns[answer].mean()) if answer.any() else 0.0,
    }
    if not stopped.all():
        metrics["score/whitened_truncated"] = float(whitened[~stopped].mean())
    made_rows = {
        "old_logp": np.where(answer, old_logp, 0).astype(np.float32),
        "advantages": advantages,
        "old_values": np.where(answer, old_values, 0).astype(np.float32),
        "returns": returns,
    }
    return {**rows, **made_rows}, metrics


@functools.partial(jax.jit, static_argnames=("beta", "gamma", "lam", "penalty"))
def _advantages(
    scores, scale, truncated, answer, old_logp, ref_logp, values, *, beta, gamma, lam, penalty
):
    whitened = penalize_truncated(whiten_scores(scores, scale), truncated, penalty=penalty)
    rewards = shaped_rewards(whitened, old_logp, ref_logp, answer, beta=beta)
    advantages, returns = gae(rewards, values, answer, gamma=gamma, lam=lam)
    explained = explained_variance(values, returns, answer)
    return masked_whiten(advantages, answer), returns, whitened, explained


def make_groups(
    config: GrpoConfig,
    *,
    rows: Arrays,
    scores: Scores,
    stopped: Bool[np.ndarray, " R"],
    policy: Scorer,
    reference: Scorer,
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Rows with everything that GRPO's updates read, and the metrics of the answers.

    `answer` of the result is false in rows without a signal: those of a group whose rewards are all
    equal and, where the experiment masks them, truncated answers.
    """
    answer = rows["answer"]
    old_logp, ref_logp, metrics = read_answers(
        config, rows=rows, scores=scores, stopped=stopped, policy=policy, reference=reference
    )
    grouped = scores.combined.reshape(-1, config.group)
    advantages = np.asarray(group_advantages(jnp.asarray(grouped))).reshape(-1, 1)
    varied = np.asarray(varied_groups(jnp.asarray(grouped)))
    learned = np.repeat(varied, config.group)
    if config.truncated == "mask":
        learned &= stopped
    learned = answer & learned[:, None]
    metrics |= {
        "group/flat": float((~varied).sum()),
        "group/flat_share": float((~varied).mean()),
        "group/std": float(np.std(grouped, 1, ddof=1).mean()),
        "group/best": float(grouped.max(axis=1).mean()),
        "group/learned_tokens": float(learned.sum()),
    }
    made_rows = {
        "answer": learned,
        "old_logp": np.where(learned, old_logp, 0).astype(np.float32),
        "ref_logp": np.where(learned, ref_logp, 0).astype(np.float32),
        "advantages": np.where(learned, advantages, 0).astype(np.float32),
    }
    return {**rows, **made_rows}, metrics


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's; 0 where one of them does not vary."""
    if a.std() == 0 or b.std() == 0:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])
