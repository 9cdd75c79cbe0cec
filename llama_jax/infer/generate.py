"""Prefill, decode and sampling on token ids: prompts in, continuations out.

All rows of a batch advance together, yet a row's tokens depend on its own prompt, seed and settings
alone: rows keep their own positions, each draw has a key of its own made from the row's seed and
the position drawn for, padding is masked, and on CPUs the products of a step are added in an order
that does not depend on the number of rows (`ops.linear.project`, bit by bit). Norms, softmax and
prefill leave that order to XLA, which picks it by shape; elsewhere products do too. So neighbours
can move the last bits of a row's logits, and its choice only where two tokens tie to within those.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt32

from llama_jax.config import ModelConfig, require
from llama_jax.model.cache import decode, empty_cache, inference_config, logits_of, prepare
from llama_jax.model.layer import Cache
from llama_jax.ops.sampling import sample

# Compiled programs are shared by all prompts whose buffers have one shape: rows a power of two,
# positions a multiple of 64 (of an eighth of their number for long ones), prompts in chunks.
MIN_POSITIONS = 64
CHUNKS = (16, 64, 256)


class Sampling(NamedTuple):
    """How tokens are drawn, see `ops.sampling.sample`."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0


GREEDY = Sampling()


class Rows(NamedTuple):
    """What each row is and wants."""

    seeds: UInt32[Array, " B"]
    temperature: Float[Array, " B"]
    top_k: Int[Array, " B"]
    top_p: Float[Array, " B"]
    eos_id: Int[Array, ""]
    """-1 for none."""


class State(NamedTuple):
    """Where each row stands."""

    tokens: Int[Array, "B S"]
    """Prompt and continuation; what lies beyond `length` means nothing."""
    length: Int[Array, " B"]
    """Tokens so far; all but the last are in the cache."""
    limit: Int[Array, " B"]
    """Length at which the row is done; EOS lowers it."""
    cache: list[Cache]


@partial(jax.jit, static_argnames=("config", "chunk"), donate_argnames="state")
def prefill(w: dict[str, Any], state: State, *, config: ModelConfig, chunk: int) -> State:
    """Put all but the last token of each prompt into the cache, `chunk` positions at a time."""
    cfg = inference_config(config)
    B = state.tokens.shape[0]
    needed = jnp.max(state.length) - 1

    def body(carry):
        start, cache = carry
        block = jax.lax.dynamic_slice(state.tokens, (0, start), (B, chunk))
        _, cache = decode(w, block, cache, jnp.full(B, start), config=cfg)
        return start + chunk, cache

    _, cache = jax.lax.while_loop(lambda c: c[0] < needed, body, (jnp.int32(0), state.cache))
    return state._replace(cache=cache)


@partial(jax.jit, static_argnames="config", donate_argnames="state")
def advance(
    w: dict[str, Any], state: State, rows: Rows, steps: Int[Array, ""], *, config: ModelConfig
) -> State:
    """Draw up to `steps` tokens for each row; stops early when every row is done."""
    cfg = inference_config(config)
    S = state.tokens.shape[1]
    base = jax.vmap(jax.random.key)(rows.seeds)

    def body(carry):
        step, state = carry
        last = state.length - 1
        token = jnp.take_along_axis(state.tokens, last[:, None], axis=1)
        x, cache = decode(w, token, state.cache, last, config=cfg)
        drawn = sample(
            logits_of(w, x),
            jax.vmap(jax.random.fold_in)(base, state.length),
            temperature=rows.temperature,
            top_k=rows.top_k,
            top_p=rows.top_p,
        )
        ended = drawn == rows.eos_id
        going = jnp.logical_and(state.length < state.limit, ~ended)
        here = jnp.arange(S)[None] == jnp.where(going, state.length, S)[:, None]
        return step + 1, State(
            tokens=jnp.where(here, drawn[:, None], state.tokens),
            length=state.length + going,
            limit=jnp.where(ended, state.length, state.limit),
            cache=cache,
        )

    def unfinished(carry):
        step, state = carry
        return jnp.logical_and(step < steps, jnp.any(state.length < state.limit))

    return jax.lax.while_loop(unfinished, body, (jnp.int32(0), state))[1]


