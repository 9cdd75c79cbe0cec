"""An endless order of prompts that follows from the seed alone."""

from collections.abc import Sequence

import numpy as np

from llama_jax.data.conversations import EncodedPrompt

_GOLDEN = (5**0.5 - 1) / 2
"""Multiples of it, modulo 1, fill the unit interval evenly from the first few on."""


def prompt_order(shares: Sequence[float], seed: int, start: int, wanted: int) -> list[int]:
    """Numbers of the prompts at the places start..start+wanted of the order.

    `shares` gives how often each prompt is drawn, relative to the others. Prompts of one share,
    such as all those of a data set, come in a fresh permutation in each epoch; different shares are
    mixed so evenly that even short stretches have each in its proportion.
    """
    values, group = np.unique(np.asarray(shares, np.float64), return_inverse=True)
    members = [np.flatnonzero(group == g) for g in range(len(values))]
    weights = values * [len(m) for m in members]
    edges = np.cumsum(weights)[:-1] / weights.sum()
    places = np.arange(start + wanted)
    drawn = np.searchsorted(edges, places * _GOLDEN % 1.0, side="right")
    order = np.empty(wanted, np.int64)
    for g, own in enumerate(members):
        here = np.flatnonzero(drawn[start:] == g)
        if len(here):
            first = int(np.count_nonzero(drawn[:start] == g))
            order[here] = own[_permuted(len(own), [seed, g], first, len(here))]
    return order.tolist()


def sample_of(prompts: Sequence[EncodedPrompt], seed: int, count: int) -> list[EncodedPrompt]:
    """Up to `count` different prompts, in the proportions of their shares as far as these reach."""
    if count >= len(prompts):
        return list(prompts)
    shares = [p.share for p in prompts]
    count = wanted = min(count, sum(share > 0 for share in shares))
    while True:
        found = list(dict.fromkeys(prompt_order(shares, seed, 0, wanted)))
        if len(found) >= count:
            return [prompts[p] for p in found[:count]]
        wanted *= 2  # a small data set has been passed more than once


def _permuted(count: int, seed: Sequence[int], first: int, wanted: int) -> np.ndarray:
    """Entries first..first+wanted of one permutation of 0..count after another."""
    epochs = range(first // count, (first + wanted - 1) // count + 1)
    orders = [np.random.default_rng([*seed, epoch]).permutation(count) for epoch in epochs]
    begin = first - epochs[0] * count
    return np.concatenate(orders)[begin : begin + wanted]
