"""A model small enough to be asked for every token's logits."""

from dataclasses import replace
from functools import cache

import jax

from llama_jax.model.llama import apply, init_params
from llama_jax.model.presets import TINY

SMALL = replace(TINY, vocab_size=62, max_seq_len=48)


@cache
def params_of(config):
    """Wide logits: a choice must not hang on the last bit."""
    return jax.tree.map(lambda p: 3 * p, init_params(jax.random.key(1), config))


@cache
def _jitted(config):
    return jax.jit(lambda params, tokens: apply(params, tokens, config=config))


def full(tokens, config=SMALL):
    """Logits [B,T,V] of one forward pass without a cache."""
    return _jitted(config)(params_of(config), tokens)
