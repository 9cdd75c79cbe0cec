"""Matrices kept as groups of int8 with one scale each: value = scale * int8.

llama2.c's version 2 and GGUF's Q8_0 both quantise symmetrically to -127..127; they differ in the
size of a group, the type of its scale, and where the scales lie.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Int8

_CHUNK = 1 << 16  # groups that are worked on at a time


@dataclass(frozen=True)
class Dequantized:
    """A float32 matrix [out, in], dequantised when it is indexed with slices."""

    values: Any
    """int8 [groups, group size]: the matrix in C order."""
    scales: Any
    """[groups], in a floating-point dtype."""
    shape: tuple[int, int]

    @property
    def dtype(self) -> Any:
        """float32: what the products are rounded to, as in the programs that read such files."""
        return np.dtype(np.float32)

    def __getitem__(self, index: Any) -> np.ndarray:
        index = index if isinstance(index, tuple) else (index,)
        cuts = [slice(None) if cut is ... else cut for cut in (*index, ..., ...)]
        start, stop, _ = cuts[0].indices(self.shape[0])
        size, width = self.values.shape[1], self.shape[1]
        first, last = start * width // size, -(-stop * width // size)  # groups may cross rows
        with np.errstate(invalid="ignore", over="ignore"):  # what is not finite stays so
            product = self.values[first:last] * self.scales[first:last, None].astype(np.float32)
        flat = product.reshape(-1)[start * width - first * size :]
        return flat[: max(stop - start, 0) * width].reshape(-1, width)[:, cuts[1]]


def quantize(
    rows: Float32[np.ndarray, "out in"], size: int
) -> tuple[Int8[np.ndarray, "groups size"], Float32[np.ndarray, " groups"]]:
    """Groups of `size` neighbours in C order, each rounded to multiples of a 127th of its largest.

    Values that were dequantised from such groups come back as the same int8 and the same scales: in
    float32 (w / 127 * 127) / 127 == w / 127 for every w (a test tries every mantissa).
    """
    groups = rows.reshape(-1, size)
    values = np.empty(groups.shape, np.int8)
    scales = np.empty(len(groups), np.float32)
    for start in range(0, len(groups), _CHUNK):
        part = groups[start : start + _CHUNK]
        scale = np.abs(part).max(axis=1) / np.float32(127)
        scales[start : start + _CHUNK] = scale
        scale[scale == 0] = 1  # groups of zeros
        values[start : start + _CHUNK] = np.rint(part / scale[:, None])
    return values, scales
