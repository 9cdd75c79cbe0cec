"""The text interface that benchmarks need from a model; a table of answers can implement it too."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable


class Request(NamedTuple):
    """How likely is a continuation after a context? A space between them belongs to either."""

    context: str
    continuation: str


class Likelihood(NamedTuple):
    """Of a continuation."""

    logp: float
    """Nats."""
    greedy: bool
    """Whether each of its tokens is the likeliest one."""
    tokens: int


class Answer(NamedTuple):
    """A text that a model wrote."""

    text: str
    """Up to the first of the texts that end it, which is left out."""
    cut: bool
    """Whether the end of the context came before the answer's."""


@dataclass(frozen=True, kw_only=True)
class Writing:
    """How answers are drawn."""

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    samples: int = 1
    until: tuple[str, ...] = ()
    chat: bool = False
    """Put the prompt as a user's message."""


@runtime_checkable
class LanguageModel(Protocol):
    """A model that tasks can be put to.

    Both give results as soon as they are there, in any order, by the number of the request; None
    for one that is longer than the model's context, which is never cut.
    """

    def likelihoods(self, requests: Sequence[Request]) -> Iterator[tuple[int, Likelihood | None]]:
        """Of each request."""
        ...

    def rolling(self, texts: Sequence[str], stride: int) -> Iterator[tuple[int, Likelihood | None]]:
        """Of whole texts, each from its beginning. One that is longer than the context is read in
        windows that overlap: each predicts its last `stride` tokens, 0 for as many as fit."""
        ...

    def answers(
        self, prompts: Sequence[tuple[int, str]], writing: Writing
    ) -> Iterator[tuple[int, list[Answer] | None]]:
        """`writing.samples` answers to each of (seed, prompt)."""
        ...
