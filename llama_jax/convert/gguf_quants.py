"""The quantised block formats of ggml (ggml-quants.c): layout and dequantisation.

A row is cut into blocks of 32 or 256 numbers. A block holds small integers, and the scales (and
offsets, in some formats) that make numbers of them. Each function computes what ggml's C code does,
operation by operation in float32, so the numbers are its own bit by bit.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Shaped, UInt8

_ROWS_BYTES = 16 << 20
"""Of float32 made at a time: its intermediate arrays take several times as much."""
_IQ4 = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32
)
Blocks = Shaped[np.ndarray, " n"]
"""A structured array of the fields of each block."""
Numbers = Float32[np.ndarray, "n size"]


class Quant(NamedTuple):
    """One format."""

    size: int
    """Numbers in a block."""
    block: np.dtype
    """Its memory layout, as fields."""
    numbers: Callable[[Blocks], Numbers]


def _half(field: np.ndarray) -> Float32[np.ndarray, "n 1"]:
    return field.astype(np.float32)[:, None]


def _bits(packed: UInt8[np.ndarray, "n bytes"], width: int, run: int) -> UInt8[np.ndarray, "n all"]:
    """Integers of `width` bits: each run of bytes holds their lowest bits' integers first."""
    shifts = np.arange(0, 8, width, dtype=np.uint8)[:, None]
    parts = packed.reshape(len(packed), -1, 1, run) >> shifts
    return (parts & np.uint8((1 << width) - 1)).reshape(len(packed), -1)


def _high(packed: UInt8[np.ndarray, "n 4"]) -> UInt8[np.ndarray, "n 32"]:
    """The fifth bit of 32 integers, in its place."""
    return np.unpackbits(packed, axis=1, bitorder="little") << np.uint8(4)


def _signed(integers: UInt8[np.ndarray, "n all"], offset: int) -> Float32[np.ndarray, "n all"]:
    return (integers.astype(np.int8) - np.int8(offset)).astype(np.float32)


def _each(scales: np.ndarray, integers: np.ndarray, offsets: np.ndarray | None = None) -> Numbers:
    """Scale times integer, less an offset, for runs of integers that share both."""
    runs = integers.astype(np.float32, copy=False).reshape(*scales.shape, -1)
    product = scales[..., None] * runs
    if offsets is not None:
        product -= offsets[..., None]
    return product.reshape(len(integers), -1)


def _q4_0(b: Blocks) -> Numbers:
    return _half(b["d"]) * _signed(_bits(b["qs"], 4, 16), 8)


def _q4_1(b: Blocks) -> Numbers:
    return _half(b["d"]) * _bits(b["qs"], 4, 16).astype(np.float32) + _half(b["m"])


def _q5_0(b: Blocks) -> Numbers:
    return _half(b["d"]) * _signed(_bits(b["qs"], 4, 16) | _high(b["qh"]), 16)


def _q5_1(b: Blocks) -> Numbers:
    integers = _bits(b["qs"], 4, 16) | _high(b["qh"])
    return _half(b["d"]) * integers.astype(np.float32) + _half(b["m"])


def _q8_0(b: Blocks) -> Numbers:
    return b["qs"].astype(np.float32) * _half(b["d"])


def _q2_k(b: Blocks) -> Numbers:
    scales = _half(b["d"]) * (b["scales"] & 15).astype(np.float32)
    offsets = _half(b["dmin"]) * (b["scales"] >> 4).astype(np.float32)
    return _each(scales, _bits(b["qs"], 2, 32), offsets)


def _q3_k(b: Blocks) -> Numbers:
    low, high = b["scales"][:, :8], b["scales"][:, 8:]
    scales = _bits(low, 4, 8) | (_bits(high, 2, 4) << np.uint8(4))
    above = (_bits(b["hmask"], 1, 32) ^ np.uint8(1)) << np.uint8(2)  # a set bit takes nothing off
    integers = _bits(b["qs"], 2, 32).astype(np.int8) - above.astype(np.int8)
    return _each(_half(b["d"]) * _signed(scales, 32), integers)


def _scales_and_offsets(b: Blocks) -> tuple[np.ndarray, np.ndarray]:
    """The 8 scales and 8 offsets of Q4_K and Q5_K: six bits each in 12 bytes."""
    first, second, both = (b["scales"][:, i : i + 4] for i in (0, 4, 8))
    scales = [first & 63, (both & 15) | ((first >> 2) & 48)]
    offsets = [second & 63, (both >> 4) | ((second >> 2) & 48)]
    return (
        _half(b["d"]) * np.hstack(scales).astype(np.float32),
        _half(b["dmin"]) * np.hstack(offsets).astype(np.float32),
    )


