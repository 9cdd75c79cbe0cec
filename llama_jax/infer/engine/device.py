"""What the engine keeps on the device, and its programs as methods: plain values in and out.

Every input is made here, of the same shapes and types in the warm-up as later, so that nothing is
compiled afterwards.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from llama_jax.config import ModelConfig
from llama_jax.infer.engine import programs
from llama_jax.infer.engine.programs import STOPS, Rows
from llama_jax.infer.engine.request import Request, Score
from llama_jax.infer.engine.scheduler import Chunk, Layout, Scheduled


class Device:
    """The weights, the pages, and what each row wants."""

    def __init__(self, w: dict[str, Any], config: ModelConfig, layout: Layout, vocab_limit: int):
        self.w, self.config, self.layout = w, config, layout
        self.vocab_limit = np.int32(vocab_limit)
        self.clear()

    def clear(self) -> None:
        """Empty pages; no row wants anything."""
        B, layout = self.layout.rows, self.layout
        state = programs.new_state(
            self.config, rows=B, num_pages=layout.num_pages, page=layout.page
        )
        # Committed to a device from the beginning, as what programs make of loaded weights is: each
        # program would be compiled for both.
        place = jax.tree.leaves(self.w)[0].sharding
        alone = len(place.device_set) == 1
        self.state = jax.device_put(state, place) if alone else state
        self.rows = Rows(
            token=np.zeros(B, np.int32),
            length=np.ones(B, np.int32),
            limit=np.zeros(B, np.int32),
            table=np.zeros((B, layout.width), np.int32),
            seeds=np.zeros((B, 2), np.uint32),
            temperature=np.zeros(B, np.float32),
            top_k=np.zeros(B, np.int32),
            top_p=np.ones(B, np.float32),
            presence=np.zeros(B, np.float32),
            frequency=np.zeros(B, np.float32),
            shaped=np.zeros(B, bool),
            scored=np.zeros(B, bool),
            stop_ids=np.full((B, STOPS), -1, np.int32),
        )

    def warm_up(self, tell: Callable[[int, int, str], None]) -> None:
        """Compile everything there is; `tell` hears which of how many programs comes next."""
        sizes = self.layout.chunks
        total = 2 * len(sizes) + 2
        tell(1, total, "rows")
        jax.block_until_ready(self._begin(0, {}))
        for n, size in enumerate(sizes):
            tell(2 + 2 * n, total, f"prompts, {size} tokens at a time")
            x = jax.block_until_ready(self._prefill(range(size), 0, size, []))
            tell(3 + 2 * n, total, f"their log-probabilities, {size} at a time")
            self._score(x, [0] * size)
        tell(total, total, f"draws of {self.layout.rows} rows")
        self.draw({}, 1)

    def begin(self, row: int, request: Request) -> None:
        """Give a row to a request."""
        rows, sampling = self.rows, request.sampling
        rows.seeds[row] = request.seed, request.sample
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
        x = self._prefill(sequence.prompt[start:end], start, chunk.size, sequence.pages)
        if not scored:
            return []
        return self._score(x, sequence.prompt[start + 1 : end + 1])

    def draw(
        self, drawing: dict[int, tuple[Scheduled, int]], steps: int
    ) -> dict[int, tuple[list[int], list[Score]]]:
        """Draw up to `steps` tokens for rows, by their sequences and last tokens; each row's new
        tokens, with scores where it is scored."""
        rows = self.rows
        rows.length[:], rows.limit[:], rows.table[:] = 1, 0, 0
        for row, (sequence, last) in drawing.items():
            rows.token[row], rows.length[row] = last, sequence.length
            rows.limit[row] = sequence.limit
            rows.table[row, : len(sequence.pages)] = sequence.pages
        rows = rows._replace(
            scored=np.array([rows.scored[b] and b in drawing for b in range(len(rows.token))]),
            shaped=np.array([rows.shaped[b] and b in drawing for b in range(len(rows.token))]),
        )
        self.state, drawn = programs.draw_steps(
            self.w, self.state, rows, self.vocab_limit, np.int32(steps), config=self.config
        )
        tokens, length = jax.device_get((drawn.tokens, drawn.length))
        scores = jax.device_get(drawn.scores) if np.any(rows.scored) else None
        out = {}
        for row, (sequence, _) in drawing.items():
            count = int(length[row]) - sequence.length
            scored = scores is not None and rows.scored[row]
            out[row] = (
                tokens[:count, row].tolist(),
                [_read(scores, (n, row)) for n in range(count)] if scored else [],
            )
        return out

    def _begin(self, row: int, bias: Any) -> Any:
        dense = np.zeros(self.config.vocab_size, np.float32)
        for token, value in bias.items():
            dense[token] = value
        self.state = programs.begin_row(self.state, np.int32(row), dense)
        return self.state.bias

    def _prefill(self, tokens: Sequence[int], start: int, size: int, pages: Sequence[int]) -> Any:
        block, table = np.zeros((1, size), np.int32), np.zeros((1, self.layout.width), np.int32)
        block[0, : len(tokens)], table[0, : len(pages)] = tokens, pages
        self.state, x = programs.prefill(
            self.w, self.state, block, np.array([start], np.int32), table, config=self.config
        )
        return x

    def _score(self, x: Any, targets: Sequence[int]) -> list[Score]:
        padded = np.zeros(x.shape[1], np.int32)
        padded[: len(targets)] = targets
        scores = jax.device_get(
            programs.score(self.w, x, padded, self.vocab_limit, config=self.config)
        )
        return [_read(scores, (n,)) for n in range(len(targets))]


def _read(scores: Any, at: tuple[int, ...]) -> Score:
    """One token's, without what spells nothing."""
    pairs = zip(scores.top_ids[at].tolist(), scores.top_logp[at].tolist(), strict=True)
    return Score(float(scores.logp[at]), [(i, p) for i, p in pairs if p > -float("inf")])
