"""Speculative decoding with a draft model that shares the target model's random keys.

The small model's pages lie beside the large one's and go by the same tables, so that nothing is
managed twice. A sequence's tokens are put into them when it first asks for guesses, and what was
drawn without guesses when it asks again. The same noise makes both models choose alike wherever
their distributions are close, when sampling as well as greedily.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from llama_jax.config import ModelConfig, require
from llama_jax.infer.engine.device import Device, Draw
from llama_jax.infer.engine.programs import STEPS
from llama_jax.infer.engine.request import Request
from llama_jax.infer.engine.scheduler import Chunk, Layout, Scheduled


class Wanted(NamedTuple):
    """Guesses for one sequence."""

    sequence: Scheduled
    """It has a row, and pages for one token more than are guessed."""
    tokens: Sequence[int]
    """Its tokens so far."""
    most: int
    """How many to guess, at least one."""


class DraftModel:
    """A second model on the device.

    Args:
      w: what `model.cache.prepare` made of its parameters.
      layout: the engine's own.
      vocab_limit: the engine's own.
    """

    def __init__(self, w: dict[str, Any], *, config: ModelConfig, layout: Layout, vocab_limit: int):
        require(
            config.vocab_size >= vocab_limit,
            f"the draft model has {config.vocab_size} tokens, fewer than the {vocab_limit} of the "
            "model that it guesses for: use one with the same tokenizer",
        )
        self.context, self.layout = config.max_seq_len, layout
        self._device = Device(w, config, layout, vocab_limit)
        self._held: list[list[int]] = [[] for _ in range(layout.rows)]
        """The tokens of each row that are in the pages, wrong guesses included."""

    def warm_up(self, tell: Callable[[int, int, str], None]) -> None:
        """Compile everything there is."""
        self._device.warm_up(lambda n, total, what: tell(n, total, f"the draft model's {what}"))

    def begin(self, row: int, request: Request) -> None:
        """Give a row to a request."""
        self._device.begin(row, request)
        self._held[row] = []

    def clear(self) -> None:
        """Forget all sequences: what the device held is lost."""
        self._device.clear()
        self._held = [[] for _ in self._held]

    def propose(self, wanted: Sequence[Wanted]) -> list[list[int]]:
        """The tokens that the model would draw next for each; none where its context ends."""
        drafts: list[list[int]] = [[] for _ in wanted]
        # One more is drawn than is guessed: so the last guess is in the pages if it was right.
        ends = [min(len(one.tokens) + one.most + 1, self.context) for one in wanted]
        open_ = [n for n, one in enumerate(wanted) if len(one.tokens) < ends[n]]
        for n in open_:
            self._catch_up(wanted[n])
        while open_:
            results = self._device.draw(
                [_draw(wanted[n], drafts[n], ends[n]) for n in open_], STEPS
            )
            for n, result in zip(open_, results, strict=True):
                drafts[n] += result.tokens
                self._held[_row(wanted[n])] = [*wanted[n].tokens, *drafts[n][:-1]]
            # Fewer than STEPS are drawn at the end, and behind the end of a text.
            open_ = [
                n
                for n, result in zip(open_, results, strict=True)
                if len(result.tokens) == STEPS and len(wanted[n].tokens) + len(drafts[n]) < ends[n]
            ]
        return [found[: one.most] for found, one in zip(drafts, wanted, strict=True)]

    def _catch_up(self, one: Wanted) -> None:
        """Put all tokens but the last into the pages, over guesses that were wrong."""
        row, chunks, missing = _row(one), self.layout.chunks, one.tokens[:-1]
        pairs = enumerate(zip(self._held[row], missing, strict=False))
        agreed = min(len(self._held[row]), len(missing))
        start = next((n for n, (held, token) in pairs if held != token), agreed)
        sequence = replace(one.sequence, prompt=one.tokens)
        while start < len(missing):
            size = next((c for c in chunks if c >= len(missing) - start), chunks[-1])
            count = min(size, len(missing) - start)
            self._device.prefill(Chunk(sequence, start, count, size), scored=False)
            start += count


def _draw(one: Wanted, drafts: Sequence[int], end: int) -> Draw:
    """The sequence and its guesses so far, which goes on up to `end` tokens."""
    length = len(one.tokens) + len(drafts)
    return Draw(replace(one.sequence, length=length, limit=end), (drafts or one.tokens)[-1])


def _row(one: Wanted) -> int:
    assert one.sequence.row is not None, "only what has a row draws"
    return one.sequence.row