def stream_tokens(
    params: dict[str, Any],
    prompts: Sequence[Sequence[int]],
    *,
    config: ModelConfig,
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
    seeds: Sequence[int],
    eos_id: int | None,
    block: int,
) -> Iterator[list[list[int]]]:
    """`generate_tokens` in pieces: each time, the next tokens of every row, at most `block`."""
    _validate(prompts, config, max_new_tokens, sampling, seeds)
    if not prompts:
        return
    w = params if isinstance(params["layers"], list) else prepare(params, config)
    state, rows, chunk = _start(prompts, config, max_new_tokens, sampling, seeds, eos_id)
    state = prefill(w, state, config=config, chunk=chunk)
    read = [len(p) for p in prompts]
    for _ in range(0, max_new_tokens, block):
        state = advance(w, state, rows, np.int32(block), config=config)
        tokens, length = np.asarray(state.tokens), np.asarray(state.length)
        yield [tokens[b, n : length[b]].tolist() for b, n in enumerate(read)]
        read = length[: len(prompts)].tolist()
        if not np.any(np.less(length, state.limit)):
            return


def generate_tokens(
    params: dict[str, Any],
    prompts: Sequence[Sequence[int]],
    *,
    config: ModelConfig,
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
    seeds: Sequence[int],
    eos_id: int | None,
) -> list[list[int]]:
    """The continuation of each prompt.

    A row ends before EOS, after `max_new_tokens` tokens, or at the end of the context
    (`config.max_seq_len` positions, the prompt included). Its tokens depend on its own prompt and
    seed alone, whatever its neighbours (see the module).

    Args:
      params: the parameter tree, or what `prepare` made of it: callers that generate often keep
        that, which saves a copy of the parameters a call.
      prompts: token ids, at least one each (BOS for an empty text).
      seeds: one for each prompt, 0 to 2^32 - 1.
      eos_id: None to go on through EOS.

    Raises:
      InputError: an empty prompt, one longer than the context, an id, seed or setting that is out
        of range.
    """
    parts = stream_tokens(
        params,
        prompts,
        config=config,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        seeds=seeds,
        eos_id=eos_id,
        block=max(max_new_tokens, 1),
    )
    return next(parts, [[] for _ in prompts])


def _start(prompts, config, max_new_tokens, sampling, seeds, eos_id):
    """Buffers that many calls can share a compiled program for, and the chunk of the prefill."""
    B = _power_of_two(len(prompts))
    lengths = np.array([len(p) for p in prompts])
    longest = int(lengths.max())
    chunk = next((c for c in CHUNKS if c >= longest - 1), CHUNKS[-1])
    ends = np.minimum(lengths + max_new_tokens, config.max_seq_len)
    # Prefill writes whole chunks, the padding of the last one included.
    positions = max(int(ends.max()), -(-(longest - 1) // chunk) * chunk)
    step = max(MIN_POSITIONS, _power_of_two(positions) // 8)
    S = -(-positions // step) * step
    tokens = np.zeros((B, S), np.int32)
    length, limit = np.ones(B, np.int32), np.zeros(B, np.int32)
    for b, prompt in enumerate(prompts):
        tokens[b, : len(prompt)] = prompt
    length[: len(prompts)], limit[: len(prompts)] = lengths, ends
    row_seeds = np.zeros(B, np.uint32)
    row_seeds[: len(prompts)] = seeds
    rows = Rows(
        seeds=jnp.asarray(row_seeds),
        temperature=jnp.full(B, sampling.temperature, jnp.float32),
        top_k=jnp.full(B, sampling.top_k, jnp.int32),
        top_p=jnp.full(B, sampling.top_p, jnp.float32),
        eos_id=jnp.int32(-1 if eos_id is None else eos_id),
    )
    cache = empty_cache(inference_config(config), B, S)
    state = State(jnp.asarray(tokens), jnp.asarray(length), jnp.asarray(limit), cache)
    return state, rows, chunk


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()


def _validate(prompts, config, max_new_tokens, sampling, seeds):
    for b, prompt in enumerate(prompts):
        require(len(prompt), f"prompt {b} is empty: start it with BOS")
        require(
            len(prompt) <= config.max_seq_len,
            f"prompt {b} has {len(prompt)} tokens, more than the model's context of "
            f"{config.max_seq_len}; shorten it",
        )
        bad = next((t for t in prompt if not 0 <= t < config.vocab_size), None)
        require(
            bad is None,
            f"prompt {b} holds token id {bad}, outside the vocabulary of {config.vocab_size}",
        )
    require(
        len(seeds) == len(prompts), f"{len(prompts)} prompts need as many seeds, not {len(seeds)}"
    )
    bad = next((s for s in seeds if not 0 <= s < 2**32), None)
    require(bad is None, f"seed={bad} must lie between 0 and 4294967295")
    require(max_new_tokens >= 0, f"max_new_tokens={max_new_tokens} must not be negative")
    temperature, top_k, top_p = sampling
    require(0 <= temperature < float("inf"), f"temperature={temperature} must be 0 or more")
    require(0 <= top_k < 2**31, f"top_k={top_k} must be 0 (off) or more")
    require(0 < top_p <= 1, f"top_p={top_p} must lie above 0 and at most at 1 (off)")
