"""Group relative policy optimisation (GRPO): compares the answers to one prompt with each other.

An answer's advantage is its reward less the mean of its group, over the group's standard deviation
(Shao et al. 2024): there is no value model. A group whose rewards are all equal carries no signal
and is left out of the loss, which is a mean over all other tokens of the minibatch.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import optax
from jax.sharding import Mesh

from llama_jax.align.experience import make_groups
from llama_jax.align.iterations import Metrics, PolicySummary, run
from llama_jax.align.policy_objectives import GroupedPolicy
from llama_jax.align.reward_functions import open_function
from llama_jax.align.rewards import Rewards, Scores, open_judges
from llama_jax.align.trainer import Trainer, read_source
from llama_jax.config_align import GrpoConfig
from llama_jax.data.tokenizer import Tokenizer
from llama_jax.models import Opened
from llama_jax.train.objective import Objective
from llama_jax.train.optimizer import make_optimizer
from llama_jax.train.state import select, trained_table


def grpo(config: GrpoConfig) -> PolicySummary:
    """Train, or resume; see `iterations.run`."""
    return run(config, Grpo)


def objectives(
    config: GrpoConfig,
) -> tuple[dict[str, Objective], dict[str, optax.GradientTransformation]]:
    """The objective of `policy`, and its optimizer over all updates of the run."""
    policy = GroupedPolicy(config.model, config.clip, config.temperature, config.beta)
    tx = make_optimizer(config.optimizer, trained_table(policy), config.updates)
    return {"policy": policy}, {"policy": tx}


class Grpo:
    """A `Learner`: a policy and its reference, scored by reward models or a function."""

    def __init__(self, config: GrpoConfig, tokenizer: Tokenizer, source: Opened, mesh: Mesh):
        self.config = config
        base = read_source(config, source, mesh)
        self.trainer = Trainer(config, *objectives(config), mesh, base)
        self.reference = self.trainer.reference
        shared = base if config.lora.rank else None
        self.rewards: Rewards = (
            open_function(config.reward)
            if config.reward
            else open_judges(config, tokenizer, block=self.reference.block, base=shared)
        )

    def begin(self) -> None:
        """Reads the reference's parameters, or only its adapters where adapters are trained."""
        policy = self.trainer.objectives["policy"]
        self.trainer.begin(policy=select(self.reference.params, policy))

    def experience(
        self, number: int, rows: Mapping[str, np.ndarray], scores: Scores, stopped: np.ndarray
    ) -> tuple[dict[str, np.ndarray], Metrics]:
        """See `make_groups`."""
        return make_groups(
            self.config,
            rows=rows,
            scores=scores,
            stopped=stopped,
            policy=self.trainer.scorer("policy"),
            reference=self.reference,
        )

    def update(self, number: int, rows: Mapping[str, np.ndarray]) -> Metrics:
        """Updates the policy once, unless no group of the minibatch carries a signal."""
        return self.trainer.update("policy", rows) if rows["answer"].any() else {}

    def check(self, lines: Sequence[Mapping[str, int | float]]) -> None:
        """Nothing beyond what is checked of every policy."""
