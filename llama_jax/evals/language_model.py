"""The text interface that benchmarks need from a model; a table of answers can implement it too."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable


class Request(NamedTuple):
    """A continuation and its context, whose likelihood is asked. A space between them may belong to
    either."""

    context: str
    continuation: str


class Likelihood(NamedTuple):
    """Likelihood of a continuation."""

    logp: float
    """Nats."""
    greedy: bool
    """Whether each of its tokens is the most likely one."""
    tokens: int


class Answer(NamedTuple):
    """A text that a model wrote."""

    text: str
    """Up to the first stop text, which is left out."""
    cut: bool
    """Whether the context ended before the answer did."""


@dataclass(frozen=True, kw_only=True)
class Writing:
    """Settings for sampling answers."""

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    samples: int = 1
    until: tuple[str, ...] = ()
    chat: bool = False
    """Whether to send the prompt as a user message."""


@runtime_checkable
class LanguageModel(Protocol):
    """A model that can be evaluated on tasks.

    Results are yielded as soon as they are known, in any order, with the number of the request;
    None for a request that is longer than the model's context, which is never cut.
    """

    def likelihoods(self, requests: Sequence[Request]) -> Iterator[tuple[int, Likelihood | None]]:
        """The likelihood of each request."""
        ...

    def rolling(self, texts: Sequence[str], stride: int) -> Iterator[tuple[int, Likelihood | None]]:
        """Likelihoods of whole texts, each from its beginning. A text longer than the context is
        read in overlapping windows: each predicts its last `stride` tokens, 0 for as many as
        fit."""
        ...

    def answers(
        self, prompts: Sequence[tuple[int, str]], writing: Writing
    ) -> Iterator[tuple[int, list[Answer] | None]]:
        """`writing.samples` answers to each of (seed, prompt)."""
        ...
