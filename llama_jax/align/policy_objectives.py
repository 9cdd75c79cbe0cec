"""Objectives of policy and value model: PPO (Schulman et al. 2017), GRPO (Shao et al. 2024).

Index t of every array belongs to the choice of token t+1; `answer` marks those that the policy
chose, EOS included. Means are over the chosen tokens of the whole minibatch.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from llama_jax.align.logprobs import TokenScores, batch_logprobs, next_tokens
from llama_jax.align.losses import (
    kl_terms,
    policy_clipped,
    policy_terms,
    value_clipped,
    value_terms,
)
from llama_jax.config import ModelConfig
from llama_jax.model.heads import apply_head
from llama_jax.train.objective import Batch, Forward, Mean


@dataclass(frozen=True)
class _OverAnswers:
    """A mean over the tokens of answers. A batch holds tokens, positions, segment_ids int32, answer
    bool and the floats of the class, each [B,T]."""

    model: ModelConfig

    def trains(self, name: str) -> bool:
        """Everything."""
        return True

    def abstract_batch(self, batch_size: int, seq_len: int) -> dict[str, jax.ShapeDtypeStruct]:
        """As the class says."""
        dtypes = {
            **dict.fromkeys(("tokens", "positions", "segment_ids"), jnp.int32),
            "answer": jnp.bool_,
            **dict.fromkeys(self.floats(), jnp.float32),
        }
        return {k: jax.ShapeDtypeStruct((batch_size, seq_len), d) for k, d in dtypes.items()}

    def floats(self) -> tuple[str, ...]:
        """Names of the float32 arrays of a batch."""
        raise NotImplementedError

    def weights(self, batch: Batch) -> Float[Array, ""]:
        """The number of chosen tokens."""
        return jnp.maximum(jnp.sum(batch["answer"], dtype=jnp.float32), 1)

    def loss(self, forward: Forward, batch: Batch, weights: Float[Array, ""]):
        """The share of the mean loss, and what `terms` reports."""
        means = self.terms(forward, batch)
        return means["loss"].total / weights, {k: m for k, m in means.items() if k != "loss"}

    def examine(self, forward: Forward, batch: Batch) -> dict[str, Mean]:
        """The same averages, without a step."""
        return self.terms(forward, batch)

    def terms(self, forward: Forward, batch: Batch) -> dict[str, Mean]:
        """The loss and what else is averaged over the chosen tokens."""
        raise NotImplementedError


@dataclass(frozen=True)
class Policy(_OverAnswers):
    """The clipped surrogate of the policy gradient."""

    clip: float
    temperature: float

    def floats(self) -> tuple[str, ...]:
        """Log-probabilities at sampling time, and advantages."""
        return ("old_logp", "advantages")

    def terms(self, forward: Forward, batch: Batch) -> dict[str, Mean]:
        """loss, clipped (share of tokens), ratio and its variance about 1, approx_kl to the
        sampling policy, entropy."""
        return self._means(self._read(forward, batch), batch)

    def _read(self, forward: Forward, batch: Batch) -> TokenScores:
        targets = next_tokens(batch["tokens"])
        return batch_logprobs(forward, batch, targets, cfg=self.model, temperature=self.temperature)

    def _means(self, found: TokenScores, batch: Batch) -> dict[str, Mean]:
        answer, old = batch["answer"], batch["old_logp"]
        arguments = (found.logp, old, batch["advantages"], answer)
        apart = jnp.where(answer, found.logp - old, 0.0)
        return {
            "loss": Mean.over(policy_terms(*arguments, clip=self.clip), answer),
            "clipped": Mean.over(policy_clipped(*arguments, clip=self.clip), answer),
            "ratio": Mean.over(jnp.exp(apart), answer),
            "ratio_variance": Mean.over(jnp.square(jnp.expm1(apart)), answer),
            "approx_kl": Mean.over(jnp.expm1(apart) - apart, answer),
            "entropy": Mean.over(found.entropy, answer),
        }


@dataclass(frozen=True)
class GroupedPolicy(Policy):
    """The clipped surrogate plus the KL divergence from the reference."""

    beta: float

    def floats(self) -> tuple[str, ...]:
        """Those of `Policy`, and the reference's log-probabilities."""
        return (*super().floats(), "ref_logp")

    def terms(self, forward: Forward, batch: Batch) -> dict[str, Mean]:
        """Those of `Policy`; beta times kl, in nats per token, is added to the loss."""
        found = self._read(forward, batch)
        means, answer = self._means(found, batch), batch["answer"]
        terms = kl_terms(found.logp, batch["old_logp"], batch["ref_logp"], answer)
        kl, loss = Mean.over(terms, answer), means["loss"]
        return means | {"loss": Mean(loss.total + self.beta * kl.total, loss.count), "kl": kl}


@dataclass(frozen=True)
class Value(_OverAnswers):
    """The clipped squared error of the value."""

    clip: float | None

    def floats(self) -> tuple[str, ...]:
        """Values at sampling time, and returns."""
        return ("old_values", "returns")

    def terms(self, forward: Forward, batch: Batch) -> dict[str, Mean]:
        """loss and clipped (share of tokens)."""
        x, head = forward(batch["tokens"], batch["positions"], batch["segment_ids"])
        answer = batch["answer"]
        arguments = (apply_head(head, x), batch["old_values"], batch["returns"], answer)
        return {
            "loss": Mean.over(value_terms(*arguments, clip=self.clip), answer),
            "clipped": Mean.over(value_clipped(*arguments, clip=self.clip), answer),
        }
