"""Block sizes per TPU generation, found with the schedule tool (llama_jax/tpu/schedule.py).

Plain data: generation -> sizes, a default that fits the smallest VMEM, and the check that turns
sizes that cannot work into an error before anything is compiled.
"""

import dataclasses

import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu

LANES = 128
HEAD_WIDTHS = (64, 128)
DTYPES = ("bfloat16", "float32")
MiB = 1 << 20
# VMEM that a kernel may plan with, bytes. Physical: 16 MiB on v4, 64 on v5p, 128 on v5e and v6e
# (jax/_src/tpu_info.py); the rest is left to what XLA prefetches for its neighbours.
VMEM = {"v4": 16 * MiB, "v5e": 64 * MiB, "v5p": 40 * MiB, "v6e": 64 * MiB}
# Register spills and compiler temporaries, as a share of what a kernel asks for itself.
HEADROOM = 1.2


@dataclasses.dataclass(frozen=True)
class BlockSizes:
    """Tile of the score matrix, in tokens."""

    block_q: int
    """Queries of a tile."""
    block_kv: int
    """Keys of a tile."""
    sub: int
    """Queries that one straight-line piece of a tile handles; divides block_q."""

    def __post_init__(self):
        for name in ("block_q", "block_kv", "sub"):
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


# (forward, backward).
TUNED = {
    "v4": (BlockSizes(1024, 1024, 256), BlockSizes(512, 512, 256)),
    "v5e": (BlockSizes(1024, 1024, 256), BlockSizes(1024, 1024, 256)),
    "v5p": (BlockSizes(1024, 1024, 256), BlockSizes(1024, 1024, 256)),
    "v6e": (BlockSizes(1024, 1024, 256), BlockSizes(1024, 1024, 256)),
}
SAFE = (BlockSizes(512, 512, 256), BlockSizes(512, 512, 256))
# Packed documents of a few hundred tokens leave most of a large tile unseen.
SEGMENTED = (BlockSizes(512, 512, 256), BlockSizes(512, 512, 256))


def generation() -> str:
    """ "v4", "v5e", "v5p" or "v6e" of the mesh in scope or the default device; "" elsewhere."""
    try:
        name = pltpu.get_tpu_info().chip_version.value
    except (ValueError, RuntimeError, NotImplementedError):
        return ""
    return name if name in VMEM else ""


def forward_bytes(sizes: BlockSizes, chunk: int, H: int, itemsize: int, buffers: int) -> int:
    """VMEM that the forward kernel asks for: blocks and scratch; K and V have `buffers` each."""
    H = max(H, LANES)
    queries, keys = sizes.block_q * H, chunk * H
    blocks = itemsize * (6 * queries + 2 * buffers * keys) + 2 * 4 * 5 * 8 * sizes.block_q
    scratch = itemsize * queries + 4 * (sizes.block_kv * sizes.block_q + queries)
    return blocks + scratch + 4 * 3 * 8 * sizes.block_q


def backward_bytes(sizes: BlockSizes, chunk: int, H: int, itemsize: int, buffers: int) -> int:
    """VMEM that the backward kernel asks for; dk and dv have `buffers` each. dq may be float32."""
    H = max(H, LANES)
    queries, keys = sizes.block_q * H, chunk * H
    blocks = itemsize * (4 * queries + (4 + 2 * buffers) * keys) + 2 * 4 * queries
    scratch = 3 * itemsize * queries + 4 * (queries + 2 * keys)
    tile = sizes.block_kv * sizes.sub * (4 + 2 * itemsize)
    return blocks + scratch + tile + 2 * 4 * 4 * 8 * sizes.block_q


def choose(
    T: int, S: int, dtype, segmented: bool, generation: str
) -> tuple[BlockSizes, BlockSizes]:
    """Forward and backward sizes for T queries and S keys, no larger than they need."""
    forward, backward = TUNED.get(generation, SAFE)
    if segmented:
        forward, backward = SEGMENTED
    # float32 products take six passes of the matrix unit: small tiles keep it busy.
    if jnp.dtype(dtype) == jnp.float32:
        forward = backward = BlockSizes(256, 512, 256)
    return _clip(forward, T, S), _clip(backward, T, S)


def _clip(sizes: BlockSizes, T: int, S: int) -> BlockSizes:
    def fit(block, length):
        return min(block, -(-length // LANES) * LANES)

    block_q, sub = fit(sizes.block_q, T), sizes.sub
    while block_q % sub:
        sub -= LANES
    return BlockSizes(block_q, fit(sizes.block_kv, S), sub)


def chunk_of(
    sizes: BlockSizes, S: int, H: int, itemsize: int, bytes_of, limit: int
) -> tuple[int, int]:
    """Keys held in VMEM at a time, and buffers of what spans them.

    All of S if they fit, were it with one buffer, whose copies once a head nothing hides; else the
    fewest equal chunks that fit with two. Raises ValueError if not even one tile fits.
    """

    def fits(sizes, chunk, buffers):
        return bytes_of(sizes, chunk, H, itemsize, buffers) * HEADROOM <= limit

    tiles = -(-S // sizes.block_kv)
    for chunks in range(1, tiles + 1):
        chunk = -(-tiles // chunks) * sizes.block_kv
        for buffers in (2, 1) if chunks == 1 else (2,):
            if fits(sizes, chunk, buffers):
                return chunk, buffers
    needed = bytes_of(sizes, sizes.block_kv, H, itemsize, 2) * HEADROOM
    near = sizes
    while near.block_q > LANES or near.block_kv > LANES:
        q, kv = (max(LANES, block // 2 // LANES * LANES) for block in (near.block_q, near.block_kv))
        near = BlockSizes(q, kv, LANES)
        if fits(near, near.block_kv, 2):
            break
    raise ValueError(
        f"{sizes} at {H=} needs {needed / MiB:.1f} MiB of VMEM, more than {limit / MiB:.1f}; "
        f"the nearest that fits is block_q={near.block_q}, block_kv={near.block_kv}"
    )
