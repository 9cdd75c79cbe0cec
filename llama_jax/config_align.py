"""The settings of the alignment stages: experiments like those of pretraining, and a few more each.

An alignment experiment is a Python file with `CONFIG = SftConfig(...)`, or one of the other classes
here. What they inherit from `TrainConfig` keeps its meaning; `data.dataset` names conversations.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from llama_jax.config import TrainConfig, require


@dataclass(frozen=True, kw_only=True)
class SftConfig(TrainConfig):
    """Supervised fine-tuning on the answers of dialogues (Llama 2, section 3.1)."""

    stage: ClassVar[str] = "sft"


@dataclass(frozen=True, kw_only=True)
class RewardConfig(TrainConfig):
    """A reward model on pairs of answers (Llama 2, section 3.2.2); batch_size counts pairs."""

    stage: ClassVar[str] = "reward"
    margin: Literal["none", "small", "large"] = "small"
    """How far apart the scores of a pair shall lie by its rating (Table 27): not at all, up to 1,
    or up to 3. A margin that a row gives itself counts in its place."""
    safety_weight: float = 0.0
    """Weight of the loss that takes the score for the log-odds of an answer being safe, on answers
    with a label: how the safety reward model gets a scale. 0 for helpfulness."""
    half: Literal["all", "first", "second"] = "all"
    """Train on one half of the conversations only: two models on different halves tell whether a
    policy learned what people prefer or what one model scores."""

    def __post_init__(self):
        super().__post_init__()
        require(
            self.model.head == "score",
            f"model.head={self.model.head} must be score for a reward model: "
            'model=replace(..., head="score") in the experiment, or --model.head score',
        )
        require(self.safety_weight >= 0, f"safety_weight={self.safety_weight} is negative")


@dataclass(frozen=True, kw_only=True)
class RolloutConfig(TrainConfig):
    """What the stages that write answers and score them share."""

    helpfulness: str
    """Run folder of the reward model for helpfulness."""
    safety: str | None = None
    """Run folder of the reward model for safety; None where helpfulness alone counts."""
    max_new_tokens: int
    """Longest answer, in tokens; seq_len must hold the longest prompt beside it."""
    temperature: float = 1.0
    """Of the answers."""
    wave_rows: int = 0
    """Answers drawn at once; 0 for as many as the memory that is free holds."""

    def __post_init__(self):
        super().__post_init__()
        require(
            0 < self.max_new_tokens < self.seq_len,
            f"max_new_tokens={self.max_new_tokens} must be positive and below "
            f"seq_len={self.seq_len}, which holds prompt and answer",
        )
        require(
            0 < self.temperature < float("inf"),
            f"temperature={self.temperature} must be positive: greedy answers explore nothing",
        )
        require(self.wave_rows >= 0, f"wave_rows={self.wave_rows} must not be negative")
