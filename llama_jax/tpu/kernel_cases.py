"""Attention kernels to be compared: ours, jax's splash attention and, where installed, tokamax's.

A case says how to compile a kernel and how often its regions run; `python -m
llama_jax.tpu.kernel_cases GENERATION JSON` compiles one, in the process that
`schedule.compile_in_subprocess` starts.
"""

import dataclasses
import importlib
import importlib.util
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np

from llama_jax.kernels import block_sizes
from llama_jax.kernels.block_sizes import BlockSizes
from llama_jax.kernels.decode_attention import block_of, decode_attention
from llama_jax.kernels.flash_attention_vjp import flash_attention
from llama_jax.tpu.chips import CHIPS, Chip
from llama_jax.tpu.schedule import Schedule, compile_for, compile_in_subprocess
from llama_jax.tpu.traffic import copied_bytes, pallas_call_of

# Llama 2: query heads, key/value heads. H = 128; one row of T = 4096.
MODELS = {"7B": (32, 32), "70B": (64, 8)}
T, H = 4096, 128
# The packed row: sixteen documents.
DOCUMENT = 256
# Decoding: valid tokens of the rows of a cache for 4096, from a short prompt to a full context.
LENGTHS = (173, 600, 1024, 1500, 2048, 2777, 3333, 4096)
CACHES = ("bfloat16", "int8")
# Place of the loop over wholly seen tiles among the vector regions of ours, packed.
STEADY = 3


@dataclasses.dataclass(frozen=True)
class Case:
    """One kernel at one choice of blocks."""

    kernel: str
    """ours, splash or tokamax."""
    direction: str
    """forward, backward or decode."""
    model: str
    block_q: int
    block_kv: int
    inner: int
    """Ours: queries of a piece of a tile. The others: keys of one computed piece."""
    inner_kv: int = 256
    """Ours, backward: keys of a piece."""
    masks: str = "causal"
    """causal, or packed: sixteen documents of 256 tokens; decoding sees the valid cache."""
    cache: str = "bfloat16"
    """dtype of the cache that is decoded against: bfloat16 or int8."""
    scheduler: bool = False
    """tokamax's experimental scheduler."""
    skip: bool = False
    """tokamax's skipping above the diagonal; needs block_q == block_kv == inner."""


# (forward, backward): block_q, block_kv and keys of a computed piece with the fewest cycles that a
# search found (experiments/LOG.md). tokamax has its scheduler on, and skips where all three agree.
SPLASH = {
    "v4": ((1024, 1024, 1024), (1024, 1024, 512)),
    "v5e": ((1024, 1024, 512), (1024, 1024, 512)),
    "v5p": ((1024, 1024, 512), (1024, 1024, 512)),
    "v6e": ((1024, 1024, 512), (1024, 1024, 512)),
}
TOKAMAX = {
    "v4": ((1024, 1024, 1024), (1024, 1024, 1024)),
    "v5e": ((1024, 1024, 1024), (512, 512, 512)),
    "v5p": ((1024, 1024, 1024), (1024, 1024, 1024)),
    "v6e": ((1024, 1024, 512), (1024, 1024, 1024)),
}


