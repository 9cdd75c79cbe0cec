"""Sampling settings: how tokens are drawn, and when an answer ends."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any

from llama_jax.config import require


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """Settings of a sampler; see `ops.sampling.sampling_logits`. Raises InputError if out of
    range."""

    max_new_tokens: int
    """Maximum number of tokens of an answer, EOS included; the end of the context may come
    first."""
    temperature: float = 1.0
    """Divides the logits; 0 takes the most probable token."""
    top_k: int = 0
    """Sample from the K most probable tokens; 0 for all."""
    top_p: float = 1.0
    """Sample from the fewest tokens whose probability reaches this; 1 for all."""
    stop_ids: tuple[int, ...] = ()
    """Tokens that end an answer."""
    vocab_limit: int | None = None
    """Ids from here on are padding rows of the model's table, and never sampled; None for no
    limit."""

    def __post_init__(self):
        count(self.max_new_tokens, "max_new_tokens", 0, "the most tokens to draw")
        count(self.top_k, "top_k", 0, "a number of tokens to draw from, 0 for all")
        check_temperature(self.temperature)
        require(
            _is_a(Real, self.top_p) and 0 < self.top_p <= 1,
            f"top_p={self.top_p!r} is out of range: use a number in (0, 1], where 1 turns it off",
        )

    def for_vocabulary(self, pieces: int, eos_id: int) -> "SamplingParams":
        """The same for a tokenizer: EOS ends an answer too, and only its pieces are sampled."""
        stop_ids = tuple(dict.fromkeys((*self.stop_ids, eos_id)))
        return replace(self, stop_ids=stop_ids, vocab_limit=pieces)


def count(value: Any, name: str, low: int, what: str) -> None:
    """Raise InputError unless the value is a whole number, `low` to 2^31 - 1."""
    require(
        _is_a(Integral, value) and low <= value < 2**31,
        f"{name}={value!r:.40} is out of range: use a whole number from {low} up, {what}",
    )


def check_temperature(value: Any) -> None:
    """Raise InputError unless the value is a number from 0 up, and finite."""
    require(
        _is_a(Real, value) and 0 <= value < float("inf"),
        f"temperature={value!r:.40} is out of range: use a number from 0 (greedy) up",
    )


def check_seeds(seeds: Sequence[Any], where: str) -> None:
    """Raise InputError unless the seeds are whole numbers from 0 to 2^32 - 1."""
    for seed in seeds:
        require(
            _is_a(Integral, seed) and 0 <= seed < 2**32,
            f"{where}={seed!r:.40} is out of range: use a whole number from 0 to 4294967295",
        )


def _is_a(kind: type, value: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)
