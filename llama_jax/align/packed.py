"""Packs several short texts into one row, so that models process less padding.

Prompts with answers fill a third of a row or less, since a row has room for the longest. Segment
ids keep the texts apart, so a token's outputs equal those that it would have in a row of its own.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from llama_jax.data.packing import best_fit

SHARES = 8
"""A block of rows shrinks in steps of an eighth, which bounds the number of compiled shapes."""


class Packing(NamedTuple):
    """The mapping of the tokens of R rows into P rows, all of T tokens."""

    at: Int[np.ndarray, "R T"]
    """Index into the tokens of all P rows, -1 for padding."""
    segments: Int[np.ndarray, " R"]
    """The number of each text in its new row, from 1."""
    rows: int
    """P."""

    def pack(self, rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Arrays [R,T] as [P,T], 0 at padding; `segment_ids` separate the texts of a row.

        Values at padding positions are lost.
        """
        inside = self.at >= 0
        segments = np.broadcast_to(self.segments[:, None], self.at.shape)
        packed = {}
        for name, a in rows.items():
            flat = np.zeros(self.rows * a.shape[1], a.dtype)
            flat[self.at[inside]] = (segments if name == "segment_ids" else a)[inside]
            packed[name] = flat.reshape(self.rows, a.shape[1])
        return packed

    def unpack(self, a: np.ndarray) -> np.ndarray:
        """An array [P,T] as [R,T], 0 at padding."""
        return np.where(self.at >= 0, a.reshape(-1)[self.at], np.zeros((), a.dtype))


def packing(segment_ids: Int[np.ndarray, "R T"], multiple: int = 1) -> Packing:
    """Packs the texts at the beginning of each of R rows by best fit, into as few eighths of R as
    hold them.

    P is a multiple of `multiple`, which R must be, too.
    """
    R, T = segment_ids.shape
    if R % multiple:
        raise ValueError(f"{R} rows are not a multiple of {multiple}")
    lengths = np.sum(segment_ids > 0, axis=1)
    texts = np.flatnonzero(lengths)
    bins = best_fit(lengths[texts].tolist(), T)
    at, segments = np.full((R, T), -1), np.zeros(R, np.int32)
    for row, contents in enumerate(bins):
        used = row * T
        for segment, text in enumerate(texts[contents], 1):
            length = lengths[text]
            at[text, :length] = np.arange(used, used + length)
            segments[text] = segment
            used += length
    step = -(-R // (SHARES * multiple)) * multiple
    return Packing(at, segments, min(R, max(step, -(-len(bins) // step) * step)))
