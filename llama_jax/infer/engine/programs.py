"""The compiled programs of the engine: a closed set, each with one shape.

A sequence's numbers are bit-equal alone and among others, because nothing about it depends on
them: a prompt is computed one row at a time, in chunks whose borders depend on its length alone;
rows draw together in programs in which no row's arithmetic reads another's, for few rows in a
smaller one only where that gives the same bits (`Device.warm_up` looks); and the pages of a longer
neighbour change no bit (`ops.paged_attention`).

A mesh in context splits heads, MLP and vocabulary over its `tensor` axis, and the pages by heads.
What a program returns lies where the next one expects it, or that would be compiled again.
"""

import logging
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

from llama_jax.config import ModelConfig
from llama_jax.infer.decode_loop import row_keys
from llama_jax.model.by_row import taking
from llama_jax.model.cache import (
    decode,
    empty_pages,
    inference_config,
    logits_of,
    pages_in_place,
)
from llama_jax.model.layer import Pages
from llama_jax.model.matrix import dense
from llama_jax.ops.ordered_sum import ordered_sum
from llama_jax.ops.paged_attention import Pool
from llama_jax.ops.sampling import draw, sampling_logits
from llama_jax.parallel.rules import constrain

logger = logging.getLogger(__name__)
STEPS = 8
"""Draws of one call at most."""
TOP = 20
"""Most probable tokens that are reported with a token."""
STOPS = 16
"""Tokens that end a sequence, at most."""


class State(NamedTuple):
    """Arrays that stay on the device, and are donated to each program that changes them."""

    pages: list[tuple[Pool, Pool]]
    """Pages of each layer: P pages as rows of a cache, see `ops.paged_attention`."""
    counts: Int[Array, "B V"]
    """How often each row drew each token."""
    bias: Float[Array, "B V"]
    """Added to each row's logits."""
    allowed: UInt32[Array, "B words"]
    """One bit for each token that a row with a grammar may draw next, the lowest first."""


class Rows(NamedTuple):
    """State and settings of each row, made anew for each call. A row with length >= limit idles."""

    token: Int[Any, " B"]
    """Its last one, not in the cache yet."""
    length: Int[Any, " B"]
    limit: Int[Any, " B"]
    table: Int[Any, "B pages"]
    """Page 0 throughout for rows that idle."""
    seeds: UInt32[Any, "B 2"]
    adapter: Int[Any, " B"]
    """Adapter of the row; 0 for none. See `model.by_row`."""
    temperature: Float[Any, " B"]
    top_k: Int[Any, " B"]
    top_p: Float[Any, " B"]
    presence: Float[Any, " B"]
    """Subtracted from the logits of tokens that the row drew before."""
    frequency: Float[Any, " B"]
    """And this once for each time."""
    shaped: Bool[Any, " B"]
    """Whether penalties or a bias act on the row."""
    constrained: Bool[Any, " B"]
    """Whether the row draws from `State.allowed` alone: right for one step."""
    scored: Bool[Any, " B"]
    """Whether somebody asks for its log-probabilities."""
    stop_ids: Int[Any, "B stops"]
    """-1 for none."""


class Scores(NamedTuple):
    """Log-probabilities in the model's own distribution, in nats: before bias, penalties and
    temperature."""

    logp: Float[Array, "*at"]
    """Log-probability of the token itself."""
    top_ids: Int[Array, "*at top"]
    """The most probable tokens that spell something, of equals the lower id first."""
    top_logp: Float[Array, "*at top"]


class Drawn(NamedTuple):
    """Results of one call: the first length[b] - (length before) tokens of row b count."""

    tokens: Int[Array, "steps B"]
    scores: Scores
    length: Int[Array, " B"]
    taken: Int[Array, ""]


def new_state(
    config: ModelConfig, *, rows: int, num_pages: int, page: int, kv: str = "model"
) -> State:
    """Empty pages, nothing drawn."""
    pages = empty_pages(inference_config(config), num_pages, page, kv)
    return State(pages, *_no_rows(rows, config.vocab_size))


