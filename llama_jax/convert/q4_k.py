"""Numbers into ggml's Q4_K: 256 to a block, of which each 32 have a scale and an offset.

    x ~ d s q - dmin m      q: 4 bits; s and m: 6 bits for each 32; d and dmin: float16 for a block

Scale and offset of 32 numbers are those with the least squared error, larger numbers weighing
more, among the fits that a few first guesses of the scale lead to: the search of
`make_qkx2_quants` in ggml-quants.c.
"""

import numpy as np
from jaxtyping import Float32, UInt8

from llama_jax.convert.gguf_quants import QUANTS

SIZE, PART = 256, 32
GUESSES = np.arange(-1.0, 1.05, 0.1, dtype=np.float32)
"""Added to 15, the largest code, before it is divided by the range."""
_AT_ONCE = 1 << 14
"""Parts worked on together: their candidates take 21 times as much memory."""


def quantize(rows: Float32[np.ndarray, "n inputs"]) -> UInt8[np.ndarray, "n bytes"]:
    """The blocks of each row; `inputs` is a multiple of 256, and all numbers are finite."""
    n = len(rows)
    x = rows.reshape(-1, PART)
    fits = [_fit(x[i : i + _AT_ONCE]) for i in range(0, len(x), _AT_ONCE)]
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
    """A float16 for each block, and the multiples of it that are nearest to the values."""
    unit = (values.max(axis=1) / 63).astype(np.float16)
    wide = unit.astype(np.float32)[:, None]
    times = np.divide(values, wide, out=np.zeros_like(values), where=wide > 0)
    return unit, np.clip(np.rint(times), 0, 63).astype(np.uint8)


def _fit(x: Float32[np.ndarray, "n 32"]) -> tuple[np.ndarray, np.ndarray]:
    """Scale and offset, both at least 0, of each row."""
    weight = np.sqrt(np.mean(x * x, axis=1, keepdims=True)) + np.abs(x)
    low = np.minimum(x.min(axis=1), 0)
    span = x.max(axis=1) - low
    some = np.where(span > 0, span, 1)

    def error(scale, low, codes):
        return np.sum(weight * (scale[:, None] * codes + low[:, None] - x) ** 2, axis=1)

    def codes_of(inverse):
        return np.clip(np.rint(inverse[:, None] * (x - low[:, None])), 0, 15)

    best_scale, best_low = span / 15, low
    best = error(best_scale, best_low, codes_of(15 / some))
    sum_w, sum_x = np.sum(weight, axis=1), np.sum(weight * x, axis=1)
    for guess in GUESSES:
        codes = codes_of((15 + guess) / some)
        sum_l, sum_l2 = (np.sum(weight * codes**k, axis=1) for k in (1, 2))
        sum_xl = np.sum(weight * codes * x, axis=1)
        det = sum_w * sum_l2 - sum_l * sum_l
        sound = (det > 0) & (span > 0)
        safe = np.where(sound, det, 1)
        scale = (sum_w * sum_xl - sum_x * sum_l) / safe
        start = (sum_l2 * sum_x - sum_l * sum_xl) / safe
        # An offset is only ever subtracted: above 0 it is left out, and the scale fitted alone.
        alone = sum_xl / np.where(sum_l2 > 0, sum_l2, 1)
        scale, start = np.where(start > 0, alone, scale), np.minimum(start, 0)
        found = error(scale, start, codes)
        better = sound & (found < best) & (scale > 0)
        best = np.where(better, found, best)
        best_scale, best_low = (
            np.where(better, scale, best_scale),
            np.where(better, start, best_low),
        )
    return best_scale.astype(np.float32), -best_low.astype(np.float32)
