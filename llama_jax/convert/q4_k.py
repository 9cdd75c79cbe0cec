"""Quantises to ggml's Q4_K: blocks of 256 numbers, with a scale and an offset for each 32.

    x ~ d s q - dmin m      q: 4 bits; s and m: 6 bits for each 32; d and dmin: float16 for a block

Scale and offset of 32 numbers are those with the least squared error, larger numbers weighing
more, among the fits that a few first guesses of the scale lead to, each above the best offset so
far: the search of `make_qkx2_quants` in ggml-quants.c, step by step, so that the bytes are those of
llama.cpp's own quantiser.
"""

import numpy as np
from jaxtyping import Float32, UInt8

from llama_jax.convert.gguf_quants import QUANTS

SIZE, PART = 256, 32
GUESSES = np.float32(0.1) * np.arange(21, dtype=np.float32) - 1
"""Offsets added to 15, the largest code, before it is divided by the range."""
LEAST = 1e-30
"""A smaller range counts as none: its scale would be 0 in float16."""
_AT_ONCE = 1 << 14
"""Parts worked on together: their candidates take 21 times as much memory."""


def quantize(rows: Float32[np.ndarray, "n inputs"]) -> UInt8[np.ndarray, "n bytes"]:
    """The blocks of each row; `inputs` is a multiple of 256, and all numbers are finite."""
    n = len(rows)
    x = rows.reshape(-1, PART)
    fits = [_fit(np.ascontiguousarray(x[i : i + _AT_ONCE].T)) for i in range(0, len(x), _AT_ONCE)]
    scale, offset = (np.concatenate(each).reshape(-1, 8) for each in zip(*fits, strict=True))
    d, s = _six_bits(scale)
    dmin, m = _six_bits(offset)
    step = (d[:, None].astype(np.float32) * s)[..., None]
    below = (dmin[:, None].astype(np.float32) * m)[..., None]
    numbers = x.reshape(-1, 8, PART) + below
    codes = np.rint(np.divide(numbers, step, out=np.zeros_like(numbers), where=step > 0))
    q = np.clip(codes, 0, 15).astype(np.uint8)
    block = np.zeros(len(q), QUANTS["Q4_K"].block)
    block["d"], block["dmin"] = d, dmin
    block["scales"] = np.hstack(
        [
            s[:, :4] | (s[:, 4:] >> 4) << 6,
            m[:, :4] | (m[:, 4:] >> 4) << 6,
            (s[:, 4:] & 15) | (m[:, 4:] & 15) << 4,
        ]
    )
    block["qs"] = (q[:, ::2] | q[:, 1::2] << 4).reshape(len(q), -1)
    return block.view(np.uint8).reshape(n, -1)


def _six_bits(values: Float32[np.ndarray, "n 8"]) -> tuple[np.ndarray, UInt8[np.ndarray, "n 8"]]:
    """A float16 for each block, and the multiples of the number that it was rounded from that are
    nearest to the values."""
    largest = values.max(axis=1)
    unit = (largest / 63).astype(np.float16)
    inverse = np.divide(63, largest, out=np.zeros_like(largest), where=unit > 0)
    return unit, np.clip(np.rint(inverse[:, None] * values), 0, 63).astype(np.uint8)


def _fit(x: Float32[np.ndarray, "32 n"]) -> tuple[np.ndarray, np.ndarray]:
    """Scale and offset, both at least 0, of each column; sums go down it one by one, as in C."""
    weight = np.sqrt(np.sum(x * x, axis=0) / PART) + np.abs(x)
    low, most = np.minimum(x.min(axis=0), 0), x.max(axis=0)
    some = most - low > LEAST

    def inverse(steps, low):
        return steps / np.where(most - low > LEAST, most - low, 1)

    def codes_of(inverse, low):
        return np.clip(np.rint(inverse * (x - low)), 0, 15)

    def error(scale, low, codes):
        return np.sum(weight * (scale * codes + low - x) ** 2, axis=0)

    first = inverse(np.float32(15), low)
    scale = np.where(some, 1 / first, 0)
    best = error(scale, low, codes_of(first, low))
    sum_w, sum_x = np.sum(weight, axis=0), np.sum(weight * x, axis=0)
    for guess in GUESSES:
        codes = codes_of(inverse(guess + 15, low), low)  # above the best offset so far
        weighed = weight * codes
        sum_l, sum_l2, sum_xl = (np.sum(a, axis=0) for a in (weighed, weighed * codes, weighed * x))
        det = sum_w * sum_l2 - sum_l * sum_l
        sound = (det > 0) & some
        safe = np.where(sound, det, 1)
        fitted = (sum_w * sum_xl - sum_x * sum_l) / safe
        start = (sum_l2 * sum_x - sum_l * sum_xl) / safe
        # An offset is only ever subtracted: above 0 it is left out, and the scale fitted alone.
        alone = sum_xl / np.where(sum_l2 > 0, sum_l2, 1)
        fitted, start = np.where(start > 0, alone, fitted), np.minimum(start, 0)
        found = error(fitted, start, codes)
        better = sound & (found < best) & (fitted > 0)
        best = np.where(better, found, best)
        scale, low = np.where(better, fitted, scale), np.where(better, start, low)
    return scale.astype(np.float32), (0 - low).astype(np.float32)  # no -0
