"""Generation: continues prompts, token ids in and out, whole or as a stream."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from llama_jax.config import ModelConfig, require
from llama_jax.infer.decode_loop import (
    CHUNKS,
    Rows,
    State,
    advance,
    check_prompts,
    new_rows,
    new_state,
    power_of_two,
    prefill,
    round_positions,
)
from llama_jax.infer.sampling_params import SamplingParams, check_seeds
from llama_jax.model.cache import is_prepared, prepare


def stream_tokens(
    params: dict[str, Any],
    prompts: Sequence[Sequence[int]],
    sampling: SamplingParams,
    *,
    config: ModelConfig,
    seeds: Sequence[int],
    block: int,
) -> Iterator[list[list[int]]]:
    """`generate_tokens` as a stream: each time the next tokens of every row, at most `block`."""
    check_prompts(prompts, config)
    check_seeds(seeds, "seed")
    require(
        len(seeds) == len(prompts), f"{len(prompts)} prompts need as many seeds, not {len(seeds)}"
    )
    if not prompts:
        return
    w = params if is_prepared(params) else prepare(params, config)
    state, rows, chunk = _start(prompts, sampling, config, seeds)
    state = prefill(w, state, config=config, chunk=chunk)
    read = [len(p) for p in prompts]
    B = len(state.length)
    for _ in range(0, sampling.max_new_tokens, block):
        state, _ = advance(w, state, rows, np.int32(block), np.int32(B - 1), config=config)
        tokens, length = np.asarray(state.tokens), np.asarray(state.length)
        new = [tokens[b, n : length[b]].tolist() for b, n in enumerate(read)]
        yield [row[:-1] if row and row[-1] in sampling.stop_ids else row for row in new]
        read = length[: len(prompts)].tolist()
        if not np.any(np.less(length, state.limit)):
            return


def generate_tokens(
    params: dict[str, Any],
    prompts: Sequence[Sequence[int]],
    sampling: SamplingParams,
    *,
    config: ModelConfig,
    seeds: Sequence[int],
) -> list[list[int]]:
    """The continuation of each prompt.

    A row ends before a stop id, after `max_new_tokens` tokens, or at the end of the context
    (`config.max_seq_len` positions, the prompt included). Its tokens depend on its own prompt and
    seed alone, whatever its neighbours (see `decode_loop`).

    Args:
      params: the parameter tree, or the result of `prepare`: callers that generate often keep
        that, which saves a copy of the parameters per call.
      prompts: token ids, at least one each (BOS for an empty text).
      seeds: one for each prompt, 0 to 2^32 - 1.

    Raises:
      InputError: an empty prompt, one longer than the context, an id or seed that is out of range.
    """
    block = max(sampling.max_new_tokens, 1)
    parts = stream_tokens(params, prompts, sampling, config=config, seeds=seeds, block=block)
    return next(parts, [[] for _ in prompts])


def _start(
    prompts: Sequence[Sequence[int]],
    sampling: SamplingParams,
    config: ModelConfig,
    seeds: Sequence[int],
) -> tuple[State, Rows, int]:
    """Buffers that many calls can share a compiled program for, and the chunk of the prefill."""
    B = power_of_two(len(prompts))
    lengths = [len(p) for p in prompts]
    longest = max(lengths)
    chunk = next((c for c in CHUNKS if c >= longest - 1), CHUNKS[-1])
    ends = [min(n + sampling.max_new_tokens, config.max_seq_len) for n in lengths]
    S = round_positions(max(*ends, -(-(longest - 1) // chunk) * chunk))
    # As sample 0 of a prompt in `rollout`: the two draw the same.
    row_seeds = np.zeros((B, 2), np.uint32)
    row_seeds[: len(prompts), 0] = seeds
    state = new_state(prompts, ends, config=config, B=B, S=S)
    return state, new_rows(sampling, row_seeds, config), chunk
