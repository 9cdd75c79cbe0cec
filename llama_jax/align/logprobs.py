"""Log-probabilities of a batch's tokens, for policies and reference models.

Index t of every array holds what concerns the choice of token t+1; nothing is shifted anywhere.
"""

from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from llama_jax.align.segments import segment_sums
from llama_jax.config import ModelConfig
from llama_jax.ops.loss import chunk_length
from llama_jax.ops.token_logprobs import token_logprobs
from llama_jax.parallel.fsdp import by_positions, by_rows
from llama_jax.parallel.rules import num_shards
from llama_jax.train.next_token import batch_targets
from llama_jax.train.objective import Batch, Forward


class TokenScores(NamedTuple):
    """Scores of each target under a model, float32 [B,T]."""

    logp: Float[Array, "B T"]
    """Nats."""
    entropy: Float[Array, "B T"]
    """Entropy of the distribution that the target is sampled from, nats."""
    best: Float[Array, "B T"]
    """Log-probability of the most likely token, nats; equals `logp` where that is the target."""


def batch_logprobs(
    forward: Forward,
    batch: Batch,
    targets: Int[Array, "B T"],
    *,
    cfg: ModelConfig,
    temperature: float = 1.0,
) -> TokenScores:
    """Log-probability of targets[b,t] after the tokens up to t, at a temperature."""
    x, head = forward(batch["tokens"], batch["positions"], batch["segment_ids"])

    def score(w, x, targets):
        rows = -(-x.shape[0] // num_shards("batch"))
        chunk = chunk_length(rows, x.shape[1], cfg.vocab_size)
        return token_logprobs(x, w["head"], targets, temperature=temperature, chunk=chunk)

    run = partial(by_positions, score)
    return TokenScores(*by_rows(run, {"head": head}, {"head": ("embed", "vocab")}, x, targets))


def answer_logprobs(
    forward: Forward, rows: Batch, *, cfg: ModelConfig, per_row: int = 1
) -> Float[Array, "R {per_row}"]:
    """Log-probability of the answers of each row, in its segments 1 to K = per_row: the sum over
    the tokens that `loss_mask` marks, EOS included, float32 nats; 0 without any.

    rows: tokens, positions, segment_ids int32 and loss_mask uint8 [R,T].
    """
    targets, mask = batch_targets(rows)
    logp = batch_logprobs(forward, rows, targets, cfg=cfg).logp
    return segment_sums(jnp.where(mask, logp, 0.0), rows["segment_ids"], per_row)


def next_tokens(tokens: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """Token t+1 at index t; the last index is meaningless."""
    return jnp.roll(tokens, -1, axis=1)
