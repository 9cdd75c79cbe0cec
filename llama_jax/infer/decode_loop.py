"""The compiled programs of generation: prompts are prefilled into a cache and continued.

All rows of a batch advance together, yet a row's tokens depend on its own prompt, seed and settings
alone: rows keep their own positions, each draw has a key of its own made from the row's seed and
the position drawn for, padding is masked, and on CPUs the products of a step are added in an order
that does not depend on the number of rows (`ops.linear.project`, bit by bit). Norms, softmax and
prefill leave that order to XLA, which picks it by shape; elsewhere products do too. So neighbours
can move the last bits of a row's logits, and its choice only where two tokens tie to within those.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

from llama_jax.config import ModelConfig, require
from llama_jax.infer.sampling_params import SamplingParams
from llama_jax.model.cache import copy_rows, decode, empty_cache, inference_config, logits_of
from llama_jax.model.layer import Cache
from llama_jax.ops.sampling import draw, log_probability, sampling_logits
from llama_jax.parallel.arrays import everywhere
from llama_jax.parallel.rules import constrain

# Compiled programs are shared by all prompts whose buffers have one shape: positions a multiple of
# 64 (of an eighth of their number for long ones), prompts in chunks.
MIN_POSITIONS = 64
CHUNKS = (16, 64, 256)


class Rows(NamedTuple):
    """Sampling settings of each row."""

    seeds: UInt32[Array, "B C"]
    """Determine the row's key: the first one seeds it, the others are folded in, one after
    another."""
    temperature: Float[Array, " B"]
    top_k: Int[Array, " B"]
    top_p: Float[Array, " B"]
    stop_ids: Int[Array, " E"]
    """-1 for none."""
    vocab_limit: Int[Array, ""]


class State(NamedTuple):
    """The current state of each row."""

    tokens: Int[Array, "B S"]
    """Prompt and continuation; values beyond `length` are meaningless."""
    logp: Float[Array, "B S"] | None
    """Log-probability of each sampled token, if requested."""
    length: Int[Array, " B"]
    """Tokens so far; all but the last are in the cache."""
    limit: Int[Array, " B"]
    """Length at which the row is done; a stop token lowers it."""
    cache: list[Cache]


def new_rows(params: SamplingParams, seeds: UInt32[np.ndarray, "B C"], config: ModelConfig) -> Rows:
    """Rows with the same settings, each with its own seeds."""
    B, limit = len(seeds), params.vocab_limit
    return Rows(
        seeds=everywhere(seeds),
        temperature=everywhere(np.full(B, params.temperature, np.float32)),
        top_k=everywhere(np.full(B, params.top_k, np.int32)),
        top_p=everywhere(np.full(B, params.top_p, np.float32)),
        stop_ids=everywhere(np.array(params.stop_ids or (-1,), np.int32)),
        vocab_limit=everywhere(np.int32(config.vocab_size if limit is None else limit)),
    )


def new_state(
    prompts: Sequence[Sequence[int]],
    limits: Sequence[int],
    *,
    config: ModelConfig,
    B: int,
    S: int,
    scored: bool = False,
) -> State:
    """B rows of S positions that hold the prompts, none of them in the cache yet.

    Row b may grow to limits[b] tokens; rows beyond the prompts are done. `scored` keeps
    log-probabilities.
    """
    tokens = np.zeros((B, S), np.int32)
    length, limit = np.ones(B, np.int32), np.zeros(B, np.int32)
    for b, prompt in enumerate(prompts):
        tokens[b, : len(prompt)] = prompt
    length[: len(prompts)], limit[: len(prompts)] = [len(p) for p in prompts], limits
    return State(
        tokens=everywhere(tokens),
        logp=everywhere(np.zeros((B, S), np.float32)) if scored else None,
        length=everywhere(length),
        limit=everywhere(limit),
        cache=empty_cache(inference_config(config), B, S),
    )


@partial(jax.jit, static_argnames=("config", "chunk"), donate_argnames="state")
def prefill(w: dict[str, Any], state: State, *, config: ModelConfig, chunk: int) -> State:
    """Put all but the last token of each prompt into the cache, `chunk` positions at a time.

    Whole chunks are written, the padding of the last one included: S must hold them.
    """
    cfg = inference_config(config)
    B = state.tokens.shape[0]
    needed = jnp.max(state.length) - 1

    def body(carry):
        start, cache = carry
        block = jax.lax.dynamic_slice_in_dim(state.tokens, start, chunk, axis=1)
        _, cache = decode(w, block, cache, jnp.full(B, start), config=cfg)
        return start + chunk, cache

    _, cache = jax.lax.while_loop(lambda c: c[0] < needed, body, (jnp.int32(0), state.cache))
    return state._replace(cache=cache)


@partial(jax.jit, static_argnames="config", donate_argnames="state")
def advance(
    w: dict[str, Any],
    state: State,
    rows: Rows,
    steps: Int[Array, ""],
    idle: Int[Array, ""],
    *,
    config: ModelConfig,
) -> tuple[State, Int[Array, ""]]:
    """Sample up to `steps` tokens for each row; stops early when more than `idle` rows are done.

    Also returns the number of steps made.
    """
    cfg = inference_config(config)
    S = state.tokens.shape[1]
    base = row_keys(rows.seeds)

    def body(carry):
        step, state = carry
        last = state.length - 1
        token = jnp.take_along_axis(state.tokens, last[:, None], axis=1)
        x, cache = decode(w, token, state.cache, last, config=cfg)
        logits = sampling_logits(
            logits_of(w, x),
            temperature=rows.temperature,
            top_k=rows.top_k,
            top_p=rows.top_p,
            vocab_limit=rows.vocab_limit,
        )
        keys = jax.vmap(jax.random.fold_in)(base, state.length)
        drawn = draw(logits, keys, temperature=rows.temperature)
        going = state.length < state.limit
        here = jnp.arange(S)[None] == jnp.where(going, state.length, S)[:, None]
        length = state.length + going.astype(jnp.int32)
        stopped = jnp.any(drawn[:, None] == rows.stop_ids[None], axis=1)
        logp = state.logp
        if logp is not None:
            logp = jnp.where(here, log_probability(logits, drawn)[:, None], logp)
        return step + 1, State(
            tokens=jnp.where(here, drawn[:, None], state.tokens),
            logp=logp,
            length=length,
            limit=jnp.where(jnp.logical_and(going, stopped), length, state.limit),
            cache=cache,
        )

    def unfinished(carry):
        step, state = carry
        done = jnp.sum(state.length >= state.limit, dtype=jnp.int32)
        return jnp.logical_and(step < steps, done <= idle)

    step, state = jax.lax.while_loop(unfinished, body, (jnp.int32(0), state))
    return _readable(state), step


def _readable(state: State) -> State:
    """The state with all but the cache whole on every device, where each host can read it."""
    read = jax.tree.map(lambda x: constrain(x, (None,) * x.ndim), state._replace(cache=[]))
    return read._replace(cache=state.cache)


def row_keys(seeds: UInt32[Array, "B C"]) -> Key[Array, " B"]:
    """The key of each row, see `Rows.seeds`."""
    keys = jax.vmap(jax.random.key)(seeds[:, 0])
    for column in seeds.T[1:]:
        keys = jax.vmap(jax.random.fold_in)(keys, column)
    return keys


@partial(jax.jit, donate_argnames="state")
def admit(
    state: State, source: State, rows: Int[Array, " B"], replaced: Bool[Array, " B"]
) -> State:
    """Restart row b as row rows[b] of the prefilled `source`, wherever replaced[b]."""
    S = source.tokens.shape[1]
    tokens = jnp.where(replaced[:, None], source.tokens[rows], state.tokens[:, :S])
    return _readable(
        State(
            tokens=state.tokens.at[:, :S].set(tokens),
            logp=state.logp,
            length=jnp.where(replaced, source.length[rows], state.length),
            limit=jnp.where(replaced, source.limit[rows], state.limit),
            cache=copy_rows(state.cache, source.cache, rows, replaced),
        )
    )


def round_positions(positions: int) -> int:
    """A buffer length of at least this many positions, out of few different sizes."""
    step = max(MIN_POSITIONS, power_of_two(positions) // 8)
    return -(-positions // step) * step


def power_of_two(n: int) -> int:
    """The smallest power of two that is not less than n."""
    return 1 << (n - 1).bit_length()


def check_prompts(prompts: Sequence[Sequence[int]], config: ModelConfig) -> None:
    """Raise InputError unless each prompt is token ids that fit the context."""
    for b, prompt in enumerate(prompts):
        require(len(prompt), f"prompt {b} is empty: start it with BOS")
        require(
            len(prompt) <= config.max_seq_len,
            f"prompt {b} has {len(prompt)} tokens but the model's context is "
            f"{config.max_seq_len}: shorten it",
        )
        bad = next((t for t in prompt if not 0 <= t < config.vocab_size), None)
        require(
            bad is None,
            f"prompt {b} holds token id {bad}, outside the vocabulary of {config.vocab_size}",
        )
