"""Log-probabilities of continuations after contexts, each context computed once.

Contexts are put into a cache a few at a time, as generation does; the cache of each is then copied
into a row for each of its continuations, which are computed in one block of positions. So four
choices after five examples cost little more than one. Shapes are few: rows are a fixed number,
positions of a cache and of a block are rounded up.
"""

import itertools
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from llama_jax.config import ModelConfig, require
from llama_jax.infer.decode_loop import (
    CHUNKS,
    MIN_POSITIONS,
    check_prompts,
    new_state,
    power_of_two,
    prefill,
    round_positions,
)
from llama_jax.model.cache import decode, inference_config
from llama_jax.model.layer import Cache
from llama_jax.model.matrix import dense
from llama_jax.ops.loss import chunk_length
from llama_jax.ops.token_logprobs import token_logprobs
from llama_jax.parallel.arrays import everywhere
from llama_jax.parallel.rules import num_shards

MIN_BLOCK = 4
"""Positions of the smallest block; larger ones are powers of two."""


class Pair(NamedTuple):
    """Token ids of a context and its continuation, at least one each."""

    context: Sequence[int]
    continuation: Sequence[int]


class Scored(NamedTuple):
    """Scores of the tokens of one continuation."""

    logp: Float[np.ndarray, " n"]
    """Nats."""
    best: Bool[np.ndarray, " n"]
    """Whether each is the most likely one at its place."""


def score_pairs(
    w: dict[str, Any], pairs: Sequence[Pair], *, config: ModelConfig, rows: int
) -> Iterator[tuple[int, Scored]]:
    """Scores of each pair with its number, as soon as they are known; the longest pairs come first.

    Args:
      w: the result of `prepare` or `gather` for the parameters.
      rows: contexts, and continuations, that are computed together; rounded up to what the mesh in
        context splits rows over.

    Raises:
      InputError: a pair is empty, longer than the context, or holds an id out of range.
    """
    check_prompts([p.context for p in pairs], config)
    check_prompts([p.continuation for p in pairs], config)
    for number, pair in enumerate(pairs):
        length = len(pair.context) + len(pair.continuation)
        require(
            length <= config.max_seq_len + 1,
            f"pair {number} has {length} tokens, more than the context of {config.max_seq_len}",
        )
    shards = num_shards("batch")
    B = -(-rows // shards) * shards
    for group in _groups(pairs, B):
        yield from _score_group(w, pairs, group, B, config)


def _groups(pairs: Sequence[Pair], size: int) -> Iterator[list[list[int]]]:
    """Up to `size` contexts of about one length at a time: the numbers of the pairs of each."""
    same: dict[tuple[int, ...], list[int]] = {}
    for number, pair in enumerate(pairs):
        same.setdefault(tuple(pair.context), []).append(number)
    longest = sorted(same, key=lambda context: (-len(context), same[context][0]))
    for contexts in itertools.batched(longest, size):
        yield [same[context] for context in contexts]


def _score_group(
    w: dict[str, Any],
    pairs: Sequence[Pair],
    group: Sequence[Sequence[int]],
    B: int,
    config: ModelConfig,
) -> Iterator[tuple[int, Scored]]:
    contexts = [pairs[numbers[0]].context for numbers in group]
    wanted = [(row, number) for row, numbers in enumerate(group) for number in numbers]
    wanted.sort(key=lambda pair: len(pairs[pair[1]].continuation))
    block = max(MIN_BLOCK, power_of_two(max(len(pairs[n].continuation) for _, n in wanted)))
    S = _positions(max(len(context) for context in contexts) - 1 + block)
    chunk = max(c for c in CHUNKS if S % c == 0)
    source = new_state(contexts, [len(c) for c in contexts], config=config, B=B, S=S)
    source = prefill(w, source, config=config, chunk=chunk)
    for chosen in itertools.batched(wanted, B):
        longest = max(len(pairs[n].continuation) for _, n in chosen)
        T = max(MIN_BLOCK, power_of_two(longest))
        rows, start = np.zeros(B, np.int32), np.zeros(B, np.int32)
        tokens, targets = np.zeros((B, T), np.int32), np.zeros((B, T), np.int32)
        for b, (row, number) in enumerate(chosen):
            context, continuation = pairs[number]
            rows[b], start[b] = row, len(context) - 1
            tokens[b, : len(continuation)] = [context[-1], *continuation[:-1]]
            targets[b, : len(continuation)] = continuation
        placed = [everywhere(array) for array in (rows, start, tokens, targets)]
        logp, best = jax.device_get(_score(w, source.cache, *placed, config=config))
        for b, (_, number) in enumerate(chosen):
            n = len(pairs[number].continuation)
            yield number, Scored(logp[b, :n], best[b, :n])


def _positions(needed: int) -> int:
    """Of a cache that holds so many: whole chunks of a prefill, of few different sizes."""
    largest = CHUNKS[-1]
    if needed <= largest:
        return max(MIN_POSITIONS, power_of_two(needed))
    return -(-round_positions(needed) // largest) * largest


@partial(jax.jit, static_argnames="config")
def _score(
    w: dict[str, Any],
    cache: list[Cache],
    rows: Int[Array, " B"],
    start: Int[Array, " B"],
    tokens: Int[Array, "B T"],
    targets: Int[Array, "B T"],
    *,
    config: ModelConfig,
) -> tuple[Float[Array, "B T"], Bool[Array, "B T"]]:
    """Log-probability of each target after its row of the cache and the tokens up to there."""
    cfg = inference_config(config)
    copied = jax.tree.map(lambda a: a[rows], cache)
    x, _ = decode(w, tokens, copied, start, config=cfg)
    B, T = tokens.shape
    chunk, head = chunk_length(B, T, config.vocab_size), dense(w["head"], cfg.dtype)
    logp, _, best = token_logprobs(
        x.astype(head.dtype), head, targets, temperature=1.0, chunk=chunk
    )
    return logp, logp >= best
