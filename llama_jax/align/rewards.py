"""Scores answers with two reward models and the rule that joins them, or with a function."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from llama_jax.align.answering import Answered
from llama_jax.align.losses import SAFETY_THRESHOLD, combined_score
from llama_jax.align.scoring import Base, RewardModel, Rows, open_reward_model
from llama_jax.config_align import RolloutConfig
from llama_jax.data.conversations import EncodedPrompt
from llama_jax.data.tokenizer import Tokenizer


@dataclass(frozen=True)
class Scores:
    """Scores of answers, float32 [R]: logits of reward models, or what a function returns."""

    combined: Float[np.ndarray, " R"]
    """R_c by the rule for two models, or the function's value."""
    helpfulness: Float[np.ndarray, " R"] | None = None
    safety: Float[np.ndarray, " R"] | None = None
    by_safety: Bool[np.ndarray, " R"] | None = None
    """True where R_c is the safety score."""

    def of(self, row: int) -> dict[str, float]:
        """The scores of one answer, rounded for display."""
        named = {
            "score": self.combined,
            "helpfulness": self.helpfulness,
            "safety": self.safety,
        }
        return {k: round(float(a[row]), 4) for k, a in named.items() if a is not None}


@runtime_checkable
class Rewards(Protocol):
    """Scores answers to prompts."""

    def digest(self) -> str:
        """Identifies the models or the function that scores come from."""
        ...

    def score(
        self, prompts: Sequence[EncodedPrompt], rows: Rows, answers: Sequence[Answered]
    ) -> Scores:
        """Scores of each row's answer: of its sampled tokens, or of its text."""
        ...


@dataclass(frozen=True)
class Judges:
    """The reward models of a policy."""

    helpfulness: RewardModel
    safety: RewardModel | None

    def digest(self) -> str:
        """Identifies the models that a combined score comes from."""
        return "+".join(m.digest[:16] for m in (self.helpfulness, self.safety) if m is not None)

    def score(
        self, prompts: Sequence[EncodedPrompt], rows: Rows, answers: Sequence[Answered]
    ) -> Scores:
        """`score_answers` of the rows."""
        return score_answers(self, rows, np.array([p.safety for p in prompts]))


def open_judges(
    config: RolloutConfig, tokenizer: Tokenizer, *, block: int, base: Base | None = None
) -> Judges:
    """The reward models that an experiment names. Raises InputError if one does not fit."""

    def read(path: str) -> RewardModel:
        return open_reward_model(path, tokenizer, seq_len=config.seq_len, block=block, base=base)

    assert config.helpfulness is not None, "the experiment requires it"
    return Judges(read(config.helpfulness), None if config.safety is None else read(config.safety))


def score_answers(judges: Judges, rows: Rows, is_safety: Bool[np.ndarray, " R"]) -> Scores:
    """Scores of the reward models for the answers that rows end with."""
    helpfulness = judges.helpfulness.scores(rows)
    if judges.safety is None:
        return Scores(helpfulness, helpfulness)
    safety = judges.safety.scores(rows)
    combined = np.asarray(combined_score(*map(jnp.asarray, (safety, helpfulness, is_safety))))
    return Scores(combined, helpfulness, safety, is_safety | (safety < SAFETY_THRESHOLD))


def score_metrics(scores: Scores) -> dict[str, float]:
    """The raw scores, of both models where there are two, and how often each of them counted."""
    metrics = {"score/mean": float(scores.combined.mean())}
    if scores.helpfulness is not None:
        metrics |= _spread("score/helpfulness", scores.helpfulness)
    if scores.safety is not None and scores.by_safety is not None:
        metrics |= {
            **_spread("score/safety", scores.safety),
            "score/by_safety": float(scores.by_safety.mean()),
            "score/unsafe": float((scores.safety < SAFETY_THRESHOLD).mean()),
        }
    return metrics


def _spread(name: str, scores: Float[np.ndarray, " R"]) -> dict[str, float]:
    low, high = np.percentile(scores, (5, 95))
    return {name: float(scores.mean()), f"{name}_p5": float(low), f"{name}_p95": float(high)}
