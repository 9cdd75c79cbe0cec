"""The engine: one thread that owns the device, serving requests from any other thread.

A cycle admits what fits, computes chunks of prompts, draws for all rows, and tells who listens. The
scheduler decides, the programs compute, and nothing else touches either.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from llama_jax.config import ModelConfig, require
from llama_jax.infer.engine import programs
from llama_jax.infer.engine.device import Device, Draw, Result
from llama_jax.infer.engine.draft_model import DraftModel, Wanted
from llama_jax.infer.engine.drafts import Proposer, from_the_text
from llama_jax.infer.engine.request import Busy, Finish, Grammar, Piece, Request, Score
from llama_jax.infer.engine.scheduler import Chunk, Layout, Scheduled, Scheduler
from llama_jax.model.by_row import Adapter, with_adapters
from llama_jax.model.cache import inference_config

logger = logging.getLogger(__name__)
CALL_SECONDS = 0.05
"""Rows draw several tokens in one call while that takes no longer: others wait meanwhile."""
SECOND_FAILURE_SECONDS = 60.0


@dataclass(eq=False)
class Ticket:
    """A request that was taken."""

    request: Request
    listen: Callable[["Ticket", Piece], None]
    """Called by the engine's thread, and must not block."""
    sequence: Scheduled
    taken: float = field(default_factory=time.monotonic)
    begun: float | None = None
    """When it got a row."""
    prompt_scores: list[Score] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    """The prompt and what was drawn."""
    grammar: Grammar | None = None
    """The grammar that the answer keeps to."""

    @property
    def cached_tokens(self) -> int:
        """Tokens of the prompt that were in the cache already."""
        return self.sequence.cached


@dataclass
class Totals:
    """Counters of the engine's work since its start."""

    prompt_tokens: int = 0
    generation_tokens: int = 0
    chunks: int = 0
    draws: int = 0
    """Steps of all rows together."""
    drafted: int = 0
    """Tokens that were guessed."""
    accepted: int = 0
    """Guesses that were right."""
    failures: int = 0


