"""Settings of the alignment stages: those of pretraining, and a few more for each stage.

An alignment experiment is a Python file with `CONFIG = SftConfig(...)`, or one of the other classes
here. What they inherit from `TrainConfig` keeps its meaning; `data.dataset` names conversations.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from llama_jax.config import OptimizerConfig, TrainConfig, require


@dataclass(frozen=True, kw_only=True)
class SftConfig(TrainConfig):
    """Supervised fine-tuning on the answers of dialogues (Llama 2, section 3.1)."""

    stage: ClassVar[str] = "sft"


@dataclass(frozen=True, kw_only=True)
class PairsConfig(TrainConfig):
    """Settings shared by the stages that learn from pairs of answers. batch_size counts rows:
    pairs, unless several share a row."""

    pairs_per_row: int = 1
    """Maximum number of pairs that share two rows of seq_len tokens, one of chosen and one of
    rejected answers. With long rows and short answers this avoids padding; a batch then holds as
    many pairs as fit."""

    def __post_init__(self):
        super().__post_init__()
        require(self.pairs_per_row > 0, f"pairs_per_row={self.pairs_per_row} must be positive")


@dataclass(frozen=True, kw_only=True)
class RewardConfig(PairsConfig):
    """A reward model on pairs of answers (Llama 2, section 3.2.2)."""

    stage: ClassVar[str] = "reward"
    margin: Literal["none", "small", "large"] = "small"
    """Margin between the scores of a pair, by its rating (Table 27): none, up to 1, or up to 3. A
    margin in the data takes precedence."""
    safety_weight: float = 0.0
    """Weight of the auxiliary loss that takes the score as the log-odds of an answer being safe, on
    labelled answers; it gives the safety reward model its scale. 0 for helpfulness."""
    token_weight: float = 0.0
    """Weight of the ranking loss at every token after the answers of a pair diverge, as Cobbe et
    al. (2021) train verifiers: faults are learned where they occur, in fewer steps. 0 as in the
    paper, which scores only the end."""
    half: Literal["all", "first", "second"] = "all"
    """Train on one half of the conversations only: two models on different halves show whether a
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
class DpoConfig(PairsConfig):
    """Direct preference optimisation (Rafailov et al. 2023) on pairs of answers, without a reward
    model. init_from is the policy to start from, and the reference."""

    stage: ClassVar[str] = "dpo"
    init_from: str
    beta: float = 0.1
    """Cost of leaving the reference: reward per nat of log-probability."""
    loss: Literal["sigmoid", "ipo"] = "sigmoid"
    """-log sigmoid of the difference in reward, or the squared error of IPO (Azar et al. 2024)."""
    label_smoothing: float = 0.0
    """Probability that a pair's answers were swapped (conservative DPO); not for ipo."""
    by_length: bool = False
    """Use the mean log-probability of an answer's tokens instead of their sum."""

    def __post_init__(self):
        super().__post_init__()
        require(self.init_from, "init_from is empty: name the model to start from")
        require(
            self.model.head == "language",
            f"model.head={self.model.head} must be language: a policy writes answers",
        )
        require(0 < self.beta < float("inf"), f"beta={self.beta} must be positive")
        require(
            0 <= self.label_smoothing < 0.5,
            f"label_smoothing={self.label_smoothing} must be at least 0 and below 0.5",
        )
        require(
            self.loss == "sigmoid" or not self.label_smoothing,
            f"label_smoothing={self.label_smoothing} does not go with loss={self.loss}: use 0",
        )


@dataclass(frozen=True, kw_only=True)
class RolloutConfig(TrainConfig):
    """Settings shared by the stages that sample answers and score them."""

    helpfulness: str | None = None
    """Run folder of the reward model for helpfulness."""
    safety: str | None = None
    """Run folder of the reward model for safety; None if only helpfulness counts."""
    max_new_tokens: int
    """Maximum length of an answer in tokens; seq_len must hold it and the longest prompt."""
    temperature: float = 1.0
    """Sampling temperature of the answers."""
    wave_rows: int = 0
    """Answers that are drawn at once; 0 for as many as the free memory holds, 64 on a CPU."""

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
        require(self.init_from, "init_from is empty: name the model to start from")


