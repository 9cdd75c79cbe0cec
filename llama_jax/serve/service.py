"""Connects HTTP requests to the engine: jobs in, streams of its output back.

The engine's thread only puts news into the queues of the event loop, and never waits for a reader.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

from llama_jax.config import InputError
from llama_jax.infer.engine.engine import Engine, Ticket
from llama_jax.infer.engine.request import Busy, Piece
from llama_jax.serve.errors import ApiError, invalid, retry_later
from llama_jax.serve.job import Job, Served
from llama_jax.serve.metrics import Metrics
from llama_jax.serve.replies import Choice, Delta, Reply
from llama_jax.serve.settings import Settings

STALLED_SECONDS, MOST_SECONDS = 10.0, 300.0
"""A device that says nothing for so long, and for five of its longest cycles, is not healthy; nor
is one that says nothing for the second."""
UNAVAILABLE = "service_unavailable"
News = tuple[Ticket, Piece]


def _ending() -> ApiError:
    return retry_later(503, "The server is shutting down.", UNAVAILABLE, "draining", 10)


class Service:
    """One model that answers, once `engine` is set."""

    def __init__(self, settings: Settings, served: Served):
        self.settings, self.served = settings, served
        self.metrics = Metrics(settings.name)
        self.engine: Engine | None = None
        self.draining = False
        self.open: set[asyncio.Queue] = set()
        """The news of requests that are being answered."""

    def require_ready(self) -> Engine:
        """The engine. Raises ApiError 503 while there is none, or none for new requests."""
        if self.draining:
            self.metrics.refused["draining"] += 1
            raise _ending()
        if self.engine is None:
            raise retry_later(503, "The model is loading.", UNAVAILABLE, "loading", 5)
        if self.engine.broken:
            raise ApiError(500, "The device has failed.", kind="server_error")
        return self.engine

    @property
    def healthy(self) -> bool:
        """Whether the engine's thread lives and moves."""
        engine = self.engine
        if engine is None:
            return True
        patience = max(STALLED_SECONDS, min(5 * engine.longest, MOST_SECONDS))
        return not engine.broken and time.monotonic() - engine.beat < patience

    @property
    def ready(self) -> bool:
        """Whether a request would be taken."""
        engine = self.engine
        free = engine is not None and engine.waiting < self.settings.queue
        return free and not self.draining and self.healthy

    @contextlib.contextmanager
    def answering(self, job: Job, reply: Reply) -> Iterator[AsyncIterator[tuple[Choice, Delta]]]:
        """The news of all choices as they come, until each has ended.

        However the block ends, by an exception or because the reader is gone, the engine is free
        of the job then. Raises ApiError 429 for a full queue; the iterator 504 when the time is
        over, 503 when the server ends, and 500 if the device fails.
        """
        engine = self.require_ready()
        news: asyncio.Queue[News | None] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def listen(ticket: Ticket, piece: Piece) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended, and the server with it
                loop.call_soon_threadsafe(news.put_nowait, (ticket, piece))

        tickets = self._submit(engine, job, listen)
        reading = dict(zip(tickets, reply.choices, strict=True))
        self.open.add(news)
        try:
            yield self._news(engine, news, reading, reply)
        finally:
            self.open.remove(news)
            for ticket in reading:
                engine.cancel(ticket)
                self.metrics.finished["abort"] += 1

    def end_all(self) -> None:
        """End what is still being answered."""
        for news in self.open:
            news.put_nowait(None)

    async def _news(
        self, engine: Engine, news: asyncio.Queue, reading: dict[Ticket, Choice], reply: Reply
    ) -> AsyncIterator[tuple[Choice, Delta]]:
        begun, said = time.monotonic(), {}
        while reading:
            found = await self._next(news, begun + self.settings.deadline_seconds)
            if found is None:
                raise _ending()
            ticket, piece = found
            choice = reading.get(ticket)
            if choice is None:
                continue
            if piece.finish == "stuck":
                raise invalid("response_format", "has a schema that is too complex to follow")
            if piece.finish in ("failed", "cancelled"):
                raise ApiError(500, "The answer could not be finished.", kind="server_error")
            self._time(piece, ticket, said, begun)
            delta = choice.take(piece)
            if delta.finish is not None:
                del reading[ticket]
                if piece.finish is None:
                    engine.cancel(ticket)
                self._count(ticket, choice, reply)
            yield choice, delta
        self.metrics.observe("e2e_request_latency_seconds", time.monotonic() - begun)

    def _submit(self, engine: Engine, job: Job, listen: Any) -> list[Ticket]:
        """Tickets of all prompts' answers, or none."""
        answers, queue = sum(map(len, job.requests)), self.settings.queue
        if answers > queue:
            raise invalid(
                "prompt" if job.best_of == 1 else "n" if job.best_of == job.n else "best_of",
                f"asks for {answers} answers at once, and the queue of this server holds {queue}: "
                "ask for fewer, or start the server with a larger --queue",
            )
        try:
            return engine.submit([one for group in job.requests for one in group], listen)
        except Busy as error:
            self.metrics.refused["queue_full"] += 1
            raise retry_later(
                429, f"The queue is full: {error}.", "rate_limit_error", "queue_full", 1
            ) from error
        except InputError as error:
            raise ApiError(400, f"{error}", code="invalid_value") from error

    async def _next(self, news: asyncio.Queue, deadline: float) -> News | None:
        try:
            async with asyncio.timeout(max(deadline - time.monotonic(), 0)):
                return await news.get()
        except TimeoutError as error:
            seconds = self.settings.deadline_seconds
            raise ApiError(
                504, f"The answer took more than {seconds:g} seconds.", kind="timeout",
                code="timeout",
            ) from error  # fmt: skip

    def _time(self, piece: Piece, ticket: Ticket, said: dict[Ticket, float], begun: float) -> None:
        now = time.monotonic()
        if piece.tokens and ticket in said:
            each = (now - said[ticket]) / len(piece.tokens)
            for _ in piece.tokens:
                self.metrics.observe("inter_token_latency_seconds", each)
        elif piece.tokens:
            self.metrics.observe("time_to_first_token_seconds", now - begun)
        if piece.tokens:
            said[ticket] = now

    def _count(self, ticket: Ticket, choice: Choice, reply: Reply) -> None:
        self.metrics.finished[choice.finish or ""] += 1
        self.metrics.observe("request_prompt_tokens", len(choice.prompt.ids))
        self.metrics.observe("request_generation_tokens", choice.tokens)
        if ticket.begun is not None:
            self.metrics.observe("request_queue_time_seconds", ticket.begun - ticket.taken)
        if ticket.request.sample == 0:
            reply.cached += ticket.cached_tokens

    def metrics_text(self) -> str:
        """For Prometheus."""
        engine = self.engine
        if engine is None:
            return self.metrics.text({}, {})
        pool, totals = engine.scheduler.pool, engine.totals
        assert engine.compiled is not None
        gauges = {
            "num_requests_running": engine.running,
            "num_requests_waiting": engine.waiting,
            "kv_cache_usage_perc": pool.held / pool.size,
            "pages_free": pool.available,
        }
        counters = {
            "prompt_tokens": totals.prompt_tokens,
            "generation_tokens": totals.generation_tokens,
            "prefix_cache_queries": engine.scheduler.queried,
            "prefix_cache_hits": engine.scheduler.hits,
            "num_preemptions": 0,
            "spec_decode_num_draft_tokens": totals.drafted,
            "spec_decode_num_accepted_tokens": totals.accepted,
            "draw_steps": totals.draws,
            "device_failures": totals.failures,
            "compilations_after_warmup": engine.compiled.count,
        }
        return self.metrics.text(gauges, counters)
