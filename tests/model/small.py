"""A model in which no two sizes agree, and rows of packed documents, for the tests of this room."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np

from llama_jax.model.presets import TINY
from llama_jax.train.next_token import NextToken
from llama_jax.train.step import mean_loss_and_gradient

SMALL = replace(TINY, vocab_size=61, d_model=24, d_ff=40)
assert len({*SMALL.__dict__.values()} & {61, 24, 40, 64, 8, 4, 2}) == 7
MULTI_HEAD = replace(SMALL, num_kv_heads=4)


def tokens_of(cfg, B, T, seed=0):
    """Random tokens int32 [B,T]."""
    return jnp.asarray(np.random.default_rng(seed).integers(0, cfg.vocab_size, (B, T)), jnp.int32)


def packed(*rows):
    """Segment ids and positions [B,T] of rows given as document lengths; 0 ends in padding."""
    T = max(map(sum, rows))
    segment_ids, positions = np.zeros((len(rows), T), np.int32), np.zeros((len(rows), T), np.int32)
    for b, lengths in enumerate(rows):
        start = 0
        for document, length in enumerate(lengths, 1):
            segment_ids[b, start : start + length] = document
            positions[b, start : start + length] = np.arange(length)
            start += length
    return jnp.asarray(segment_ids), jnp.asarray(positions)


def loss_and_gradient(params, batch, *, cfg, z_loss=0.0, accumulate=1):
    """Mean next-token loss of a batch and its gradient, as the training step takes them."""
    (loss, _), gradient = mean_loss_and_gradient(
        params, batch, objective=NextToken(cfg, z_loss), accumulate=accumulate
    )
    return loss, gradient
