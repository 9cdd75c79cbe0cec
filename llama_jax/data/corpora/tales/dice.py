"""Random choices of one record, and the combinations that are held out."""

import hashlib
from collections.abc import Sequence
from random import Random

from llama_jax.config import require

SPLITS = ("train", "validation")
HOLD_OUT = 16
"""One in this many combinations of wishes belongs to the validation split."""


class Dice:
    """The choices of record `index` of a stream: a pure function of (stream, index, split, seed).

    Only `Random.random` is used: Python promises its sequence for a seed in every version.
    """

    def __init__(self, stream: int, index: int, split: str, seed: int = 0):
        require(split in SPLITS, f"split={split!r} is unknown; splits are {', '.join(SPLITS)}")
        self.validation = split == SPLITS[1]
        number = (((seed << 8) + stream) << 41) + (index << 1) + self.validation
        self.random = Random(number).random

    def chance(self, p: float) -> bool:
        """True with probability p."""
        return self.random() < p

    def pick[X](self, options: Sequence[X]) -> X:
        """One of the options."""
        return options[int(self.random() * len(options))]

    def other[X](self, options: Sequence[X], than: X) -> X:
        """One of the options, except the given one."""
        return self.pick([option for option in options if option != than])

    def weighted[X](self, options: Sequence[tuple[X, float]]) -> X:
        """One of the options, each with its weight."""
        left = self.random() * sum(weight for _, weight in options)
        for option, weight in options:
            left -= weight
            if left < 0:
                return option
        return options[-1][0]

    def draws(self, count: int) -> tuple[float, ...]:
        """A list of random numbers in [0, 1)."""
        return tuple([self.random() for _ in range(count)])

    def admits(self, combination: str) -> bool:
        """Whether a combination belongs to this record's split."""
        return held_out(combination) == self.validation


def held_out(combination: str) -> bool:
    """Whether a combination is kept for validation: a hash of its text decides."""
    digest = hashlib.blake2b(combination.encode(), digest_size=8).digest()
    return int.from_bytes(digest) % HOLD_OUT == 0
