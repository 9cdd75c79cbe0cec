"""Direct preference optimisation: a policy learns from pairs of answers without a reward model.

The reward is the log-ratio of the policy to the model that it started from, times beta; its
difference within a pair is the log-odds that people prefer the chosen answer (Rafailov et al.
2023). The reference log-probabilities are computed once, before the first step (`reference`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from llama_jax.align.logprobs import answer_logprobs
from llama_jax.align.losses import dpo_loss, implicit_rewards
from llama_jax.align.pairs import (
    Pairs,
    abstract_pairs,
    accuracy_by_rating,
    answer_rows,
    by_pair,
    pairs_of,
    per_row,
)
from llama_jax.align.reference import COLUMN, reference_identity, with_reference
from llama_jax.align.segments import segment_sums
from llama_jax.align.sft import answer_prompts, check_prompts
from llama_jax.config import ModelConfig
from llama_jax.config_align import DpoConfig
from llama_jax.data.chat import JINJA
from llama_jax.data.conversations import prepare_preferences
from llama_jax.data.prepare import Mixture
from llama_jax.data.tokenizer import Tokenizer
from llama_jax.train.loop import Summary, run
from llama_jax.train.next_token import batch_targets
from llama_jax.train.objective import Batch, Forward, Mean
from llama_jax.train.stage import Ask, Stage


def dpo(config: DpoConfig, *, ask: Ask | None = None) -> Summary:
    """Train, or resume; see `train.loop.run`."""
    return run(config, stage, ask)


def stage(config: DpoConfig) -> Stage:
    """Describes the stage: preference pairs with reference log-probabilities; reward metrics,
    samples."""
    identity: dict[str, str] = {}

    def prepare(tokenizer: Tokenizer) -> Mapping[str, Mixture]:
        pairs = prepare_preferences(
            config.data, tokenizer, seq_len=config.seq_len, per_row=config.pairs_per_row
        )
        identity["reference"] = reference_identity(config)
        return with_reference(config, pairs, identity["reference"])

    return Stage(
        name="dpo",
        objective=Preferences(
            config.model,
            config.beta,
            config.loss,
            config.label_smoothing,
            config.by_length,
            config.pairs_per_row,
        ),
        prepare=prepare,
        identity=lambda: identity,
        results=lambda means, counts, observed: {k: v for k, v in means.items() if counts[k]},
        sample=partial(answer_prompts, config),
        check=partial(check_prompts, config),
        template=JINJA,
    )


@dataclass(frozen=True)
class Preferences:
    """`dpo_loss`, averaged over pairs.

    A batch holds the arrays of `align.pairs`, and reference float32 [B,K,2]: the log-probability
    of both answers by the reference, summed over their tokens, EOS included.
    """

    model: ModelConfig
    beta: float
    kind: Literal["sigmoid", "ipo"] = "sigmoid"
    label_smoothing: float = 0.0
    by_length: bool = False
    """Whether log-probabilities are divided by the number of tokens of their answer."""
    per_row: int = 1
    """K: pairs that may share two rows."""

    def trains(self, name: str) -> bool:
        """All parameters are trained."""
        return True

    def abstract_batch(self, batch_size: int, seq_len: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of a batch: those that the class describes."""
        reference = jax.ShapeDtypeStruct((batch_size, self.per_row, 2), jnp.float32)
        return {**abstract_pairs(batch_size, seq_len, self.per_row), COLUMN: reference}

    def weights(self, batch: Batch) -> Float[Array, ""]:
        """The number of pairs."""
        return jnp.maximum(jnp.sum(pairs_of(batch).there, dtype=jnp.float32), 1)

    def loss(
        self, forward: Forward, batch: Batch, weights: Float[Array, ""]
    ) -> tuple[Float[Array, ""], dict[str, Mean]]:
        """This batch's share of the mean loss, and the metrics of `examine` except those by
        rating."""
        means = self._means(forward, batch, pairs_of(batch))[0]
        return means.pop("loss").total / weights, means

    def examine(self, forward: Forward, batch: Batch) -> dict[str, Mean]:
        """loss; reward_chosen, reward_rejected, their margin; accuracy, by rating too: how often it
        is positive; logp_chosen, logp_rejected in nats; kl.

        kl is the mean log-ratio to the reference over both answers, nats: the estimator k1 on the
        data's answers, not on the policy's own, so below 0 where both become less likely.
        """
        pairs = pairs_of(batch)
        means, better = self._means(forward, batch, pairs)
        return means | accuracy_by_rating(better, pairs)

    def _means(
        self, forward: Forward, batch: Batch, pairs: Pairs
    ) -> tuple[dict[str, Mean], Bool[Array, " P"]]:
        """The averages over pairs, and where the chosen answer has the higher reward."""
        rows, K, reference = answer_rows(batch), per_row(batch), batch[COLUMN].reshape(-1, 2)
        logp = by_pair(answer_logprobs(forward, rows, cfg=self.model, per_row=K))
        if self.by_length:
            counted = batch_targets(rows)[1].astype(jnp.float32)
            lengths = by_pair(segment_sums(counted, rows["segment_ids"], K))
            logp, reference = (a / jnp.maximum(lengths, 1) for a in (logp, reference))
        losses = dpo_loss(
            *(a[:, side] for a in (logp, reference) for side in (0, 1)),
            beta=self.beta,
            label_smoothing=self.label_smoothing,
            kind=self.kind,
        )
        chosen, rejected = (
            implicit_rewards(logp[:, side], reference[:, side], beta=self.beta) for side in (0, 1)
        )
        found = {
            "loss": losses,
            "reward_chosen": chosen,
            "reward_rejected": rejected,
            "margin": chosen - rejected,
            "accuracy": chosen > rejected,
            "logp_chosen": logp[:, 0],
            "logp_rejected": logp[:, 1],
            "kl": jnp.mean(logp - reference, axis=1),
        }
        return {
            name: Mean.over(values, pairs.there) for name, values in found.items()
        }, chosen > rejected
