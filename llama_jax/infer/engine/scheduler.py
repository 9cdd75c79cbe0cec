"""Schedules sequences onto the engine's next step: plain Python, deterministic.

First come, first served: the sequence at the head of the queue gets a row as soon as one is free
and the pages exist for all that it may ever write, so that what is admitted always finishes and
nothing is preempted. A prompt is computed in chunks whose borders depend on the prompt alone, up to
a budget of tokens a step, and then its row draws with the others. The last token of a prompt is
left to the decoder, which so gives the first logits.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from llama_jax.config import require
from llama_jax.infer.engine.pages import PagePool, prefixes


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The fixed sizes that programs are compiled for."""

    rows: int
    """Sequences that are drawn together."""
    num_pages: int
    """Pages of the cache, the one that nobody owns included."""
    page: int
    """Positions of a page."""
    chunks: tuple[int, ...]
    """Positions of a prompt that are computed at once, ascending: the last for as long as it can be
    filled, then the smallest that holds the rest. The last is a multiple of `page`."""
    budget: int
    """Positions of prompts that are computed between two draws, at least one chunk."""
    max_len: int
    """Tokens of a sequence: the context."""
    fewer_rows: tuple[int, ...] = ()
    """Numbers of rows that have a program of their own, ascending, for when no more are busy."""
    kv: Literal["model", "int8"] = "model"
    """Type of the keys and values in the pages: the model's compute type, or int8."""

    def __post_init__(self):
        require(self.rows > 0, f"rows={self.rows} must be positive")
        require(
            self.chunks and self.chunks[0] > 0 and sorted(self.chunks) == list(self.chunks),
            f"chunks={self.chunks} must be positive and ascending",
        )
        require(
            self.num_pages > self.rows,
            f"num_pages={self.num_pages} must be more than rows={self.rows}: each holds one",
        )
        require(
            self.page > 0 and self.chunks[-1] % self.page == 0,
            f"the largest chunk, {self.chunks[-1]}, must be a multiple of page={self.page}",
        )

    @property
    def width(self) -> int:
        """Pages of a row's table: whole chunks of the longest sequence fit."""
        largest = self.chunks[-1]
        return -(-self.max_len // largest) * largest // self.page

    def pages_of(self, tokens: int) -> int:
        """Pages of a sequence of so many tokens; the last one drawn is never written."""
        return -(-max(tokens - 1, 1) // self.page)


@dataclass(eq=False, kw_only=True)
class Scheduled:
    """One prompt and its continuation."""

    prompt: Sequence[int]
    limit: int
    """Tokens at which it ends, prompt and continuation together."""
    scope: bytes = b""
    """Prefixes are shared within one scope."""
    reuse: bool = True
    """Whether pages that are known may stand for its prompt; false where the prompt is scored."""
    after: "Scheduled | None" = None
    """Another one with the same prompt, which computes it for both."""
    row: int | None = None
    pages: list[int] = field(default_factory=list)
    names: list[bytes] = field(default_factory=list)
    """Names of the prompt's whole pages."""
    done: int = 0
    """Positions of the prompt that are in the cache."""
    cached: int = 0
    """Number of these that were in the cache already."""
    length: int = 0
    """Tokens so far, from the moment it draws."""
    ended: bool = False

    @property
    def prefilled(self) -> bool:
        """Whether it can draw: all of the prompt but its last token is in the cache."""
        return self.done >= len(self.prompt) - 1


@dataclass(frozen=True)
class Chunk:
    """Positions start to start + count of a prompt, computed by the program for `size`."""

    sequence: Scheduled
    start: int
    count: int
    size: int


@dataclass(frozen=True)
class Plan:
    """One step: chunks of prompts, then draws."""

    admitted: list[Scheduled]
    chunks: list[Chunk]
    drawing: list[Scheduled]
    alone: bool
    """Whether nothing waits that a longer step would hold up."""


class Scheduler:
    """The queue, the rows and the pages."""

    def __init__(self, layout: Layout):
        self.layout = layout
        self.pool = PagePool(layout.num_pages)
        self.waiting: deque[Scheduled] = deque()
        self.running: dict[int, Scheduled] = {}
        self.queried = self.hits = 0
        """Tokens of prompts that were looked up, and that were found."""

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self.waiting and not self.running

    def check(self, sequence: Scheduled) -> None:
        """Raise InputError for a sequence that could never run."""
        length, limit, most = len(sequence.prompt), sequence.limit, self.layout.max_len
        require(0 < length <= limit <= most, f"{length} to {limit} tokens do not fit {most}")
        needed = self.layout.pages_of(limit)
        require(
            needed <= self.pool.size,
            f"a sequence of {limit} tokens takes {needed} pages and the cache has "
            f"{self.pool.size}: shorten it, or give the cache more pages",
        )

    def submit(self, sequence: Scheduled) -> None:
        """Queue a sequence that `check` takes."""
        sequence.names = prefixes(sequence.prompt[:-1], self.layout.page, sequence.scope)
        self.waiting.append(sequence)

    def end(self, sequence: Scheduled) -> None:
        """End a sequence, wherever it is; its row and its pages are free at once."""
        if sequence.ended:
            return
        sequence.ended = True
        if sequence.row is None:
            self.waiting.remove(sequence)
            return
        del self.running[sequence.row]
        self.pool.release(sequence.pages)
        sequence.row, sequence.pages = None, []

    def plan(self) -> Plan:
        """Admit what can be, and say what the next step does."""
        admitted = []
        while self.waiting and (row := self._admissible()) is not None:
            admitted.append(self._admit(self.waiting.popleft(), row))
        chunks = self._chunks()
        drawing = [s for s in self.running.values() if s.prefilled]
        filling = any(not s.prefilled for s in self.running.values())
        return Plan(admitted, chunks, drawing, not (filling or chunks or self.waiting))

    def _admissible(self) -> int | None:
        """The row for the head of the queue; None while it must wait."""
        head = self.waiting[0]
        row = next((r for r in range(self.layout.rows) if r not in self.running), None)
        leader = head.after
        if row is None or (leader is not None and not leader.ended and not leader.prefilled):
            return None
        known = self._known(head)
        new = self.layout.pages_of(head.limit) - len(known)
        return None if self.pool.lacking(known, new) else row

    def _known(self, sequence: Scheduled) -> list[int]:
        """Pages that hold whole chunks of its prompt: others could have been computed by another
        program than its own."""
        if not sequence.reuse:
            return []
        known = self.pool.known(sequence.names)
        return known[: len(known) - len(known) % (self.layout.chunks[-1] // self.layout.page)]

    def _admit(self, sequence: Scheduled, row: int) -> Scheduled:
        known = self._known(sequence)
        new = self.layout.pages_of(sequence.limit) - len(known)
        sequence.pages = self.pool.take(known, new)
        sequence.done = sequence.cached = len(known) * self.layout.page
        sequence.row, sequence.length = row, len(sequence.prompt)
        self.queried += len(sequence.prompt)
        self.hits += sequence.cached
        self.running[row] = sequence
        return sequence

    def _chunks(self) -> list[Chunk]:
        """Chunks of prompts up to the budget, at least one; those that came first, first."""
        chunks, spent = [], 0
        for sequence in self.running.values():
            start, end = sequence.done, len(sequence.prompt) - 1
            while start < end:
                size = self._size(end - start)
                if chunks and spent + size > self.layout.budget:
                    return chunks
                chunks.append(Chunk(sequence, start, min(size, end - start), size))
                start, spent = start + size, spent + size
        return chunks

    def _size(self, rest: int) -> int:
        return next((c for c in self.layout.chunks if c >= rest), self.layout.chunks[-1])

    def filled(self, chunk: Chunk) -> None:
        """A chunk was computed: its whole pages can be shared from now on."""
        sequence, page = chunk.sequence, self.layout.page
        if sequence.ended:
            return
        sequence.done = chunk.start + chunk.count
        if chunk.size == chunk.count == self.layout.chunks[-1]:
            for n in range(chunk.start // page, sequence.done // page):
                self.pool.publish(sequence.pages[n], sequence.names[n])

    def drawn(self, sequence: Scheduled, count: int) -> None:
        """A sequence has so many tokens more."""
        sequence.length += count
