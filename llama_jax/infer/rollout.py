"""Rollouts of a policy: many answers to many prompts, with the log-probability of each token.

A prompt is put into a cache once, a few prompts at a time, and its cache is copied into a row for
each of its answers. A fixed number of rows draws together; when an eighth of them is done, the
next answers take their places. So nothing waits for the longest answer but at the very end, and
there are four compiled programs, whose shapes depend on `wave_rows`, `max_new_tokens` and the
longest prompt (rounded up to a power of two) alone.

An answer is a function of its prompt, its seeds and its sample number (see `decode_loop`), so that
more samples can be drawn later, or those that a stopped run lacks, without changing the others.
"""

import contextlib
import itertools
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from llama_jax.config import InputError, ModelConfig, require
from llama_jax.infer.decode_loop import (
    CHUNKS,
    Rows,
    State,
    admit,
    advance,
    check_prompts,
    new_rows,
    new_state,
    power_of_two,
    prefill,
    round_positions,
)
from llama_jax.infer.samples import Answer, Samples
from llama_jax.infer.sampling_params import SamplingParams, check_seeds, count
from llama_jax.model.cache import cache_bytes, is_prepared, prepare
from llama_jax.parallel.arrays import everywhere
from llama_jax.parallel.devices import free_bytes
from llama_jax.parallel.rules import num_shards

PREFILL_ROWS = 8
"""Prompts that are prefilled together; the same number for any number of answers, since another
could change the last bits of a logit, and so a token."""
IDLE_SHARE = 8
"""One row in so many may be done before others take their places."""
UNKNOWN_ROWS = 64
"""Answers that are drawn together where devices do not tell how much memory is free."""
_LOGITS = 6
"""Float32 arrays [V] of each row that sampling holds at once: logits, and sorted copies."""
_NO_LIMIT = np.int32(2**31 - 1)


@dataclass
class Work:
    """Counters of the work of rollouts; pass one to several calls and it adds up."""

    prompts: int = 0
    """Prompts prefilled."""
    prompt_tokens: int = 0
    answers: int = 0
    tokens: int = 0
    """Tokens sampled."""
    steps: int = 0
    """Steps of all rows together."""
    row_steps: int = 0
    """Steps times rows: `tokens` divided by it is the share of rows that were busy."""
    compiled_seconds: float = 0.0
    """Time from the start of compiled programs until their results are there. The rest of a call is
    spent in Python; the first calls compile within this time."""


def sample_answers(
    w: dict[str, Any],
    prompts: Sequence[Sequence[int]],
    params: SamplingParams,
    *,
    config: ModelConfig,
    n: int,
    seeds: Sequence[Sequence[int]],
    wave_rows: int,
    prompt_len: int | None = None,
    work: Work | None = None,
) -> Samples:
    """`n` answers to each prompt; arguments and errors as in `stream_answers`."""
    count(n, "n", 1, "the number of answers to each prompt")
    shape = len(prompts), n, params.max_new_tokens
    tokens, logp = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
    length, stopped = np.zeros(shape[:2], np.int32), np.zeros(shape[:2], bool)
    for answer in stream_answers(
        w,
        prompts,
        params,
        config=config,
        wanted=[(p, j) for p in range(len(prompts)) for j in range(n)],
        seeds=seeds,
        wave_rows=wave_rows,
        prompt_len=prompt_len,
        work=work,
    ):
        at = answer.prompt, answer.sample
        length[at], stopped[at] = len(answer.tokens), answer.finish == "stop"
        tokens[at][: length[at]], logp[at][: length[at]] = answer.tokens, answer.logp
    return Samples(tokens, logp, length, stopped)