def blocks_seen(block_q: int, block_kv: int) -> tuple[int, int]:
    """Causal blocks that are wholly and partly seen."""
    rows = range(T // block_q)
    whole = sum((i * block_q + 1) // block_kv for i in rows)
    return whole, sum(-(-(i + 1) * block_q // block_kv) for i in rows) - whole


def visits(case: Case) -> list[tuple[str, list[int], int]]:
    """For each kernel a case compiles: part of its name, visits of its regions, grid steps.

    Counts are for one row of the batch and all heads, on one core.
    """
    N, K = MODELS[case.model]
    if case.direction == "decode":
        whole = sum(length // case.block_kv for length in LENGTHS)
        seen = sum(-(-length // case.block_kv) for length in LENGTHS)
        rows = len(LENGTHS)
        # A block without a mask, the last one of a row, the output.
        return [("decode", [whole, seen - whole, rows], rows * T // case.block_kv)]
    n, m = T // case.block_q, T // case.block_kv
    whole, partly = blocks_seen(case.block_q, case.block_kv)
    if case.kernel == "ours" and case.masks == "packed":
        # Blocks hold whole documents, so each sees its triangle alone. The loops over tiles partly
        # seen, wholly seen and partly seen again stay in the text and are not entered.
        if case.direction == "forward":
            # Start in a triangle or a whole tile, loops, into the triangle, turn likewise, end.
            return [("flash", [N, 0, 0, 0, 0, 0, N * (n - 1), 0, N], N * n)]
        return [("backward", [K, N * n, 0, 0, 0, N * n, K], N * n)]
    if case.kernel == "ours" and case.direction == "forward":
        # Start in a triangle, start in a whole tile, the loop, into the triangle, turn, end.
        return [("flash", [N, 0, N * (n - 1) * (n - 2) // 2, N * (n - 1), N * (n - 1), N], N * n)]
    if case.kernel == "ours":
        # Reset dk and dv, load queries, the loop, the triangle and dq, write dk and dv.
        return [("backward", [K, N * n, N * n * (n - 1) // 2, N * n, K], N * n)]
    if case.kernel == "splash":
        seen, steps = N * (whole + partly), N * n * m
        if case.direction == "forward":
            return [("fwd", [N * n, seen, N * n], steps)]
        return [("dq", [N * n, seen, N * n], steps), ("dkv", [K * m, seen, K * m], steps)]
    # tokamax visits seen blocks only and has a body for each kind.
    steps = N * (whole + partly)
    if case.direction == "forward":
        return [("fwd", [N * n, N * whole, N * partly, N * n], steps)]
    # Where a block is computed in pieces, dq is summed in scratch and then written.
    written = [steps] if case.inner < case.block_kv else []
    return [("dkv", [N * m, steps, N * whole, N * partly, *written, N * m], steps)]


def hbm_bytes(case: Case) -> int:
    """Bytes read and written, each block as often as the kernel's order makes it move."""
    N, K = MODELS[case.model]
    if case.direction == "decode":
        return sum(decode_traffic(case))
    one, row = 2 * T * H, 4 * T
    if case.direction == "forward":
        return 2 * N * one + 2 * K * one + N * row
    return 3 * N * one + 4 * K * one + 2 * N * row


def decode_traffic(case: Case) -> tuple[int, int]:
    """Bytes moved of the cache with its scales, and of all else, from grid and index maps."""
    call = pallas_call_of(*_decode(case))
    queries, *cache, out, lse = copied_bytes(call, (np.asarray(LENGTHS), np.zeros(1)))
    return sum(cache), queries + out + lse


def valid_bytes(case: Case) -> int:
    """Bytes of the valid part of the cache that a decode case reads, scales included."""
    itemsize = jnp.dtype(case.cache).itemsize
    scale = 4 if case.cache == "int8" else 0
    return sum(LENGTHS) * MODELS[case.model][1] * 2 * (H * itemsize + scale)


def macs(case: Case) -> int:
    """Multiply-adds that the visible scores need, two products forward and five backward."""
    if case.direction == "decode":
        return MODELS[case.model][0] * 2 * H * sum(LENGTHS)
    products = 2 if case.direction == "forward" else 5
    length = DOCUMENT if case.masks == "packed" else T
    return MODELS[case.model][0] * products * H * T * (length + 1) // 2


def build(case: Case):
    """The function of a case and the shapes of its arguments."""
    if case.direction == "decode":
        function, *shapes = _decode(case)
        return function, shapes
    N, K = MODELS[case.model]

    def heads(n):
        return jax.ShapeDtypeStruct((n, T, H), jnp.bfloat16)

    if case.kernel == "ours":
        attend = _ours(case)
    elif case.kernel == "splash":
        attend = _splash(case, N, K)
    else:
        attend = _tokamax(case, N, K)
    ids = (jax.ShapeDtypeStruct((T,), jnp.int32),) if case.masks == "packed" else ()
    if case.direction == "forward":
        return attend, (heads(N), heads(K), heads(K), *ids)

    def gradients(do, q, k, v, *ids):
        return jax.vjp(lambda q, k, v: attend(q, k, v, *ids), q, k, v)[1](do)

    return gradients, (heads(N), heads(N), heads(K), heads(K), *ids)


def _decode(case):
    N, K = MODELS[case.model]
    rows = len(LENGTHS)
    cache = jax.ShapeDtypeStruct((rows, T, K, H), case.cache)
    arrays = [jax.ShapeDtypeStruct((rows, 1, N, H), jnp.bfloat16), cache, cache]
    arrays.append(jax.ShapeDtypeStruct((rows,), jnp.int32))
    if case.cache == "int8":
        arrays += [jax.ShapeDtypeStruct((rows, K, T), jnp.float32)] * 2

    def decode(q, k, v, lengths, k_scale=None, v_scale=None):
        return decode_attention(q, k, v, lengths, k_scale=k_scale, v_scale=v_scale)

    return decode, *arrays


def _forward_blocks(case):
    """Of the others; a backward case needs some forward kernel beside it, a small one."""
    if case.direction == "backward":
        return 512, 512, 512
    return case.block_q, case.block_kv, case.inner


def _ours(case):
    sizes = BlockSizes(case.block_q, case.block_kv, case.inner, case.inner_kv)
    first = sizes if case.direction == "forward" else block_sizes.SAFE.forward

    def attend(q, k, v, ids=None):
        q, k, v = (x.transpose(1, 0, 2)[None] for x in (q, k, v))
        ids = None if ids is None else ids[None]
        out = flash_attention(q, k, v, segment_ids=ids, block_sizes=(first, sizes))
        return out[0].transpose(1, 0, 2)

    return attend


def _splash(case, N, K):
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    q, kv, inner = case.block_q, case.block_kv, case.inner
    first_q, first_kv, first_inner = _forward_blocks(case)
    sizes = splash.BlockSizes(
        block_q=first_q,
        block_kv=first_kv,
        block_kv_compute=first_inner,
        block_q_dkv=q,
        block_kv_dkv=kv,
        block_kv_dkv_compute=inner,
        block_q_dq=q,
        block_kv_dq=kv,
    )
    mask = masks.MultiHeadMask([masks.CausalMask((T, T)) for _ in range(N)])
    return _with_segments(splash, splash.make_splash_mha_single_device(mask, block_sizes=sizes))


def _with_segments(splash, attend):
    def call(q, k, v, ids=None):
        segments = None if ids is None else splash.SegmentIds(q=ids, kv=ids)
        return attend(q, k, v, segment_ids=segments)

    return call


def _tokamax(case, N, K):
    package = "tokamax._src.ops.experimental.tpu.splash_attention."
    splash = importlib.import_module(package + "splash_attention_kernel")
    masks = importlib.import_module(package + "splash_attention_mask")
    q, kv, inner = case.block_q, case.block_kv, case.inner
    first_q, first_kv, first_inner = _forward_blocks(case)
    config = splash.SplashConfig(
        block_q=first_q,
        block_kv=first_kv,
        block_kv_compute=first_inner,
        block_q_dkv=q,
        block_kv_dkv=kv,
        block_kv_dkv_compute=inner,
        use_experimental_scheduler=case.scheduler,
        qk_diag_skip=case.skip,
        sv_diag_skip=case.skip,
        qk_diag_grid=4,
    )
    mask = masks.CausalMask((T, T))
    return _with_segments(splash, splash.make_splash_mha_single_device(mask, config=config))


def best_cases(generation: str) -> list[Case]:
    """Ours at the tuned blocks, and the others at the best of those that were searched."""
    found = {"splash": SPLASH[generation]}
    if importlib.util.find_spec("tokamax") is not None:
        found["tokamax"] = TOKAMAX[generation]
    cases = []
    for masks in ("causal", "packed"):
        chosen = block_sizes.choose(T, T, H, jnp.bfloat16, masks == "packed", generation)
        for direction, sizes in zip(("forward", "backward"), chosen, strict=True):
            ours = Case("ours", direction, "7B", sizes.block_q, sizes.block_kv, sizes.sub)
            cases.append(dataclasses.replace(ours, inner_kv=sizes.sub_kv, masks=masks))
        for kernel, blocks in found.items():
            for direction, (q, kv, inner) in zip(("forward", "backward"), blocks, strict=True):
                other = Case(kernel, direction, "7B", q, kv, inner, masks=masks)
                if kernel == "tokamax":
                    scheduler, skip = direction == "forward", q == kv == inner
                    other = dataclasses.replace(other, scheduler=scheduler, skip=skip)
                cases.append(other)
    return cases + [
        decode_case(m, c) for m, c in (("7B", "bfloat16"), *(("70B", c) for c in CACHES))
    ]


def decode_case(model: str, cache: str) -> Case:
    """One token for each of `LENGTHS` against a cache of that dtype."""
    N, K = MODELS[model]
    block = block_of(T, K)
    return Case("ours", "decode", model, 1, block, N, masks="valid", cache=cache)


def kernel_report(
    generation: str, *, python: str = sys.executable, cases: list[Case] | None = None
) -> list[dict]:
    """One row for each kernel, direction, mask and model; about ten seconds for each to compile.

    All figures are those of one chip and one layer, for one row of 4096 tokens, or, in decoding,
    for one token of each of eight rows.

    - `cycles`: regions of the schedule times their visits. A region lasts for its bundles or for
      the rows of its busiest matrix unit, whichever is longer; all of it at least as long as the
      visible scores take at the chip's peak. `microseconds` at the chip's clock.
    - `memory_microseconds`: bytes moved over the memory's bandwidth, which cycles know nothing of.
    - `share_of_peak`: multiply-adds of visible scores alone, over what fits in `cycles`.
    - `matmul` and other units: used slots over slots of the executed bundles.
    - `matmul_text`: used matrix-unit slots over those of the kernel's whole text, each bundle once.
    - `bundles`, `spills`, `fills`: of the text. `vmem_bytes`: blocks, scratch and spills.
    - `over_visited` (ours, packed): cycles over those of the visited tiles alone, each as long as
      a whole tile without a mask in the steady loop.
    - `moved_over_valid` (decoding): bytes of the cache that the grid and the index maps move, over
      those that are valid.

    Raises ValueError for an unknown generation, RuntimeError where a kernel does not compile.
    """
    if generation not in CHIPS:
        raise ValueError(f"topology {generation!r} must be one of {', '.join(CHIPS)}")
    rows = []
    for case in best_cases(generation) if cases is None else cases:
        found = compile_in_subprocess(
            generation, "llama_jax.tpu.kernel_cases", dataclasses.asdict(case), python=python
        )
        # But for decoding the schedule is the same for both models, only the visits differ.
        for model in (case.model,) if case.direction == "decode" else MODELS:
            rows.append(_row(dataclasses.replace(case, model=model), found, CHIPS[generation]))
    return rows


def _row(case: Case, schedules: list[Schedule], chip: Chip) -> dict:
    parts = []
    for name, counts, steps in visits(case):
        (schedule,) = (s for s in schedules if name in s.name)
        if case.direction == "decode":
            # On v4 and v6e the output is too little to count as a vector region.
            counts = counts[: sum(region.is_vector for region in schedule.regions)]
        parts.append((schedule, counts, steps, schedule.cycles(counts, steps)))
    executed = sum(cycles for *_, cycles in parts)

    def busy(slot):
        return sum(s.busy(slot, counts, n) * cycles for s, counts, n, cycles in parts) / executed

    needed = macs(case) / chip.macs_per_cycle
    cycles = max(executed, needed) / chip.cores
    return {
        "kernel": case.kernel,
        "direction": case.direction,
        "masks": case.masks,
        "model": case.model,
        "blocks": f"{case.block_q}/{case.block_kv}/{case.inner}",
        "cycles": round(cycles),
        "microseconds": round(1e6 * cycles / chip.clock, 1),
        "memory_microseconds": round(1e6 * hbm_bytes(case) / chip.hbm_bytes_per_second, 1),
        "share_of_peak": round(needed / max(executed, needed), 3),
        **{
            slot: round(busy(slot), 3)
            for slot in ("matmul", "valu", "xlu", "eup", "vload", "vstore")
        },
        "matmul_text": round(
            sum(s.share("matmul") * s.bundles for s, *_ in parts)
            / sum(s.bundles for s, *_ in parts),
            3,
        ),
        "fills": sum(s.total("fill") for s, *_ in parts),
        "spills": sum(s.total("spill") for s, *_ in parts),
        "bundles": sum(s.bundles for s, *_ in parts),
        "vmem_bytes": max(s.vmem_bytes for s, *_ in parts),
        "over_visited": _over_visited(case, *parts[0]),
        "moved_over_valid": _moved_over_valid(case),
    }


def _over_visited(case, schedule, counts, steps, cycles):
    if case.kernel != "ours" or case.masks != "packed":
        return None
    tile = [region for region in schedule.regions if region.is_vector][STEADY]
    return round(cycles / (steps * tile.cycles), 3)


def _moved_over_valid(case):
    if case.direction != "decode":
        return None
    return round(decode_traffic(case)[0] / valid_bytes(case), 4)


if __name__ == "__main__":
    function, shapes = build(Case(**json.loads(sys.argv[2])))
    compile_for(sys.argv[1], function, *shapes)