def idle_rows(B: int, width: int) -> Rows:
    """B rows that nobody has, with page tables of this width."""
    return Rows(
        token=np.zeros(B, np.int32),
        length=np.ones(B, np.int32),
        limit=np.zeros(B, np.int32),
        table=np.zeros((B, width), np.int32),
        seeds=np.zeros((B, 2), np.uint32),
        adapter=np.zeros(B, np.int32),
        temperature=np.zeros(B, np.float32),
        top_k=np.zeros(B, np.int32),
        top_p=np.ones(B, np.float32),
        presence=np.zeros(B, np.float32),
        frequency=np.zeros(B, np.float32),
        shaped=np.zeros(B, bool),
        constrained=np.zeros(B, bool),
        scored=np.zeros(B, bool),
        stop_ids=np.full((B, STOPS), -1, np.int32),
    )


@partial(jax.jit, static_argnums=(0, 1))
def _no_rows(rows: int, vocab_size: int) -> tuple[Array, ...]:
    shape = rows, vocab_size
    counts, bias = jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.float32)
    return _whole((counts, bias, jnp.zeros((rows, words_of(vocab_size)), jnp.uint32)))


def _whole[T](tree: T) -> T:
    """Each array complete on each device of the mesh in context."""
    return jax.tree.map(lambda a: constrain(a, (None,) * a.ndim), tree)


