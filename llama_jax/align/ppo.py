"""Proximal policy optimisation with two reward models (Llama 2, section 3.2.3).

Policy and value model are updated on each minibatch. The value model starts from the helpfulness
model and predicts its scores on the scale that they are whitened to. With --lora.rank, both of
them, the reference and the reward models are adapters of one frozen base.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from llama_jax.align.experience import make_experience, next_scale
from llama_jax.align.iterations import Metrics, PolicySummary, run
from llama_jax.align.limits import check_value
from llama_jax.align.losses import ScoreScale
from llama_jax.align.policy_objectives import Policy, Value
from llama_jax.align.rewards import Judges, Scores, open_judges
from llama_jax.align.scores import SMALLEST_SPREAD
from llama_jax.align.trainer import Trainer, read_source
from llama_jax.config import ModelConfig, require
from llama_jax.config_align import PpoConfig
from llama_jax.data.tokenizer import Tokenizer
from llama_jax.model.heads import HEAD, rescale_head
from llama_jax.models import Opened
from llama_jax.train.objective import Objective
from llama_jax.train.optimizer import make_optimizer
from llama_jax.train.state import select, trained_table


def ppo(config: PpoConfig) -> PolicySummary:
    """Train, or resume; see `iterations.run`."""
    return run(config, Ppo)


def objectives(
    config: PpoConfig, value: ModelConfig
) -> tuple[dict[str, Objective], dict[str, optax.GradientTransformation]]:
    """The objectives of `policy` and `value`, and their optimizers over all updates of the run."""
    found: dict[str, Objective] = {
        "policy": Policy(config.model, config.clip, config.temperature),
        "value": Value(value, config.value_clip),
    }
    settings = {"policy": config.optimizer, "value": config.value_optimizer}
    tx = {k: make_optimizer(settings[k], trained_table(found[k]), config.updates) for k in found}
    return found, tx


class Ppo:
    """A `Learner`: policy and value model, the reference, and two or three reward models."""

    def __init__(self, config: PpoConfig, tokenizer: Tokenizer, source: Opened, mesh: Mesh):
        block, adapts = config.minibatch // config.accumulate, bool(config.lora.rank)
        self.config = config
        base = read_source(config, source, mesh)
        self.rewards: Judges = open_judges(
            config, tokenizer, block=block, base=base if adapts else None
        )
        like, score = config.model, self.rewards.helpfulness.scorer.config
        require(
            not adapts or score.lora is not None,
            f"helpfulness {config.helpfulness} is not an adapter of init_from "
            f"{config.init_from} in {like.param_dtype}, from which the value starts with "
            f"lora.rank={config.lora.rank}: train it with llama-jax reward --lora.rank N "
            "from that model",
        )
        value = dataclasses.replace(
            score, dtype=like.dtype, param_dtype=like.param_dtype, remat=like.remat,
            attention=like.attention,
        )  # fmt: skip
        self.trainer = Trainer(config, *objectives(config, value), mesh, base)
        self.reference = self.trainer.reference
        scalar: Any = jax.ShapeDtypeStruct((), np.float32)
        self.scale = ScoreScale(scalar, scalar, scalar)

    @property
    def scale(self) -> ScoreScale:
        """The running scale of the scores, which checkpoints hold."""
        return self.trainer.extra["scale"]

    @scale.setter
    def scale(self, scale: ScoreScale) -> None:
        self.trainer.extra["scale"] = scale

    def begin(self) -> None:
        """Reads the parameters of the reference and of the helpfulness model, or only their
        adapters where adapters are trained."""
        models = {
            "policy": self.reference.params,
            "value": self.rewards.helpfulness.scorer.params,
        }
        objectives = self.trainer.objectives
        self.trainer.begin(**{k: select(params, objectives[k]) for k, params in models.items()})
        nothing: Any = np.zeros((), np.float32)  # on the host, as scores are
        self.scale = ScoreScale(nothing, nothing, nothing)

    def experience(
        self, number: int, rows: Mapping[str, np.ndarray], scores: Scores, stopped: np.ndarray
    ) -> tuple[dict[str, np.ndarray], Metrics]:
        """See `make_experience`; whitened by the scale of all scores so far."""
        self.scale = next_scale(self.config, self.scale, scores.combined)
        if number == 0:
            self._rescale_value()
        return make_experience(
            self.config,
            rows=rows,
            scores=scores,
            scale=self.scale,
            stopped=stopped,
            policy=self.trainer.scorer("policy"),
            reference=self.reference,
            value=self.trainer.scorer("value"),
        )

    def _rescale_value(self) -> None:
        """Let the value start on the scale of whitened scores, not of raw ones."""
        state, sigma = self.trainer.states["value"], float(np.sqrt(self.scale.variance))
        # Scores without spread are whitened to 0; their head is only centred.
        sigma = sigma if sigma > SMALLEST_SPREAD else 1.0
        head = rescale_head({k: state.params[k] for k in HEAD}, float(self.scale.mean), sigma)
        self.trainer.states["value"] = dataclasses.replace(state, params=state.params | head)

    def update(self, number: int, rows: Mapping[str, np.ndarray]) -> Metrics:
        """Updates the value model once, and the policy once unless the value model is still warming
        up."""
        metrics = self.trainer.update("value", rows)
        if number >= self.config.value_warmup:
            metrics |= self.trainer.update("policy", rows)
        return metrics

    def check(self, lines: Sequence[Mapping[str, int | float]]) -> None:
        """Raise TrainingError if the value model explains nothing."""
        check_value(self.config, lines)