class Engine:
    """Continuous batching over a paged cache for one model.

    If it is made with a mesh in context, it works on that mesh; see `programs`.

    Args:
      w: what `model.cache.prepare` made of the parameters.
      vocab_limit: ids from here on spell nothing and are never drawn.
      queue: requests that may wait; more are refused.
      drafts: tokens that are guessed for each sequence where rows idle; 0 for none.
      propose: guesses them, from the text alone.
      draft_model: guesses them instead.
      adapters: of this model, which requests name by their numbers, from 1.
    """

    def __init__(
        self,
        w: dict[str, Any],
        *,
        config: ModelConfig,
        layout: Layout,
        vocab_limit: int | None = None,
        queue: int = 64,
        drafts: int = 0,
        propose: Proposer = from_the_text,
        draft_model: DraftModel | None = None,
        adapters: Sequence[Adapter] = (),
    ):
        require(layout.max_len <= config.max_seq_len, f"{layout.max_len=} exceeds the context")
        self.config, self.layout, self.queue = config, layout, queue
        self.drafts, self.propose, self.draft_model = drafts, propose, draft_model
        limit = config.vocab_size if vocab_limit is None else vocab_limit
        if adapters:
            w = with_adapters(w, adapters, inference_config(config).dtype)
        self._device = Device(w, config, layout, limit, len(adapters))
        self.adapters = len(adapters)
        self.totals = Totals()
        self.beat = time.monotonic()
        """When the thread that owns the device moved last."""
        self.longest = 0.0
        """The most seconds between two moves while there was work."""
        self.broken = False
        """Whether the device failed twice, or the thread ended: nothing works any more."""
        self.compiled: programs.CompileCounter | None = None
        """Counts what is compiled after the warm-up."""
        self.scheduler = Scheduler(layout)
        self._tickets: dict[Scheduled, Ticket] = {}
        self._inbox: deque[tuple[str, Ticket]] = deque()
        self._queued = 0
        self._wake = threading.Condition()
        self._ending = False
        self._thread: threading.Thread | None = None
        self._failed_at = -float("inf")
        self._step_seconds = 0.0

    # ---- From any thread

    def submit(
        self, requests: Sequence[Request], listen: Callable[[Ticket, Piece], None]
    ) -> list[Ticket]:
        """Take requests, all or none. A prompt that several of them have is computed once.

        Raises:
          InputError: a request can never run.
          Busy: the queue is full.
        """
        tickets: list[Ticket] = []
        first: dict[tuple[Any, ...], Scheduled] = {}
        for request in requests:
            request.check(self.config)
            require(
                0 <= request.adapter <= self.adapters,
                f"adapter={request.adapter} is out of range: the engine has {self.adapters}",
            )
            alike = tuple(request.prompt), request.prefix_scope
            sequence = Scheduled(
                prompt=request.prompt,
                limit=min(request.limit(self.config), self.layout.max_len),
                scope=request.prefix_scope,
                reuse=not request.prompt_scored,
                after=first.get(alike),
            )
            if alike not in first or request.prompt_scored:  # the others tell its scores
                first[alike] = sequence
            self.scheduler.check(sequence)
            grammar = None if request.grammar is None else request.grammar()
            tokens = list(request.prompt)
            tickets.append(Ticket(request, listen, sequence, tokens=tokens, grammar=grammar))
        with self._wake:
            if self._queued + len(tickets) > self.queue:
                raise Busy(f"{self._queued} requests are waiting, of {self.queue} at most")
            self._queued += len(tickets)
            self._inbox.extend(("submit", ticket) for ticket in tickets)
            self._wake.notify()
        return tickets

    def cancel(self, ticket: Ticket) -> None:
        """End a request; its row and its pages are free before the next step."""
        with self._wake:
            self._inbox.append(("cancel", ticket))
            self._wake.notify()

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return self._queued

    @property
    def running(self) -> int:
        """Requests that have a row."""
        return len(self.scheduler.running)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._inbox and self.scheduler.idle

    def start(self) -> None:
        """Work in a thread of its own, until `stop`."""
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread after the cycle that runs; what is not finished stays so."""
        with self._wake:
            self._ending = True
            self._wake.notify()
        if self._thread is not None:
            self._thread.join()

    # ---- From the thread that owns the device

    def warm_up(self, tell: Callable[[int, int, str], None] = lambda *_: None) -> None:
        """Compile everything there is; `tell` hears which of how many programs comes next."""
        self.longest = self._device.warm_up(tell)
        if self.draft_model is not None:
            self.draft_model.warm_up(tell)
        self.compiled = programs.CompileCounter()
        self.beat = time.monotonic()

    def step(self) -> None:
        """One cycle."""
        self.beat = time.monotonic()
        try:
            self._read_inbox()
            plan = self.scheduler.plan()
            with self._wake:
                self._queued -= len(plan.admitted)
            for sequence in plan.admitted:
                self._admit(self._tickets[sequence])
            for chunk in plan.chunks:
                self._prefill(chunk)
                self._moved()
            ready = [s for s in self.scheduler.running.values() if s.prefilled]
            for sequence in [s for s in ready if s.length >= s.limit]:
                self._tell(self._tickets[sequence], [], [], "length")
                ready.remove(sequence)
            if ready:
                self._draw(ready, self._steps() if plan.alone else 1)
        except Exception as error:
            self._fail(error)
        self._moved()

    def _moved(self) -> None:
        now = time.monotonic()
        self.beat, self.longest = now, max(self.longest, now - self.beat)

    def _run(self) -> None:
        try:
            with self._device.on_mesh():
                while not self.broken:
                    with self._wake:
                        while self.idle and not self._ending:
                            self._wake.wait(1.0)
                            self.beat = time.monotonic()
                        if self._ending:
                            return
                    self.step()
        finally:
            # Whatever ended it: who watches must see that nothing will move again.
            self.broken = self.broken or not self._ending

    def _read_inbox(self) -> None:
        while self._inbox:
            what, ticket = self._inbox.popleft()
            if what == "submit":
                self._tickets[ticket.sequence] = ticket
                self.scheduler.submit(ticket.sequence)
            elif not ticket.sequence.ended:
                self._tell(ticket, [], [], "cancelled")

    def _admit(self, ticket: Ticket) -> None:
        ticket.begun = time.monotonic()
        sequence = ticket.sequence
        assert sequence.row is not None
        self._device.begin(sequence.row, ticket.request)
        if self.draft_model is not None:
            self.draft_model.begin(sequence.row, ticket.request)
        self.totals.prompt_tokens += len(sequence.prompt)

    def _prefill(self, chunk: Chunk) -> None:
        ticket = self._tickets[chunk.sequence]
        ticket.prompt_scores += self._device.prefill(chunk, scored=ticket.request.prompt_scored)
        self.scheduler.filled(chunk)
        self.totals.chunks += 1

    def _steps(self) -> int:
        most = CALL_SECONDS / self._step_seconds if self._step_seconds else 1
        return int(min(max(most, 1), programs.STEPS))

    def _draw(self, ready: list[Scheduled], steps: int) -> None:
        begin = time.perf_counter()
        drawing = self._with_drafts(ready)
        if not drawing:
            return
        single = any(draw.drafts or draw.allowed is not None for draw in drawing)
        results = self._device.draw(drawing, 1 if single else steps)
        taken = 1 if single else max(len(result.tokens) for result in results)
        self._step_seconds = (time.perf_counter() - begin) / taken
        self.totals.draws += taken
        for draw, result in zip(drawing, results, strict=True):
            sequence, ticket = draw.sequence, self._tickets[draw.sequence]
            tokens, scores = self._until_stop(ticket, result)
            self.totals.drafted += len(draw.drafts)
            self.totals.accepted += len(tokens) - 1 if draw.drafts else 0
            self.scheduler.drawn(sequence, len(tokens))
            ticket.tokens += tokens
            self.totals.generation_tokens += len(tokens)
            finish = None if ticket.grammar is None else ticket.grammar.take(tokens[-1])
            if tokens[-1] in ticket.request.sampling.stop_ids:
                finish = "stop"
            elif finish is None and sequence.length >= sequence.limit:
                finish = "length"
            self._tell(ticket, tokens, scores, finish)

    def _with_drafts(self, ready: list[Scheduled]) -> list[Draw]:
        """What draws, with guesses for as many rows as idle. A sequence whose grammar has no answer
        ends here."""
        drawing: list[Draw] = []
        free = self.layout.rows - len(ready)
        wanted: dict[int, Wanted] = {}
        for sequence in ready:
            ticket, allowed = self._tickets[sequence], None
            if ticket.grammar is not None and (allowed := ticket.grammar.allowed()) is None:
                self._tell(ticket, [], [], "stuck")
                continue
            # One step draws a token after each guess, and none may lie beyond the limit.
            most = min(self.drafts, free, sequence.limit - sequence.length - 1)
            drafts: Sequence[int] = ()
            if most > 0 and allowed is None and not ticket.request.shaped:
                if self.draft_model is None:
                    drafts = list(self.propose(ticket.tokens, most))[:most]
                    free -= len(drafts)
                else:
                    wanted[len(drawing)] = Wanted(sequence, ticket.tokens, most)
                    free -= most
            drawing.append(Draw(sequence, ticket.tokens[-1], drafts, allowed))
        if self.draft_model is not None and wanted:
            guessed = self.draft_model.propose([*wanted.values()])
            for n, drafts in zip(wanted, guessed, strict=True):
                drawing[n] = drawing[n]._replace(drafts=drafts)
        return drawing

    @staticmethod
    def _until_stop(ticket: Ticket, result: Result) -> Result:
        """Without what was drawn behind a token that ends the sequence."""
        stops = ticket.request.sampling.stop_ids
        end = next((n for n, t in enumerate(result.tokens, 1) if t in stops), len(result.tokens))
        return Result(result.tokens[:end], result.scores[:end])

    def _tell(
        self, ticket: Ticket, tokens: list[int], scores: list[Score], finish: Finish | None
    ) -> None:
        """Give a listener its piece; a finished sequence has no row and no pages any more then."""
        if finish is not None:
            if ticket.sequence.row is None:
                with self._wake:
                    self._queued -= 1
            self.scheduler.end(ticket.sequence)
            del self._tickets[ticket.sequence]
        prompt_scores, ticket.prompt_scores = ticket.prompt_scores, []
        ticket.listen(ticket, Piece(tokens, scores, prompt_scores, finish))

    def _fail(self, error: Exception) -> None:
        """The requests that have rows fail; the others begin with an empty cache. A second failure
        within a minute is one too many."""
        logger.error("the device failed: %s", str(error).splitlines()[0] if str(error) else error)
        logger.debug("", exc_info=error)
        now, before = time.monotonic(), self._failed_at
        self._failed_at, self.totals.failures = now, self.totals.failures + 1
        self.broken = now - before < SECOND_FAILURE_SECONDS
        lost = list(self._tickets) if self.broken else list(self.scheduler.running.values())
        for sequence in lost:
            self._tell(self._tickets[sequence], [], [], "failed")
        self.scheduler.pool.forget()
        if not self.broken:
            self._device.clear()
            if self.draft_model is not None:
                self.draft_model.clear()
