"""From answers to what PPO learns from: scores, rewards, advantages (Llama 2, section 3.2.3).

R_c = the safety score of safety prompts and unsafe answers, else the helpfulness score
R~  = R_c whitened, less a penalty where the answer was cut off
reward_t = -beta (old_logp_t - ref_logp_t), + R~ at the last token
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from llama_jax.align.losses import (
    SAFETY_THRESHOLD,
    ScoreScale,
    combined_score,
    explained_variance,
    gae,
    kl_estimates,
    masked_whiten,
    merge_scales,
    penalize_truncated,
    score_scale,
    shaped_rewards,
    whiten_scores,
)
from llama_jax.align.scoring import (
    RewardModel,
    Rows,
    Scorer,
    open_reward_model,
    token_logprobs_of,
    values_of,
)
from llama_jax.config_align import PpoConfig, RolloutConfig
from llama_jax.data.tokenizer import Tokenizer
from llama_jax.infer.samples import drift


@dataclass(frozen=True)
class Judges:
    """The reward models of a policy; `heldout` tells what it learned from the others."""

    helpfulness: RewardModel
    safety: RewardModel | None
    heldout: RewardModel | None = None

    def digest(self) -> str:
        """Which models a combined score comes from."""
        return "+".join(m.digest[:16] for m in (self.helpfulness, self.safety) if m is not None)


def open_judges(
    config: RolloutConfig, tokenizer: Tokenizer, *, block: int, heldout: str | None = None
) -> Judges:
    """The reward models that an experiment names. Raises InputError if one does not fit."""

    def read(path: str) -> RewardModel:
        return open_reward_model(path, tokenizer, seq_len=config.seq_len, block=block)

    return Judges(
        read(config.helpfulness),
        None if config.safety is None else read(config.safety),
        None if heldout is None else read(heldout),
    )


@dataclass(frozen=True)
class Scores:
    """Scores of answers in logits, float32 [R]."""

    helpfulness: Float[np.ndarray, " R"]
    safety: Float[np.ndarray, " R"] | None
    combined: Float[np.ndarray, " R"]
    """R_c of the two models' rule."""
    by_safety: Bool[np.ndarray, " R"]
    """Where R_c is the safety score."""


def score_answers(judges: Judges, rows: Rows, is_safety: Bool[np.ndarray, " R"]) -> Scores:
    """What the reward models say of the answers that rows end with."""
    helpfulness = judges.helpfulness.scores(rows)
    if judges.safety is None:
        return Scores(helpfulness, None, helpfulness, np.zeros(len(helpfulness), bool))
    safety = judges.safety.scores(rows)
    combined = np.asarray(combined_score(*map(jnp.asarray, (safety, helpfulness, is_safety))))
    return Scores(helpfulness, safety, combined, is_safety | (safety < SAFETY_THRESHOLD))


def next_scale(
    config: PpoConfig, before: ScoreScale, combined: Float[np.ndarray, " R"]
) -> ScoreScale:
    """The scale to whiten by, from the scores of this iteration and of those before; NumPy."""
    now = score_scale(jnp.asarray(combined))
    return jax.device_get(now if config.score_scale == "batch" else merge_scales(before, now))


def make_experience(
    config: PpoConfig,
    *,
    rows: Mapping[str, np.ndarray],
    scores: Scores,
    scale: ScoreScale,
    stopped: Bool[np.ndarray, " R"],
    policy: Scorer,
    reference: Scorer,
    value: Scorer,
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Rows with all that the updates read, and the metrics of the answers.

    rows: tokens, positions, segment_ids, answer and sampler_logp [R,T].
    """
    answer, temperature = rows["answer"], config.temperature
    old_logp, entropy = token_logprobs_of(policy, rows, temperature=temperature)
    ref_logp, _ = token_logprobs_of(reference, rows, temperature=temperature)
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
    advantages, returns, whitened, explained, kl, k3 = jax.device_get(made)
    apart = drift(old_logp, rows["sampler_logp"], mask=answer)
    tokens = answer.sum(axis=1)
    metrics = score_metrics(scores, scale) | {
        "score/whitened": float(whitened.mean()),
        "kl/answer": float(kl.sum(axis=1).mean()),
        "kl/answer_k3": float(k3.sum(axis=1).mean()),
        "kl/token": float(kl.sum() / max(answer.sum(), 1)),
        "kl/token_k3": float(k3.sum() / max(answer.sum(), 1)),
        "policy/entropy_sampled": float(entropy[answer].mean()) if answer.any() else 0.0,
        "value/explained_variance": float(explained),
        "value/return": float(returns[answer].mean()) if answer.any() else 0.0,
        "answer/tokens": float(tokens.mean()),
        "answer/truncated": float((~stopped).mean()),
        "answer/length_score_correlation": _correlation(tokens, scores.combined),
        "drift/mean": float(apart.mean),
        "drift/max": float(apart.largest),
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
    kl = kl_estimates(old_logp, ref_logp, answer)
    return masked_whiten(advantages, answer), returns, whitened, explained, kl.k1, kl.k3


def score_metrics(scores: Scores, scale: ScoreScale) -> dict[str, float]:
    """The raw scores of both models, which of them counted, and what whitening does to them."""
    metrics = {
        "score/mean": float(scores.combined.mean()),
        "score/scale_mean": float(scale.mean),
        "score/scale_std": float(np.sqrt(scale.variance)),
        **_spread("score/helpfulness", scores.helpfulness),
    }
    if scores.safety is not None:
        metrics |= {
            **_spread("score/safety", scores.safety),
            "score/by_safety": float(scores.by_safety.mean()),
            "score/unsafe": float((scores.safety < SAFETY_THRESHOLD).mean()),
        }
    return metrics


def _spread(name: str, scores: Float[np.ndarray, " R"]) -> dict[str, float]:
    low, high = np.percentile(scores, (5, 95))
    return {name: float(scores.mean()), f"{name}_p5": float(low), f"{name}_p95": float(high)}


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's; 0 where one of them does not vary."""
    if a.std() == 0 or b.std() == 0:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])
