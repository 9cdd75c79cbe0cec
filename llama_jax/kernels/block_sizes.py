"""Block sizes per TPU generation, found with the schedule tool (llama_jax/tpu/schedule.py).

Plain data: generation -> sizes, a default that fits the smallest VMEM, and the check that turns
sizes that cannot work into an error before anything is compiled.
"""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp

LANES = 128
HEAD_WIDTHS = (64, 128)
DTYPES = ("bfloat16", "float32")
MiB = 1 << 20
# VMEM that a kernel may plan with, bytes. Physical: 16 MiB on v4, 64 on v5p and tpu7x, 128 on v5e
# and v6e (jax/_src/tpu_info.py); the rest is left to what XLA prefetches for its neighbours.
VMEM = {"v4": 16 * MiB, "v5e": 64 * MiB, "v5p": 40 * MiB, "v6e": 64 * MiB, "tpu7x": 40 * MiB}
# Register spills and compiler temporaries, as a share of what a kernel asks for itself.
HEADROOM = 1.15
# Queries that a step of the grid takes at most; more would only delay the first one.
SPAN = 4096


@dataclasses.dataclass(frozen=True)
class BlockSizes:
    """Tile of the score matrix, in tokens."""

    block_q: int
    """Queries of a tile."""
    block_kv: int
    """Keys of a tile."""
    sub: int
    """Queries of a piece of a tile, which straight-line code handles; divides block_q."""
    sub_kv: int = 256
    """Keys of a piece in the backward pass; the forward pass takes all of a tile's."""

    def __post_init__(self):
        for name in ("block_q", "block_kv", "sub", "sub_kv"):
            value = getattr(self, name)
            if value < LANES or value % LANES:
                raise ValueError(
                    f"{name}={value} must be a multiple of {LANES}; the nearest is "
                    f"{max(LANES, round(value / LANES) * LANES)}"
                )
        if self.block_q % self.sub:
            divisors = [d for d in range(LANES, self.block_q + 1, LANES) if self.block_q % d == 0]
            near = min(divisors, key=lambda d: abs(d - self.sub))
            raise ValueError(f"sub={self.sub} must divide block_q={self.block_q}; try {near}")


class Tuned(NamedTuple):
    """Forward and backward sizes for up to `keys` keys."""

    keys: int
    forward: BlockSizes
    backward: BlockSizes


def _tuned(keys: int, forward: tuple[int, int], backward: tuple[int, int, int]) -> Tuned:
    """Square tiles, which the causal triangle needs: (block, sub) and (block, sub, sub_kv)."""
    (block, sub), (block_b, *subs) = forward, backward
    return Tuned(keys, BlockSizes(block, block, sub), BlockSizes(block_b, block_b, *subs))


_ANY = 1 << 31
# Backward pieces are as wide as a matrix unit: 128 keys on v5, 256 on v6e. v4 has half the vector
# slots, and larger pieces spare additions.
_V5 = (_tuned(_ANY, (1024, 256), (1024, 256, 128)),)
_V6E = (
    _tuned(2048, (1024, 256), (1024, 256, 256)),
    _tuned(_ANY, (2048, 256), (1024, 256, 256)),
)
_V4 = (_tuned(_ANY, (1024, 128), (512, 256, 256)),)
# With half the width a tile's products are half as long, and what surrounds them weighs more.
_V5E_NARROW = (
    _tuned(2048, (1024, 128), (1024, 256, 256)),
    _tuned(_ANY, (2048, 128), (1024, 256, 256)),
)
_V5P_NARROW = (
    _tuned(2048, (1024, 128), (1024, 256, 128)),
    _tuned(_ANY, (2048, 128), (1024, 256, 128)),
)
_V6E_NARROW = (
    _tuned(2048, (1024, 256), (1024, 512, 256)),
    _tuned(_ANY, (2048, 256), (1024, 512, 256)),
)
# Generation -> head width -> rows for ever more keys. bfloat16, one document in a row.
TUNED = {
    "v4": {64: _V4, 128: _V4},
    "v5e": {64: _V5E_NARROW, 128: _V5},
    "v5p": {64: _V5P_NARROW, 128: _V5},
    "v6e": {64: _V6E_NARROW, 128: _V6E},
    "tpu7x": {64: _V6E_NARROW, 128: _V6E_NARROW},  # larger pieces win 4 % backward
}
# Fits the smallest VMEM at any length and width, in either dtype.
SAFE = _tuned(_ANY, (512, 256), (512, 256, 256))
# Packed documents of a few hundred tokens leave most of a large tile unseen: SAFE serves them. On
# v6e tiles of 512 win a tenth with documents of 256 tokens and lose three with long ones.
SEGMENTED = {"v6e": _tuned(_ANY, (1024, 256), (1024, 256, 256))}
# float32 products take six passes of the matrix unit: small tiles keep it busy.
FLOAT32 = Tuned(_ANY, BlockSizes(256, 512, 256), BlockSizes(256, 512, 256))