def stream_answers(
    w: dict[str, Any],
    prompts: Sequence[Sequence[int]],
    params: SamplingParams,
    *,
    config: ModelConfig,
    wanted: Sequence[tuple[int, int]],
    seeds: Sequence[Sequence[int]],
    wave_rows: int,
    prompt_len: int | None = None,
    most: int | None = None,
    work: Work | None = None,
) -> Iterator[Answer]:
    """The answers of the wanted (prompt, sample) pairs, each when it is done, in no fixed order.

    Args:
      w: the parameter tree, of which a copy is prepared for this call and freed with it; or the
        result of `prepare` or `gather`.
      prompts: token ids, at least one each.
      seeds: integers for each prompt, equally many for all, such as (seed, iteration, number of the
        prompt). The key of an answer folds them and the sample number in, one after another.
      wave_rows: answers that are drawn together, rounded up to what the mesh in context splits
        rows over; 0 for as many as the free memory of the devices holds, see `fitting_rows`.
      prompt_len: the longest prompt of this and later calls, which then share their compiled
        programs; None for the longest of these.
      most: the most answers of this and later calls, for the same reason; None for those wanted.
        It counts where wave_rows is 0.

    Raises:
      InputError: a prompt is empty, too long or holds an id out of range; seeds, or a number, are
        out of range.
    """
    _check(prompts, seeds, wanted, wave_rows, prompt_len, config)
    if not wanted:
        return
    w = w if is_prepared(w) else prepare(w, config)
    work = Work() if work is None else work
    longest = max(len(p) for p in prompts) if prompt_len is None else prompt_len
    if wave_rows == 0:
        mesh = jax.sharding.get_mesh()
        fit = fitting_rows(config, longest, params.max_new_tokens, mesh)
        wave_rows = min(fit, max(PREFILL_ROWS, power_of_two(most or len(wanted))))
    P, S = _positions(longest, params.max_new_tokens, config)
    chunk = max(c for c in CHUNKS if P % c == 0)
    shards = num_shards("batch")
    B = -(-wave_rows // shards) * shards
    G = -(-min(PREFILL_ROWS, B) // shards) * shards
    state = new_state([], [], config=config, B=B, S=S, scored=True)
    rows = new_rows(params, np.zeros((B, len(seeds[0]) + 1), np.uint32), config)
    wave = _Wave(w, state, rows, params, work)
    for group in _groups(prompts, wanted, G):
        chosen = [prompts[p] for p in group]
        ends = [min(len(p) + params.max_new_tokens, config.max_seq_len) for p in chosen]
        with _timed(work):
            source = new_state(chosen, ends, config=config, B=G, S=P)
            source = jax.block_until_ready(prefill(w, source, config=config, chunk=chunk))
        work.prompts += len(chosen)
        work.prompt_tokens += sum(len(p) for p in chosen)
        waiting = deque((k, p, j) for k, p in enumerate(group) for j in group[p])
        while waiting:
            if len(wave.drawing) < B:
                wave.admit(source, waiting, prompts, seeds)
            yield from wave.advance(B // IDLE_SHARE, config)
    while wave.drawing:
        yield from wave.advance(B - 1, config)


class _Wave:
    """Rows that draw together, and which answer each of them is."""

    def __init__(
        self, w: dict[str, Any], state: State, rows: Rows, params: SamplingParams, work: Work
    ):
        self.w, self.state, self.rows, self.params, self.work = w, state, rows, params, work
        self.drawing: dict[int, tuple[int, int, int]] = {}
        """Prompt, sample and tokens of the prompt, by row."""

    def admit(
        self,
        source: State,
        waiting: deque[tuple[int, int, int]],
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[Sequence[int]],
    ) -> None:
        """Let the rows that are done draw what waits: (row of the source, prompt, sample)."""
        B = len(self.state.length)
        rows, replaced = np.zeros(B, np.int32), np.zeros(B, bool)
        keys = np.array(self.rows.seeds)
        for b in range(B):
            if b not in self.drawing and waiting:
                rows[b], prompt, sample = waiting.popleft()
                replaced[b], keys[b] = True, (*seeds[prompt], sample)
                self.drawing[b] = prompt, sample, len(prompts[prompt])
        self.rows = self.rows._replace(seeds=everywhere(keys))
        with _timed(self.work):
            self.state = jax.block_until_ready(admit(self.state, source, rows, replaced))

    def advance(self, idle: int, config: ModelConfig) -> Iterator[Answer]:
        """Draw until more than `idle` rows are done, and give what is done."""
        with _timed(self.work):
            self.state, taken = advance(
                self.w, self.state, self.rows, _NO_LIMIT, np.int32(idle), config=config
            )
            length, limit, steps = jax.device_get((self.state.length, self.state.limit, taken))
        self.work.steps += int(steps)
        self.work.row_steps += int(steps) * len(length)
        done = [b for b in self.drawing if length[b] >= limit[b]]
        if not done:
            return
        tokens, logp = jax.device_get((self.state.tokens, self.state.logp))
        for b in done:
            prompt, sample, start = self.drawing.pop(b)
            answer, scores = tokens[b, start : length[b]], logp[b, start : length[b]]
            stopped = len(answer) > 0 and int(answer[-1]) in self.params.stop_ids
            self.work.answers += 1
            self.work.tokens += len(answer)
            yield Answer(prompt, sample, answer, scores, "stop" if stopped else "length")


@contextlib.contextmanager
def _timed(work: Work) -> Iterator[None]:
    begin = time.perf_counter()
    yield
    work.compiled_seconds += time.perf_counter() - begin


def _groups(
    prompts: Sequence[Sequence[int]], wanted: Sequence[tuple[int, int]], size: int
) -> Iterator[dict[int, list[int]]]:
    """The samples wanted of each prompt, `size` prompts of about one length at a time."""
    samples: dict[int, list[int]] = {}
    for prompt, sample in wanted:
        samples.setdefault(prompt, []).append(sample)
    by_length = sorted(samples, key=lambda prompt: len(prompts[prompt]))
    for group in itertools.batched(by_length, size):
        yield {prompt: samples[prompt] for prompt in group}


def _check(prompts, seeds, wanted, wave_rows, prompt_len, config):
    check_prompts(prompts, config)
    count(wave_rows, "wave_rows", 0, "the answers to draw together, 0 for as many as fit")
    require(
        len(seeds) == len(prompts), f"{len(prompts)} prompts need as many seeds, not {len(seeds)}"
    )
    for b, chain in enumerate(seeds):
        check_seeds(chain, f"a seed of prompt {b}")
        require(
            len(chain) == len(seeds[0]) > 0,
            f"prompt {b} has {len(chain)} seeds and prompt 0 has {len(seeds[0])}: give all equally "
            "many, at least one",
        )
    for b, prompt in enumerate(prompts):
        require(
            prompt_len is None or len(prompt) <= prompt_len,
            f"prompt {b} has {len(prompt)} tokens, more than {prompt_len=}",
        )
    for prompt, sample in wanted:
        require(
            0 <= prompt < len(prompts) and 0 <= sample < 2**32,
            f"sample {sample} of prompt {prompt} is wanted, but there are {len(prompts)} prompts",
        )


def _positions(prompt_len: int, max_new_tokens: int, config: ModelConfig) -> tuple[int, int]:
    """Of the cache of a prompt, whole chunks, and of the row that it is copied into."""
    short = max(CHUNKS[0], power_of_two(prompt_len))
    prompt = short if short <= CHUNKS[1] else round_positions(prompt_len)
    return prompt, round_positions(max(prompt, min(prompt + max_new_tokens, config.max_seq_len)))


@lru_cache
def fitting_rows(
    config: ModelConfig, prompt_len: int, max_new_tokens: int, mesh: jax.sharding.AbstractMesh | Any
) -> int:
    """`rows_that_fit` four fifths of the memory that is free, the rest being for logits and copies.

    A power of two, so that a little more or less memory changes no program; the same on all hosts
    and at every call. UNKNOWN_ROWS where devices do not tell, as CPUs.

    Raises:
      InputError: not one fits.
    """
    free, problem, rows = free_bytes(), None, UNKNOWN_ROWS
    together = 1 if mesh.empty else num_shards("batch") * num_shards("kv_heads")
    try:
        if free is not None:
            rows = rows_that_fit(
                config,
                prompt_len=prompt_len,
                max_new_tokens=max_new_tokens,
                free_bytes=free * 4 // 5 * together,
            )
    except InputError as error:  # raised below: the other hosts wait for this one's number
        problem, rows = error, 0
    fewest = int(np.min(multihost_utils.process_allgather(np.array(rows))))
    if problem is not None:
        raise problem
    require(
        fewest > 0,
        "not one answer fits the free memory of another host: shorten prompts or answers, or use "
        "more devices",
    )
    return 1 << fewest.bit_length() - 1


def rows_that_fit(
    config: ModelConfig, *, prompt_len: int, max_new_tokens: int, free_bytes: int
) -> int:
    """Number of answers that can be sampled together if keys and values, including those of
    PREFILL_ROWS waiting prompts, take at most `free_bytes`.

    On a mesh, `free_bytes` is the total of the devices that split rows and heads.

    Raises:
      InputError: not one fits.
    """
    prompt, row = _positions(prompt_len, max_new_tokens, config)
    token = cache_bytes(config)
    waiting = PREFILL_ROWS * prompt * token
    drawing = 4 * config.vocab_size * _LOGITS
    rows = (free_bytes - waiting) // (row * token + drawing)
    require(
        rows > 0,
        f"{free_bytes:,} bytes hold no row of {row} positions beside the prompts: it takes "
        f"{row * token:,} and they {waiting:,}; shorten prompts or answers, or use more devices",
    )
    return rows