@dataclass(frozen=True, kw_only=True)
class PolicyConfig(RolloutConfig):
    """Settings shared by the algorithms of reinforcement learning.

    `steps` counts iterations: batch_size answers, and one update for each minibatch of them.
    init_from is the initial policy and the reference that it should stay close to; `optimizer` is
    the policy's. With `lora.rank` all models are adapters of init_from, whose weights are held
    once: the policy, the value, and the reward models that were trained as adapters of it.
    """

    init_from: str
    minibatch: int = 64
    """Answers per update."""
    clip: float = 0.2
    """Limit of the ratio of new to old probability: at most this far from 1."""
    eval_every: int = 10
    """Iterations between evaluations on held-out prompts, and one at the end; 0 for never."""
    heldout: str | None = None
    """Run folder of a reward model trained on other pairs: its scores on held-out prompts can end
    the run early."""
    heldout_prompts: int = 256
    """Number of prompts that are never trained on and answered every `eval_every` iterations: a
    sample of the data sets by their shares."""
    patience: int = 2
    """Evaluations without a better mean held-out score before the run ends; 0 for never."""
    max_kl: float = 0.0
    """Mean KL of an answer from the reference in nats above which the run ends; 0 for no limit."""
    max_truncated: float = 0.2
    """Share of answers that do not end within max_new_tokens above which the run ends, unless it
    was as large at first; 0 for no limit."""
    max_drift: float = 0.05
    """Mean distance in nats of the sampler's log-probabilities from the trainer's, above which the
    run fails: it would learn from answers of a different model."""
    max_ratio_error: float = 1e-5
    """Maximum distance from 1 of the mean ratio of new to old probability before the first update
    of an iteration; beyond it the run fails."""

    def __post_init__(self):
        super().__post_init__()
        require(
            self.batch_size % self.minibatch == 0,
            f"batch_size={self.batch_size} must be divisible by minibatch={self.minibatch}",
        )
        require(
            self.minibatch % self.accumulate == 0,
            f"minibatch={self.minibatch} must be divisible by accumulate={self.accumulate}",
        )
        require(
            self.lora.base == "dense",
            f"lora.base={self.lora.base} is for train, sft, reward and dpo; {self.stage} keeps the "
            "base in model.param_dtype: leave it out",
        )
        limits = ("patience", "max_kl", "max_truncated", "max_drift", "max_ratio_error")
        for name in ("heldout_prompts", *limits):
            value = getattr(self, name)
            require(value >= 0, f"{name}={value} must not be negative")
        require(
            not self.checkpoint.weights_only,
            f"checkpoint.weights_only=True does not go with {self.stage}, which resumes with all "
            "of its state: leave it out",
        )
        require(0 < self.clip <= 1, f"clip={self.clip} is out of range: use a value in (0, 1]")

    @property
    def updates(self) -> int:
        """Number of updates in the whole run, one per minibatch."""
        return self.steps * (self.batch_size // self.minibatch)

    @property
    def answers(self) -> int:
        """Answers to each prompt of an iteration."""
        return 1


@dataclass(frozen=True, kw_only=True)
class PpoConfig(PolicyConfig):
    """Reinforcement learning with PPO (Llama 2, section 3.2.3): one answer to each of batch_size
    prompts per iteration."""

    stage: ClassVar[str] = "ppo"
    helpfulness: str
    value_optimizer: OptimizerConfig
    """Of the value model, which starts from the helpfulness model with its head rescaled."""
    beta: float = 0.01
    """Weight of the KL divergence from the reference in the reward: standard deviations of the
    score per nat."""
    value_clip: float | None = 0.2
    """Limit of a value's distance from the old one; None for no limit."""
    gamma: float = 1.0
    """Discount of rewards."""
    lam: float = 0.95
    """lambda of generalised advantage estimation."""
    score_scale: Literal["batch", "running"] = "batch"
    """Scores that determine the scale for whitening: those of the iteration, or all so far."""
    truncated: Literal["penalty", "keep"] = "penalty"
    """Whether a truncated answer loses one standard deviation of the score, or nothing."""
    value_warmup: int = 0
    """Iterations at the beginning that train only the value model."""
    value_patience: int = 20
    """Consecutive iterations with an explained variance of the value below -1 after which the run
    fails; 0 for no limit."""

    def __post_init__(self):
        super().__post_init__()
        for name in ("beta", "value_warmup", "value_patience"):
            value = getattr(self, name)
            require(value >= 0, f"{name}={value} must not be negative")
        for name in ("gamma", "lam"):
            value = getattr(self, name)
            require(0 < value <= 1, f"{name}={value} is out of range: use a value in (0, 1]")
        require(self.helpfulness, "helpfulness is empty: name a reward model")


@dataclass(frozen=True, kw_only=True)
class GrpoConfig(PolicyConfig):
    """Reinforcement learning with GRPO (Shao et al. 2024): `group` answers to each of batch_size /
    group prompts per iteration, compared with each other and without a value model.

    Rewards come from reward models (`helpfulness`, `safety`) or from a function (`reward`).
    """

    stage: ClassVar[str] = "grpo"
    group: int = 8
    """N: answers to each prompt."""
    reward: str | None = None
    """Python function that scores answers: `module:function`, `FILE.py:function`, or `judge` for
    the rules of the tales. (prompts, answers) -> a number for each answer; see
    `llama_jax.align.reward_functions`."""
    beta: float = 0.01
    """Weight of the KL divergence from the reference in the loss, per token; 0 for none."""
    truncated: Literal["keep", "mask"] = "keep"
    """Whether a truncated answer is learned from by its reward, or not at all."""

    def __post_init__(self):
        super().__post_init__()
        require(
            self.group > 1,
            f"group={self.group} must be 2 or more: an answer is compared with the others",
        )
        require(
            self.batch_size % self.group == 0,
            f"batch_size={self.batch_size} must be divisible by group={self.group}",
        )
        require(0 <= self.beta < float("inf"), f"beta={self.beta} must not be negative")
        require(
            bool(self.reward) != bool(self.helpfulness),
            "give either reward, a function, or helpfulness, a reward model"
            + (f", not both ({self.reward}, {self.helpfulness})" if self.reward else ""),
        )
        require(
            self.helpfulness or not self.safety,
            f"safety={self.safety} needs helpfulness beside it: reward models do not mix with a "
            "function",
        )

    @property
    def answers(self) -> int:
        """Answers to each prompt of an iteration."""
        return self.group


@dataclass(frozen=True, kw_only=True)
class RejectionConfig(RolloutConfig):
    """Rejection sampling with fine-tuning, in rounds (Llama 2, section 3.2.3).

    Each round samples answers to prompts, keeps the best one of each prompt, and makes `steps`
    updates on those. init_from is the model that the first round starts from.
    """

    stage: ClassVar[str] = "rejection"
    init_from: str
    helpfulness: str
    rounds: int = 4
    """Number of rounds of sampling and fine-tuning."""
    samples: int = 32
    """N: answers to each prompt in a round."""
    prompts: int = 0
    """Prompts of a round; 0 for all of the training split."""
    temperatures: tuple[float, ...] = ()
    """Candidate temperatures at the beginning of each round; the one with the best mean score of
    the best of N answers to held-out prompts is used. If empty, it is always `temperature`."""
    temperature_prompts: int = 64
    """Number of held-out prompts on which the temperature is chosen."""
    bank: Literal["all", "last"] = "all"
    """Answers among which a winner is chosen: those of all rounds, rescored if the reward models
    changed, or those of the last."""

    def __post_init__(self):
        super().__post_init__()
        require(self.helpfulness, "helpfulness is empty: name a reward model")
        for name in ("rounds", "samples", "temperature_prompts"):
            value = getattr(self, name)
            require(value > 0, f"{name}={value} must be positive")
        require(self.prompts >= 0, f"prompts={self.prompts} must not be negative")
        bad = [t for t in self.temperatures if not 0 < t < float("inf")]
        require(not bad, f"temperatures={bad} must be positive: greedy answers are all the same")


@dataclass(frozen=True, kw_only=True)
class GattConfig(SftConfig):
    """Ghost attention: fine-tuning so that an instruction holds for a whole conversation (Llama 2,
    section 3.3), on answers that a model gave with the instruction in every turn."""

    stage: ClassVar[str] = "gatt"
    init_from: str
    answers_from: str | None = None
    """The model that answers, such as an earlier stage; None for init_from."""
    dialogues: int
    """Number of conversations to generate."""
    turns: int = 6
    """User turns of a conversation; fewer where the data has fewer or the context ends."""
    context_turns: int = 0
    """Number of newest turns that the model sees when it answers, 0 for all. Each carries the
    instruction, so a few are enough, and better after fine-tuning on short conversations."""
    samples: int = 1
    """Maximum number of answers drawn to a question: the first that is complete and keeps the
    instruction is used, or the last if none does."""
    replay: str | None = None
    """Conversations to mix in, NAME=WEIGHT as in data.dataset, beside the generated ones of weight
    1: they keep what the model knows besides, such as when to refuse."""
    max_new_tokens: int = 64
    """Maximum length of an answer in tokens."""
    temperature: float = 1.0
    """Sampling temperature of the answers."""
    wave_rows: int = 0
    """Answers that are drawn at once; 0 for as many as the free memory holds, 64 on a CPU."""

    def __post_init__(self):
        super().__post_init__()
        require(self.init_from, "init_from is empty: name the model to start from")
        for name in ("dialogues", "samples", "max_new_tokens"):
            value = getattr(self, name)
            require(value > 0, f"{name}={value} must be positive")
        for name in ("wave_rows", "context_turns", "temperature"):
            value = getattr(self, name)
            require(value >= 0, f"{name}={value} must not be negative")
        require(self.answers_from != "", "answers_from is empty: name a model, or leave it out")
        drawn_anew = self.samples == 1 or self.temperature > 0
        require(drawn_anew, f"samples={self.samples} are one answer at temperature=0: raise it")
        require(self.turns > 1, f"turns={self.turns} must be 2 or more")


@dataclass(frozen=True, kw_only=True)
class DistillConfig(SftConfig):
    """Context distillation for safety: the model learns to give without a preprompt those answers
    under one that the safety model scores higher than its own (Llama 2, section 4.2.4)."""

    stage: ClassVar[str] = "distill-context"
    init_from: str
    safety: str
    """Run folder of the reward model for safety."""
    preprompts: tuple[str, ...]
    """System texts under which answers are safer; each prompt gets one of them."""
    max_new_tokens: int = 128
    """Maximum length of an answer in tokens."""
    temperature: float = 1.0
    """Sampling temperature of the answers."""
    wave_rows: int = 0
    """Answers that are drawn at once; 0 for as many as the free memory holds, 64 on a CPU."""

    def __post_init__(self):
        super().__post_init__()
        require(self.init_from, "init_from is empty: name the model to start from")
        require(self.preprompts, "preprompts is empty: give at least one system text")
        require(self.max_new_tokens > 0, f"max_new_tokens={self.max_new_tokens} must be positive")
        require(self.wave_rows >= 0, f"wave_rows={self.wave_rows} must not be negative")
        require(self.temperature >= 0, f"temperature={self.temperature} must not be negative")


ALIGNMENT = (SftConfig, RewardConfig, DpoConfig, RejectionConfig, PpoConfig, GrpoConfig,
             GattConfig, DistillConfig)  # fmt: skip
"""The experiment class of each command."""