def generation() -> str:
    """A key of VMEM: that of the mesh in scope or the default device; "" if there is none."""
    from jax.experimental.pallas import tpu as pltpu  # 0.15 s, which only TPUs need to spend

    try:
        name = pltpu.get_tpu_info().chip_version.value
    except (ValueError, RuntimeError, NotImplementedError):
        return ""
    return next((known for known in (name, f"tpu{name}") if known in VMEM), "")


class Held(NamedTuple):
    """VMEM contents of one step of a kernel's grid, in tokens."""

    span: int
    """Queries, whole blocks."""
    chunk: int
    """Keys, whole blocks."""
    chunks: int
    """Number of chunks that S is cut into."""
    buffers: int
    """Number of buffers: of K and V forward, of dk and dv backward."""


def forward_bytes(sizes: BlockSizes, held: Held, H: int, itemsize: int) -> int:
    """VMEM that the forward kernel asks for: blocks and scratch."""
    H = max(H, LANES)
    queries, keys, block = held.span * H, held.chunk * H, sizes.block_q
    blocks = itemsize * (4 * queries + 2 * held.buffers * keys) + 2 * 4 * 3 * 8 * held.span
    scratch = itemsize * block * H + 4 * (sizes.block_kv * block + block * H)
    return blocks + scratch + 4 * 3 * 8 * block


def backward_bytes(sizes: BlockSizes, held: Held, H: int, itemsize: int) -> int:
    """VMEM that the backward kernel asks for."""
    H = max(H, LANES)
    queries, keys, block = held.span * H, held.chunk * H, sizes.block_q * H
    dq = queries * (itemsize if held.chunks == 1 else 4)
    blocks = itemsize * (4 * queries + (4 + 2 * held.buffers) * keys) + 2 * dq
    scratch = 3 * itemsize * block + 4 * (block + 2 * keys)
    tile = 2 * sizes.sub * sizes.sub_kv * (4 + 2 * itemsize)
    return blocks + scratch + tile + 2 * 4 * 4 * 8 * held.span


def choose(
    T: int, S: int, H: int, dtype, segmented: bool, generation: str
) -> tuple[BlockSizes, BlockSizes]:
    """Forward and backward sizes for T queries and S keys, no larger than necessary."""
    if jnp.dtype(dtype) == jnp.float32:
        row = FLOAT32
    elif segmented:
        row = SEGMENTED.get(generation, SAFE)
    else:
        rows = TUNED[generation][H] if generation in TUNED else (SAFE,)
        row = next(row for row in rows if row.keys >= S)
    return _clip(row.forward, T, S), _clip(row.backward, T, S)


def _clip(sizes: BlockSizes, T: int, S: int) -> BlockSizes:
    def fit(block, length):
        return min(block, -(-length // LANES) * LANES)

    block_q, sub = fit(sizes.block_q, T), sizes.sub
    while block_q % sub:
        sub -= LANES
    return BlockSizes(block_q, fit(sizes.block_kv, S), sub, sizes.sub_kv)


def hold(sizes: BlockSizes, T: int, S: int, H: int, itemsize: int, bytes_of, limit: int) -> Held:
    """VMEM contents of a kernel for T queries and S keys at a time.

    All of S if it fits, even with a single buffer, whose copies, once per head, nothing hides; else
    the fewest equal chunks that fit with two. Beside all of S, as many query blocks as divide T
    evenly. Raises ValueError if not even one tile fits.
    """

    def fits(held, sizes=sizes):
        return bytes_of(sizes, held, H, itemsize) * HEADROOM <= limit

    tiles, blocks = -(-S // sizes.block_kv), -(-T // sizes.block_q)
    for chunks in range(1, tiles + 1):
        chunk = -(-tiles // chunks) * sizes.block_kv
        for buffers in (2, 1) if chunks == 1 else (2,):
            spans = [
                Held(n * sizes.block_q, chunk, chunks, buffers)
                for n in range(1, blocks + 1 if chunks == 1 else 2)
                if blocks % n == 0 and (n == 1 or n * sizes.block_q <= SPAN)
            ]
            found = [held for held in spans if fits(held)]
            if found:
                return found[-1]
    smallest = Held(sizes.block_q, sizes.block_kv, tiles, 2)
    needed = bytes_of(sizes, smallest, H, itemsize) * HEADROOM
    near = sizes
    while near.block_q > LANES or near.block_kv > LANES:
        q, kv = (max(LANES, block // 2 // LANES * LANES) for block in (near.block_q, near.block_kv))
        near = BlockSizes(q, kv, LANES, LANES)
        if fits(Held(q, kv, -(-S // kv), 2), near):
            break
    raise ValueError(
        f"{sizes} at {H=} needs {needed / MiB:.1f} MiB of VMEM, more than {limit / MiB:.1f}; "
        f"the nearest that fits is block_q={near.block_q}, block_kv={near.block_kv}"
    )