def _q4_k(b: Blocks) -> Numbers:
    scales, offsets = _scales_and_offsets(b)
    return _each(scales, _bits(b["qs"], 4, 32), offsets)


def _q5_k(b: Blocks) -> Numbers:
    scales, offsets = _scales_and_offsets(b)
    integers = _bits(b["qs"], 4, 32) | (_bits(b["qh"], 1, 32) << np.uint8(4))
    return _each(scales, integers, offsets)


def _q6_k(b: Blocks) -> Numbers:
    scales = _half(b["d"]) * b["scales"].astype(np.float32)
    integers = _bits(b["ql"], 4, 64) | (_bits(b["qh"], 2, 32) << np.uint8(4))
    return _each(scales, _signed(integers, 32))


def _iq4_nl(b: Blocks) -> Numbers:
    return _half(b["d"]) * _IQ4[_bits(b["qs"], 4, 16)]


def _iq4_xs(b: Blocks) -> Numbers:
    high = (b["scales_h"][:, None] >> np.arange(0, 16, 2, dtype=np.uint16)).astype(np.uint8)
    low = _bits(b["scales_l"], 4, 1)
    scales = _signed(low | ((high & np.uint8(3)) << np.uint8(4)), 32)
    return _each(_half(b["d"]) * scales, _IQ4[_bits(b["qs"], 4, 16)])


def _quant(size: int, numbers: Callable[[Blocks], Numbers], *fields: tuple) -> Quant:
    return Quant(size, np.dtype(list(fields)), numbers)


def _u8(name: str, count: int) -> tuple:
    return name, np.uint8, (count,)


_D, _M, _DMIN = ("d", "<f2"), ("m", "<f2"), ("dmin", "<f2")
QUANTS: dict[str, Quant] = {
    "Q4_0": _quant(32, _q4_0, _D, _u8("qs", 16)),
    "Q4_1": _quant(32, _q4_1, _D, _M, _u8("qs", 16)),
    "Q5_0": _quant(32, _q5_0, _D, _u8("qh", 4), _u8("qs", 16)),
    "Q5_1": _quant(32, _q5_1, _D, _M, _u8("qh", 4), _u8("qs", 16)),
    "Q8_0": _quant(32, _q8_0, _D, ("qs", np.int8, (32,))),
    "Q2_K": _quant(256, _q2_k, _u8("scales", 16), _u8("qs", 64), _D, _DMIN),
    "Q3_K": _quant(256, _q3_k, _u8("hmask", 32), _u8("qs", 64), _u8("scales", 12), _D),
    "Q4_K": _quant(256, _q4_k, _D, _DMIN, _u8("scales", 12), _u8("qs", 128)),
    "Q5_K": _quant(256, _q5_k, _D, _DMIN, _u8("scales", 12), _u8("qh", 32), _u8("qs", 128)),
    "Q6_K": _quant(
        256, _q6_k, _u8("ql", 128), _u8("qh", 64), ("scales", np.int8, (16,)), _D
    ),
    "IQ4_NL": _quant(32, _iq4_nl, _D, _u8("qs", 16)),
    "IQ4_XS": _quant(256, _iq4_xs, _D, ("scales_h", "<u2"), _u8("scales_l", 4), _u8("qs", 128)),
}  # fmt: skip
"""By ggml's names. IQ1 to IQ3, which look their numbers up in tables of vectors, are not
supported."""


@dataclass(frozen=True)
class Dequantized:
    """A float32 matrix [out, in] of blocks, dequantised when it is indexed with slices."""

    blocks: Any
    """Structured [out, blocks in a row]."""
    quant: Quant

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the matrix."""
        rows, blocks = self.blocks.shape
        return rows, blocks * self.quant.size

    @property
    def dtype(self) -> Any:
        """float32, the dtype in which ggml computes the numbers too."""
        return np.dtype(np.float32)

    def __getitem__(self, index: Any) -> np.ndarray:
        index = index if isinstance(index, tuple) else (index,)
        rows, columns = [slice(None) if cut is ... else cut for cut in (*index, ..., ...)][:2]
        size = self.quant.size
        start, stop, _ = columns.indices(self.shape[1])
        first, last = start // size, -(-stop // size)
        blocks = self.blocks[rows, first:last]  # no more than the slices touch
        inside = slice(start - first * size, stop - first * size)
        out = np.empty((len(blocks), max(stop - start, 0)), np.float32)
        if not out.size:
            return out
        step = max(_ROWS_BYTES // (4 * size * (last - first)), 1)
        for i in range(0, len(blocks), step):
            part = blocks[i : i + step]
            with np.errstate(invalid="ignore", over="ignore"):  # what is not finite stays so
                numbers = self.quant.numbers(np.ascontiguousarray(part).reshape(-1))
            out[i : i + step] = numbers.reshape(len(part), -1)[:, inside]
        return out
