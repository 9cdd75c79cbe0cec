"""Sampled answers as values, the rows that training reads, and their drift from the sampler."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from llama_jax.config import require


class Answer(NamedTuple):
    """One sampled answer."""

    prompt: int
    """Index of its prompt."""
    sample: int
    """Its number among the answers to the prompt."""
    tokens: Int[np.ndarray, " A"]
    """Includes the stop id at the end, if one was sampled."""
    logp: Float[np.ndarray, " A"]
    """Log-probability of each token under the sampling distribution, in nats; at temperature 0,
    under that of temperature 1."""
    finish: Literal["stop", "length"]


@dataclass(frozen=True)
class Samples:
    """n answers to each of P prompts, padded with 0 to M = max_new_tokens."""

    tokens: Int[np.ndarray, "P n M"]
    """Includes the stop id at the end, if one was sampled."""
    logp: Float[np.ndarray, "P n M"]
    """See `Answer.logp`."""
    length: Int[np.ndarray, "P n"]
    stopped: Bool[np.ndarray, "P n"]
    """False if the answer was truncated: at max_new_tokens, or at the end of the context."""

    def answer(self, prompt: int, sample: int) -> Answer:
        """A single answer."""
        at, n = (prompt, sample), self.length[prompt, sample]
        finish = "stop" if self.stopped[at] else "length"
        return Answer(prompt, sample, self.tokens[at][:n], self.logp[at][:n], finish)


class Batch(NamedTuple):
    """Prompts with their answers as rows; index t is for the choice of token t+1, as in the losses.

    R = P n rows, the answers to a prompt one after another.
    """

    tokens: Int[np.ndarray, "R T"]
    valid: Bool[np.ndarray, "R T"]
    """True for tokens; the rest is padding, 0."""
    answer: Bool[np.ndarray, "R T"]
    """True where token t+1 was sampled, including a stop id."""
    logp: Float[np.ndarray, "R T"]
    """Its log-probability at sampling time; 0 elsewhere."""


def batch_rows(prompts: Sequence[Sequence[int]], samples: Samples, seq_len: int) -> Batch:
    """The rows of T = seq_len positions for training.

    Raises InputError if a prompt and its answer take more.
    """
    P, n, _ = samples.tokens.shape
    shape = P * n, seq_len
    out = Batch(np.zeros(shape, np.int32), *(np.zeros(shape, t) for t in (bool, bool, np.float32)))
    for r in range(P * n):
        prompt, (tokens, logp) = prompts[r // n], samples.answer(*divmod(r, n))[2:4]
        start, end = len(prompt), len(prompt) + len(tokens)
        require(
            end <= seq_len,
            f"prompt {r // n} and its answer {r % n} take {end} tokens, more than {seq_len=}",
        )
        out.tokens[r, :end] = *prompt, *tokens
        out.valid[r, :end] = True
        out.answer[r, start - 1 : end - 1] = True
        out.logp[r, start - 1 : end - 1] = logp
    return out


class Drift(NamedTuple):
    """Difference between two log-probabilities of the same tokens, in nats."""

    mean: Float[Array, ""]
    largest: Float[Array, ""]


def drift(
    logp: Float[Array | np.ndarray, "*rows T"],
    sampled: Float[Array | np.ndarray, "*rows T"],
    *,
    mask: Bool[Array | np.ndarray, "*rows T"],
) -> Drift:
    """Mean and largest |logp - sampled| over the mask; 0 where it is empty.

    `logp` comes from the training's forward pass, for tokens sampled with log-probabilities
    `sampled`. Values outside the mask have no influence.
    """
    apart = jnp.where(mask, jnp.abs(logp - sampled), 0.0)
    return Drift(jnp.sum(apart) / jnp.maximum(jnp.sum(mask), 1), jnp.max(apart, initial=0.0))
