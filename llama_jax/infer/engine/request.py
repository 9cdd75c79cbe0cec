"""Requests to the engine and its answers: values passed between threads."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt32

from llama_jax.config import InputError, ModelConfig, require
from llama_jax.infer.decode_loop import check_prompts
from llama_jax.infer.engine.programs import STOPS
from llama_jax.infer.sampling_params import SamplingParams, check_seeds

Finish = Literal["stop", "length", "cancelled", "failed", "stuck"]
"""`stuck`: the parser of its grammar gave up."""


@runtime_checkable
class Grammar(Protocol):
    """The state of one answer in a grammar that it must keep to."""

    def allowed(self) -> UInt32[np.ndarray, " words"] | None:
        """One bit for each token that may come next, the lowest of a word first; None if there is
        no telling."""
        ...

    def take(self, token: int) -> Finish | None:
        """Go on by a token; how the answer ends if nothing can follow it."""
        ...


class Busy(InputError):
    """The queue is full: the same request may be taken later."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One continuation of one prompt."""

    prompt: Sequence[int]
    """Token ids, at least one."""
    sampling: SamplingParams
    seed: int = 0
    sample: int = 0
    """Which of the answers to the same prompt and seed: each draws for itself, and the first as if
    it were the only one."""
    presence_penalty: float = 0.0
    """Subtracted once from the logits of tokens that were drawn before."""
    frequency_penalty: float = 0.0
    """Subtracted as often as they were drawn."""
    bias: Mapping[int, float] = field(default_factory=dict)
    """Added to the logits of tokens."""
    grammar: Callable[[], Grammar] | None = None
    """Makes the grammar that the answer keeps to."""
    scored: bool = False
    """Whether log-probabilities of what is drawn are wanted."""
    prompt_scored: bool = False
    """And of the prompt's tokens. Their pages are then computed even where they are known."""
    adapter: int = 0
    """Number of the engine's adapter that answers; 0 for the model itself."""
    scope: bytes = b""
    """Prefixes of prompts are shared with requests of the same scope, and with no others."""

    @property
    def shaped(self) -> bool:
        """Whether something acts on the logits."""
        return bool(self.bias or self.presence_penalty or self.frequency_penalty)

    @property
    def prefix_scope(self) -> bytes:
        """`scope` for this adapter alone: the keys and values of a prompt are others with it."""
        return self.scope + (b"\0adapter %d" % self.adapter if self.adapter else b"")

    def check(self, config: ModelConfig) -> None:
        """Raise InputError for what no engine could do with this model."""
        check_prompts([self.prompt], config)
        check_seeds([self.seed, self.sample], "seed")
        stops = self.sampling.stop_ids
        require(len(stops) <= STOPS, f"{len(stops)} stop tokens are more than {STOPS}")
        bad = next((t for t in self.bias if not 0 <= t < config.vocab_size), None)
        require(
            bad is None, f"a bias names token {bad}, outside the vocabulary of {config.vocab_size}"
        )

    def limit(self, config: ModelConfig) -> int:
        """Tokens at which it ends: as many as asked for, or the end of the context."""
        return min(len(self.prompt) + self.sampling.max_new_tokens, config.max_seq_len)


class Score(NamedTuple):
    """Log-probabilities of one token."""

    logp: float
    top: list[tuple[int, float]]
    """The most probable tokens with their log-probabilities, the largest first."""


class Piece(NamedTuple):
    """Progress of a request since the last piece."""

    tokens: list[int]
    """Drawn; a stop token at the end included."""
    scores: list[Score]
    """Scores of these tokens; empty if nobody asked."""
    prompt_scores: list[Score]
    """In the first piece, of the prompt's tokens but the first, where they are wanted."""
    finish: Finish | None
    """Set in the last piece."""
