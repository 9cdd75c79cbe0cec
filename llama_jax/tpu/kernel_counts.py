"""Visits of a kernel's regions, the bytes that it moves, and the products that it needs."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from llama_jax.kernels.decode_attention import heads_of_step
from llama_jax.tpu.copy_bytes import copied_bytes, pallas_call_of
from llama_jax.tpu.kernel_cases import DOCUMENT, LENGTHS, MODELS, Case, T, decode_call


def blocks_seen(block_q: int, block_kv: int) -> tuple[int, int]:
    """Numbers of causal blocks that are wholly and partly visible."""
    rows = range(T // block_q)
    whole = sum((i * block_q + 1) // block_kv for i in rows)
    return whole, sum(-(-(i + 1) * block_q // block_kv) for i in rows) - whole


class Visits(NamedTuple):
    """Numbers of visits of the parts of one compiled kernel."""

    name: str
    """Part of the kernel's name."""
    vector: list[int]
    """Visits of its vector regions."""
    loops: tuple[int, ...]
    """Steps of the grid and, where a step loops over them, query blocks."""


def visits(case: Case, spans: int = 1) -> list[Visits]:
    """Visits for each kernel that a case compiles, with the queries in this many spans.

    Counts are for one row of the batch and all heads, on one core.
    """
    N, K = MODELS[case.model]
    if case.direction == "decode":
        whole = sum(length // case.block_kv for length in LENGTHS)
        seen = sum(-(-length // case.block_kv) for length in LENGTHS)
        groups = K // heads_of_step(K)
        rows = len(LENGTHS) * groups
        # A block without a mask, the last one of a row, the output.
        counts = [groups * whole, groups * (seen - whole), rows]
        return [Visits("decode", counts, (rows * T // case.block_kv,))]
    n, m = T // case.block_q, T // case.block_kv
    whole, partly = blocks_seen(case.block_q, case.block_kv)
    if case.kernel == "ours":
        # Packed, blocks hold whole documents, so each sees its triangle alone: the loops over tiles
        # partly seen, wholly seen and partly seen again stay in the text and are not entered.
        packed = case.masks == "packed"
        starts, loops = N * spans, (N * spans, N * n)
        if case.direction == "forward" and packed:
            # Start in a triangle or a whole tile, loops, into the triangle, turn likewise, end.
            counts = [starts, 0, 0, 0, 0, 0, N * n - starts, 0, starts]
        elif case.direction == "forward":
            # Start likewise, the loop, into the triangle, turn, end.
            loop = N * (n - 1) * (n - 2) // 2
            counts = [N, starts - N, loop, N * (n - 1), N * n - starts, starts]
        else:
            # Reset dk and dv, load queries, loops, the triangle and dq, write dk and dv.
            tiles = [0, 0, 0] if packed else [N * n * (n - 1) // 2]
            # One query head a key head, all in one span: each start resets too, without a branch.
            load = [] if starts == K else [starts]
            counts = [K, *load, *tiles, N * n, K]
        name = "backward" if case.direction == "backward" else "flash_attention"
        return [Visits(name, counts, loops)]
    if case.kernel == "splash":
        seen, steps = N * (whole + partly), (N * n * m,)
        if case.direction == "forward":
            return [Visits("fwd", [N * n, seen, N * n], steps)]
        dkv = Visits("dkv", [K * m, seen, K * m], steps)
        return [Visits("dq", [N * n, seen, N * n], steps), dkv]
    # tokamax visits seen blocks only and has a body for each kind.
    steps = N * (whole + partly)
    if case.direction == "forward":
        return [Visits("fwd", [N * n, N * whole, N * partly, N * n], (steps,))]
    # Where a block is computed in pieces, dq is summed in scratch and then written.
    written = [steps] if case.inner < case.block_kv else []
    counts = [N * m, steps, N * whole, N * partly, *written, N * m]
    return [Visits("dkv", counts, (steps,))]


def hbm_bytes(case: Case) -> int:
    """Bytes read and written, each block as often as the kernel's order moves it."""
    N, K = MODELS[case.model]
    if case.direction == "decode":
        return sum(decode_traffic(case))
    one, row = 2 * T * case.head_dim, 4 * T
    if case.direction == "forward":
        return 2 * N * one + 2 * K * one + N * row
    return 3 * N * one + 4 * K * one + 2 * N * row


def decode_traffic(case: Case) -> tuple[int, int]:
    """Bytes moved of the cache with its scales, and of everything else, from grid and index
    maps."""
    call = pallas_call_of(*decode_call(case))
    lengths = np.asarray(LENGTHS)
    scalars = lengths, (lengths - 1) // case.block_kv, np.zeros(1)
    queries, *cache, out = copied_bytes(call, scalars)
    return sum(cache), queries + out


def valid_bytes(case: Case) -> int:
    """Bytes of the valid part of the cache that a decode case reads, scales included."""
    itemsize = jnp.dtype(case.cache).itemsize
    scale = 4 if case.cache == "int8" else 0
    return sum(LENGTHS) * MODELS[case.model][1] * 2 * (case.head_dim * itemsize + scale)


def macs(case: Case) -> int:
    """Multiply-adds that the visible scores need, two products forward and five backward."""
    if case.direction == "decode":
        return MODELS[case.model][0] * 2 * case.head_dim * sum(LENGTHS)
    products = 2 if case.direction == "forward" else 5
    length = DOCUMENT if case.masks == "packed" else T
    return MODELS[case.model][0] * products * case.head_dim * T * (length + 1) // 2