def words_of(vocab_size: int) -> int:
    """Words of 32 bits that hold one bit for each token."""
    return -(-vocab_size // 32)


@partial(jax.jit, donate_argnames="state")
def begin_row(state: State, row: Int[Any, ""], bias: Float[Any, " V"]) -> State:
    """A row that drew nothing, with a bias of its own."""
    counts, bias = state.counts.at[row].set(0), state.bias.at[row].set(bias)
    return state._replace(counts=_whole(counts), bias=_whole(bias))


@partial(jax.jit, donate_argnames="state")
def allow(state: State, row: Int[Any, ""], allowed: UInt32[Any, " words"]) -> State:
    """Set the tokens that a row may draw next."""
    return state._replace(allowed=_whole(state.allowed.at[row].set(allowed)))


@partial(jax.jit, static_argnames="config", donate_argnames="state")
def prefill(
    w: dict[str, Any],
    state: State,
    tokens: Int[Any, "1 T"],
    start: Int[Any, " 1"],
    table: Int[Any, "1 pages"],
    adapter: Int[Any, " 1"],
    *,
    config: ModelConfig,
) -> tuple[State, Float[Array, "1 T D"]]:
    """Put T tokens of one prompt into its pages; also the normed stream, for `score`.

    What pads the end of a prompt is written too, where the decoder will write over it.
    """
    x, pages = _decode(w, state, tokens, table, start, adapter, config)
    return state._replace(pages=pages), _whole(x)


@partial(jax.jit, static_argnames="config")
def score(
    w: dict[str, Any],
    x: Float[Array, "1 T D"],
    targets: Int[Any, " T"],
    vocab_limit: Int[Any, ""],
    *,
    config: ModelConfig,
) -> Scores:
    """Scores of the token that follows each position of a chunk."""
    head = dense(w["head"], jnp.float32)
    logits = jnp.tensordot(x[0].astype(jnp.float32), head, axes=1)
    return _scores(_whole(constrain(logits, (None, "vocab"))), targets, vocab_limit)


@partial(jax.jit, static_argnames="config", donate_argnames="state")
def draw_steps(
    w: dict[str, Any],
    state: State,
    rows: Rows,
    vocab_limit: Int[Any, ""],
    steps: Int[Any, ""],
    *,
    config: ModelConfig,
) -> tuple[State, Drawn]:
    """Draw up to `steps` tokens, STEPS at most, for each row that is below its limit.

    `rows` may be the first ones alone.
    """
    B, V = len(rows.token), state.counts.shape[1]
    whole = state
    state = state._replace(counts=state.counts[:B], bias=state.bias[:B], allowed=state.allowed[:B])
    base = row_keys(rows.seeds)
    top = min(TOP, V)
    drawn = Drawn(
        tokens=jnp.zeros((STEPS, B), jnp.int32),
        scores=Scores(
            jnp.zeros((STEPS, B), jnp.float32),
            jnp.zeros((STEPS, B, top), jnp.int32),
            jnp.zeros((STEPS, B, top), jnp.float32),
        ),
        length=jnp.asarray(rows.length),
        taken=jnp.int32(0),
    )

    def body(carry):
        state, drawn, token, limit = carry
        length, step = drawn.length, drawn.taken
        x, pages = _decode(w, state, token[:, None], rows.table, length - 1, rows.adapter, config)
        logits = _whole(logits_of(w, x))
        shaped = jax.lax.cond(
            jnp.any(rows.shaped), lambda: _shape(logits, state, rows), lambda: logits
        )
        possible = jax.lax.cond(
            jnp.any(rows.constrained), lambda: _constrain(shaped, state, rows), lambda: shaped
        )
        choices = sampling_logits(
            possible,
            temperature=rows.temperature,
            top_k=rows.top_k,
            top_p=rows.top_p,
            vocab_limit=vocab_limit,
        )
        keys = jax.vmap(jax.random.fold_in)(base, length)
        new = draw(choices, keys, temperature=rows.temperature)
        scores = jax.lax.cond(
            jnp.any(rows.scored),
            lambda: _scores(logits, new, vocab_limit),
            lambda: jax.tree.map(lambda a: jnp.zeros(a.shape[1:], a.dtype), drawn.scores),
        )
        going = length < limit
        counts = state.counts.at[jnp.arange(B), new].add(going.astype(jnp.int32))
        stopped = jnp.any(new[:, None] == rows.stop_ids, axis=1)
        token = jnp.where(going, new, token)
        length = length + going.astype(jnp.int32)
        limit = jnp.where(jnp.logical_and(going, stopped), length, limit)
        drawn = Drawn(
            tokens=drawn.tokens.at[step].set(new),
            scores=jax.tree.map(lambda all, one: all.at[step].set(one), drawn.scores, scores),
            length=length,
            taken=step + 1,
        )
        return state._replace(pages=pages, counts=counts), drawn, token, limit

    def unfinished(carry):
        _, drawn, _, limit = carry
        return jnp.logical_and(drawn.taken < steps, jnp.any(drawn.length < limit))

    begin = state, drawn, jnp.asarray(rows.token), jnp.asarray(rows.limit)
    state, drawn, _, _ = jax.lax.while_loop(unfinished, body, begin)
    counts = whole.counts.at[:B].set(state.counts)
    return whole._replace(pages=state.pages, counts=_whole(counts)), _whole(drawn)


def _decode(w, state: State, tokens, table, start, adapter, config: ModelConfig):
    """`decode` over the pool; its new pages."""
    w = taking(w, jnp.asarray(adapter))
    cfg = inference_config(config)
    table = jnp.asarray(table)
    cache = [Pages(keys, values, table) for keys, values in state.pages]
    x, written = decode(w, jnp.asarray(tokens), cache, jnp.asarray(start), config=cfg)
    return x, pages_in_place([(pages.keys, pages.values) for pages in written], cfg)


def _shape(logits, state: State, rows: Rows):
    """Logits with bias and penalties, in the order of OpenAI's documentation."""
    counts = state.counts
    drawn = (counts > 0).astype(jnp.float32)
    penalty = rows.presence[:, None] * drawn + rows.frequency[:, None] * counts
    return jnp.where(rows.shaped[:, None], logits + state.bias - penalty, logits)


def _constrain(logits, state: State, rows: Rows):
    """Logits with -inf for what a grammar forbids."""
    R, V = logits.shape
    bits = state.allowed[:, :, None] >> jnp.arange(32, dtype=jnp.uint32)[None, None] & 1
    allowed = bits.reshape(R, -1)[:, :V] == 1
    free = jnp.logical_not(rows.constrained)[:, None]
    return jnp.where(jnp.logical_or(free, allowed), logits, -jnp.inf)


def _scores(logits, tokens, vocab_limit) -> Scores:
    """From logits [R,V] of all distributions, tokens [R]."""
    largest = jnp.max(logits, axis=-1, keepdims=True)
    below = logits - largest
    logp = below - jnp.log(ordered_sum(jnp.exp(below)))[:, None]
    own = jnp.take_along_axis(logp, tokens[:, None], axis=-1)[:, 0]
    spelled = jnp.arange(logp.shape[-1])[None] < vocab_limit
    top_logp, top_ids = jax.lax.top_k(jnp.where(spelled, logp, -jnp.inf), min(TOP, logp.shape[-1]))
    return Scores(own, top_ids, top_logp)


class CompileCounter:
    """How many programs XLA has compiled since it was made, in this process."""

    _count = 0
    _listening = False

    def __init__(self):
        cls = CompileCounter
        if not cls._listening:
            jax.monitoring.register_event_duration_secs_listener(cls._heard)
            cls._listening = True
        self._before = cls._count

    @property
    def count(self) -> int:
        """Programs compiled."""
        return CompileCounter._count - self._before

    @classmethod
    def _heard(cls, event: str, *_: Any, **__: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            cls._count += 1
