"""Device state of the engine and its compiled programs, with plain values in and out.

Every input is made here, of the same shapes and types in the warm-up as later, so that nothing is
compiled afterwards.
"""

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import UInt32

from llama_jax.config import ModelConfig
from llama_jax.infer.engine import programs
from llama_jax.infer.engine.drafts import agreed
from llama_jax.infer.engine.programs import STEPS, Rows
from llama_jax.infer.engine.request import Request, Score
from llama_jax.infer.engine.scheduler import Chunk, Layout, Scheduled

logger = logging.getLogger(__name__)


class Draw(NamedTuple):
    """A sequence that draws."""

    sequence: Scheduled
    last: int
    """Its last token."""
    drafts: Sequence[int] = ()
    """Guesses of the next ones. Of a sequence that nothing acts on (`Request.shaped`)."""
    allowed: UInt32[np.ndarray, " words"] | None = None
    """Bits of the tokens that it may draw, one step only; None for all. See `Grammar`."""


class Result(NamedTuple):
    """Output of a row in one step."""

    tokens: list[int]
    scores: list[Score]
    """Empty where nobody asked."""


class Device:
    """The weights, the pages, and what each row wants."""

    def __init__(
        self,
        w: dict[str, Any],
        config: ModelConfig,
        layout: Layout,
        vocab_limit: int,
        adapters: int = 0,
    ):
        self.w, self.config, self.layout, self.adapters = w, config, layout, adapters
        self.vocab_limit = np.int32(vocab_limit)
        self.mesh = jax.sharding.get_mesh()
        """The mesh that the weights are split over, in context whenever a program runs."""
        self.row_counts = [layout.rows]
        """Rows that programs draw for, ascending; all give a row the same bits."""
        self.clear()

    def on_mesh(self) -> AbstractContextManager[Any]:
        """Context for a thread that calls anything else here."""
        return nullcontext() if self.mesh.empty else jax.set_mesh(self.mesh)

    def clear(self) -> None:
        """Empty pages; no row wants anything."""
        B, layout = self.layout.rows, self.layout
        state = programs.new_state(
            self.config, rows=B, num_pages=layout.num_pages, page=layout.page, kv=layout.kv
        )
        # Committed to a device from the beginning, as what programs make of loaded weights is: each
        # program would be compiled for both.
        place = jax.tree.leaves(self.w)[0].sharding
        alone = len(place.device_set) == 1
        self.state = jax.device_put(state, place) if alone else state
        self.rows = programs.idle_rows(B, layout.width)

    def warm_up(self, tell: Callable[[int, int, str], None]) -> float:
        """Compile everything there is; `tell` hears which of how many programs comes next.

        Returns the seconds of the largest chunk and of draws of all rows, which are the longest
        that the device will be silent.
        """
        chunks, fewer = self.layout.chunks, self.layout.fewer_rows
        total = 2 * len(chunks) + len(fewer) + 3
        names = iter(range(1, total + 1))
        tell(next(names), total, "rows")
        jax.block_until_ready(self._begin(0, {}))
        tell(next(names), total, "grammars")
        jax.block_until_ready(self._allow(0, np.zeros(0, np.uint32)))
        for size in chunks:
            tell(next(names), total, f"prompts, {size} tokens at a time")
            x = jax.block_until_ready(self._prefill(range(size), 0, size, [], 0))
            tell(next(names), total, f"their log-probabilities, {size} at a time")
            self._score(x, [0] * size)
        drawn = {}
        for count in (*fewer, self.layout.rows):
            tell(next(names), total, f"draws of {count} rows")
            drawn[count] = self._try(count)
        everyone = drawn[self.layout.rows]
        self.row_counts = [
            count
            for count, found in drawn.items()
            if all(
                np.array_equal(one, all_[:, :count])
                for one, all_ in zip(jax.tree.leaves(found), jax.tree.leaves(everyone), strict=True)
            )
        ]
        for count in set(drawn) - set(self.row_counts):
            logger.info("draws of %d rows are rounded in another way here: not used", count)
        begun = time.monotonic()
        jax.block_until_ready(self._prefill(range(chunks[-1]), 0, chunks[-1], [], 0))
        self._try(self.layout.rows)
        return time.monotonic() - begun

    def _try(self, count: int) -> Any:
        """Tokens and scores that the program for `count` rows draws, each row in a page of its own.

        The programs run the same instructions whatever the numbers: if all bits agree for these,
        sums are added in one order.
        """
        B, page = self.layout.rows, self.layout.page
        rows = self.rows._replace(
            token=np.arange(B, dtype=np.int32) * 7919 % self.vocab_limit,
            limit=np.full(B, 1 + min(page, STEPS), np.int32),
            table=np.zeros_like(self.rows.table),
            seeds=np.arange(2 * B, dtype=np.uint32).reshape(B, 2),
            adapter=np.arange(B, dtype=np.int32) % (1 + self.adapters),
            temperature=np.ones(B, np.float32),
            scored=np.ones(B, bool),
        )
        rows.table[:, 0] = 1 + np.arange(B)
        drawn = self._draw(rows, count, STEPS)
        return jax.device_get((drawn.tokens, drawn.scores))

    def begin(self, row: int, request: Request) -> None:
        """Give a row to a request."""
        rows, sampling = self.rows, request.sampling
        rows.seeds[row], rows.adapter[row] = (request.seed, request.sample), request.adapter
        rows.temperature[row], rows.top_k[row] = sampling.temperature, sampling.top_k
        rows.top_p[row] = sampling.top_p
        rows.presence[row] = request.presence_penalty
        rows.frequency[row] = request.frequency_penalty
        rows.shaped[row], rows.scored[row] = request.shaped, request.scored
        rows.stop_ids[row] = -1
        rows.stop_ids[row, : len(sampling.stop_ids)] = sampling.stop_ids
        if request.shaped:
            self._begin(row, request.bias)

    def prefill(self, chunk: Chunk, *, scored: bool) -> list[Score]:
        """Compute a chunk of a prompt; the scores of the tokens that follow each of its own."""
        sequence, start, end = chunk.sequence, chunk.start, chunk.start + chunk.count
        adapter = int(self.rows.adapter[sequence.row])
        x = self._prefill(sequence.prompt[start:end], start, chunk.size, sequence.pages, adapter)
        if not scored:
            return []
        return self._score(x, sequence.prompt[start + 1 : end + 1])

    def draw(self, drawing: Sequence[Draw], steps: int) -> list[Result]:
        """Draw up to `steps` tokens for each; one step only where there are drafts or grammars."""
        rows, places = Rows(*(values.copy() for values in self.rows)), []
        rows.length[:], rows.limit[:], rows.table[:] = 1, 0, 0
        own = [_row_of(draw) for draw in drawing]
        free = iter(sorted(set(range(self.layout.rows)) - set(own)))
        for draw, row in zip(drawing, own, strict=True):
            place = [row, *(next(free) for _ in draw.drafts)]
            self._set(rows, draw, place)
            places.append(place)
        # What a row wanted that idles now would be work for all.
        active = rows.limit > 0
        rows.temperature[~active], rows.scored[~active], rows.shaped[~active] = 0, False, False
        highest = max(max(place) for place in places)
        drawn = self._draw(rows, next(n for n in self.row_counts if n > highest), steps)
        tokens, length = jax.device_get((drawn.tokens, drawn.length))
        scores = jax.device_get(drawn.scores) if np.any(rows.scored) else None
        results = []
        for draw, place in zip(drawing, places, strict=True):
            if draw.drafts:
                counted = agreed([int(tokens[0, row]) for row in place], draw.drafts)
                found = [(0, row) for row in place[:counted]]
            else:
                row = place[0]
                found = [(n, row) for n in range(int(length[row]) - draw.sequence.length)]
            scored = scores is not None and rows.scored[place[0]]
            results.append(
                Result(
                    [int(tokens[at]) for at in found],
                    [_read(scores, at) for at in found] if scored else [],
                )
            )
        return results

    def _set(self, rows: Rows, draw: Draw, place: Sequence[int]) -> None:
        """A sequence in its row, and its drafts in others, one position after another."""
        sequence = draw.sequence
        if draw.allowed is not None:
            rows.constrained[place[0]] = True
            self._allow(place[0], draw.allowed)
        for n, (row, token) in enumerate(zip(place, (draw.last, *draw.drafts), strict=True)):
            same = rows.seeds, rows.adapter, rows.temperature, rows.top_k, rows.top_p, rows.scored
            for values in same:
                values[row] = values[place[0]]
            if n:
                rows.shaped[row] = False
                rows.stop_ids[row] = -1
            rows.token[row], rows.length[row] = token, sequence.length + n
            rows.limit[row] = rows.length[row] + 1 if draw.drafts else sequence.limit
            rows.table[row, : len(sequence.pages)] = sequence.pages

    def _draw(self, rows: Rows, count: int, steps: int) -> Any:
        """The program for the first `count` rows."""
        some = Rows(*(values[:count] for values in rows))
        self.state, drawn = programs.draw_steps(
            self.w, self.state, some, self.vocab_limit, np.int32(steps), config=self.config
        )
        return drawn

    def _begin(self, row: int, bias: Any) -> Any:
        dense = np.zeros(self.config.vocab_size, np.float32)
        for token, value in bias.items():
            dense[token] = value
        self.state = programs.begin_row(self.state, np.int32(row), dense)
        return self.state.bias

    def _allow(self, row: int, allowed: UInt32[np.ndarray, " words"]) -> Any:
        """Tokens behind the last given word are not allowed."""
        words = np.zeros(programs.words_of(self.config.vocab_size), np.uint32)
        words[: len(allowed)] = allowed
        self.state = programs.allow(self.state, np.int32(row), words)
        return self.state.allowed

    def _prefill(
        self, tokens: Sequence[int], start: int, size: int, pages: Sequence[int], adapter: int
    ) -> Any:
        block, table = np.zeros((1, size), np.int32), np.zeros((1, self.layout.width), np.int32)
        block[0, : len(tokens)], table[0, : len(pages)] = tokens, pages
        self.state, x = programs.prefill(
            self.w, self.state, block, np.array([start], np.int32), table,
            np.array([adapter], np.int32), config=self.config,
        )  # fmt: skip
        return x

    def _score(self, x: Any, targets: Sequence[int]) -> list[Score]:
        padded = np.zeros(x.shape[1], np.int32)
        padded[: len(targets)] = targets
        scores = jax.device_get(
            programs.score(self.w, x, padded, self.vocab_limit, config=self.config)
        )
        return [_read(scores, (n,)) for n in range(len(targets))]


def _row_of(draw: Draw) -> int:
    assert draw.sequence.row is not None, "only what has a row draws"
    return draw.sequence.row


def _read(scores: Any, at: tuple[int, ...]) -> Score:
    """One token's, without what spells nothing."""
    pairs = zip(scores.top_ids[at].tolist(), scores.top_logp[at].tolist(), strict=True)
    return Score(float(scores.logp[at]), [(i, p) for i, p in pairs if p > -float("inf")])
