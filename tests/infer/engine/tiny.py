"""An engine's sizes, requests to it, and what came of them."""

from llama_jax.infer.engine.request import Request
from llama_jax.infer.engine.scheduler import Layout
from llama_jax.infer.sampling_params import SamplingParams

LAYOUT = Layout(rows=3, num_pages=16, page=4, chunks=(4, 8), budget=8, max_len=48, fewer_rows=(1,))


class Heard:
    """What listeners were told, by ticket."""

    def __init__(self):
        self.pieces = {}

    def __call__(self, ticket, piece):
        self.pieces.setdefault(ticket, []).append(piece)

    def all_ended(self, tickets):
        """Whether the last pieces came."""
        return all(self.pieces.get(t) and self.pieces[t][-1].finish for t in tickets)

    def result(self, ticket):
        pieces = self.pieces[ticket]
        assert [p.finish is None for p in pieces] == [True] * (len(pieces) - 1) + [False]
        return (
            [token for p in pieces for token in p.tokens],
            [score for p in pieces for score in p.scores],
            [score for p in pieces for score in p.prompt_scores],
            pieces[-1].finish,
        )


def request(prompt, new=6, *, temperature=0.0, top_k=0, top_p=1.0, stop_ids=(), **rest):
    sampling = SamplingParams(
        max_new_tokens=new, temperature=temperature, top_k=top_k, top_p=top_p, stop_ids=stop_ids
    )
    return Request(prompt=tuple(prompt), sampling=sampling, **rest)


def alone(engine, wanted):
    """The result of a request that has the engine, and no prefix, for itself."""
    engine.scheduler.pool.forget()
    heard = Heard()
    (ticket,) = together(engine, [wanted], heard)
    return heard.result(ticket)


def together(engine, wanted, heard):
    """The tickets of requests that came at once, when all are answered."""
    tickets = engine.submit(wanted, heard)
    while not engine.idle:
        engine.step()
    return tickets


def all_free(engine):
    return engine.idle and engine.scheduler.pool.held == 0 and engine.waiting == 0
