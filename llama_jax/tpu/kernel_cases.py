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

from llama_jax.kernels import block_sizes
from llama_jax.tpu.chips import CHIPS, Chip
from llama_jax.tpu.schedule import Schedule, compile_for, compile_in_subprocess

# Llama 2: query heads, key/value heads. T = 4096, H = 128, one row.
MODELS = {"7B": (32, 32), "70B": (64, 8)}
T, H = 4096, 128


@dataclasses.dataclass(frozen=True)
class Case:
    """One kernel at one choice of blocks."""

    kernel: str
    """ours, splash or tokamax."""
    direction: str
    """forward or backward."""
    model: str
    block_q: int
    block_kv: int
    inner: int
    """Ours: columns of a tile. The others: keys of one computed piece."""
    scheduler: bool = False
    """tokamax's experimental scheduler."""
    skip: bool = False
    """tokamax's skipping above the diagonal; needs block_q == block_kv == inner."""


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
    n, m = T // case.block_q, T // case.block_kv
    whole, partly = blocks_seen(case.block_q, case.block_kv)
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
    return [("dkv", [N * m, steps, N * whole, N * partly, steps, N * m], steps)]


def hbm_bytes(case: Case) -> int:
    """Bytes read and written, each block as often as the kernel's order makes it move."""
    N, K = MODELS[case.model]
    one, row = 2 * T * H, 4 * T
    if case.direction == "forward":
        return 2 * N * one + 2 * K * one + N * row
    return 3 * N * one + 4 * K * one + 2 * N * row


def macs(case: Case) -> int:
    """Multiply-adds that causal attention needs, two products forward and five backward."""
    products = 2 if case.direction == "forward" else 5
    return MODELS[case.model][0] * products * H * T * (T + 1) // 2


def build(case: Case):
    """The function of a case and the shapes of its arguments."""
    import jax
    import jax.numpy as jnp

    N, K = MODELS[case.model]

    def heads(n):
        return jax.ShapeDtypeStruct((n, T, H), jnp.bfloat16)

    if case.kernel == "ours":
        attend = _ours(case)
    elif case.kernel == "splash":
        attend = _splash(case, N, K)
    else:
        attend = _tokamax(case, N, K)
    if case.direction == "forward":
        return attend, (heads(N), heads(K), heads(K))

    def gradients(q, k, v, do):
        return jax.vjp(attend, q, k, v)[1](do)

    return gradients, (heads(N), heads(K), heads(K), heads(N))


def _ours(case):
    from llama_jax.kernels.block_sizes import BlockSizes
    from llama_jax.kernels.flash_attention_vjp import flash_attention

    sizes = BlockSizes(case.block_q, case.block_kv, case.inner)

    def attend(q, k, v):
        q, k, v = (x.transpose(1, 0, 2)[None] for x in (q, k, v))
        return flash_attention(q, k, v, block_sizes=(sizes, sizes))[0].transpose(1, 0, 2)

    return attend


def _splash(case, N, K):
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    q, kv, inner = case.block_q, case.block_kv, case.inner
    sizes = splash.BlockSizes(
        block_q=q,
        block_kv=kv,
        block_kv_compute=inner,
        block_q_dkv=q,
        block_kv_dkv=kv,
        block_kv_dkv_compute=inner,
        block_q_dq=q,
        block_kv_dq=kv,
    )
    mask = masks.MultiHeadMask([masks.CausalMask((T, T)) for _ in range(N)])
    return splash.make_splash_mha_single_device(mask, block_sizes=sizes)


def _tokamax(case, N, K):
    package = "tokamax._src.ops.experimental.tpu.splash_attention."
    splash = importlib.import_module(package + "splash_attention_kernel")
    masks = importlib.import_module(package + "splash_attention_mask")
    q, kv, inner = case.block_q, case.block_kv, case.inner
    config = splash.SplashConfig(
        block_q=q,
        block_kv=kv,
        block_kv_compute=inner,
        block_q_dkv=q,
        block_kv_dkv=kv,
        block_kv_dkv_compute=inner,
        use_experimental_scheduler=case.scheduler,
        qk_diag_skip=case.skip,
        sv_diag_skip=case.skip,
        qk_diag_grid=4,
    )
    return splash.make_splash_mha_single_device(masks.CausalMask((T, T)), config=config)


def best_cases(generation: str) -> list[Case]:
    """Ours at the tuned blocks, and the others at the best of those that were searched."""
    ours = zip(("forward", "backward"), block_sizes.TUNED[generation], strict=True)
    cases = [Case("ours", d, "7B", s.block_q, s.block_kv, s.sub) for d, s in ours]
    cases += [
        Case("splash", "forward", "7B", 1024, 1024, 512),
        Case("splash", "backward", "7B", 1024, 1024, 512),
    ]
    if importlib.util.find_spec("tokamax") is not None:
        cases += [
            Case("tokamax", "forward", "7B", 1024, 1024, 512, scheduler=True),
            Case("tokamax", "backward", "7B", 1024, 1024, 512),
        ]
    return cases


def kernel_report(generation: str, *, python: str = sys.executable) -> list[dict]:
    """One row for each kernel, direction and model; needs libtpu, and about ten seconds a kernel.

    Shares are of the executed bundles; cycles, seconds and bytes are those of one chip for one row
    of 4096 tokens in one layer. `cycles` is the larger of the bundles and of what the matrix units
    need for the products at their peak: the compiler counts on stalls to space them out.

    Raises ValueError for an unknown generation, RuntimeError where a kernel does not compile.
    """
    if generation not in CHIPS:
        raise ValueError(f"topology {generation!r} must be one of {', '.join(CHIPS)}")
    rows = []
    for case in best_cases(generation):
        found = compile_in_subprocess(
            generation, "llama_jax.tpu.kernel_cases", dataclasses.asdict(case), python=python
        )
        # The schedule is the same for both models, only the visits differ.
        for model in MODELS:
            rows.append(_row(dataclasses.replace(case, model=model), found, CHIPS[generation]))
    return rows


def _row(case: Case, schedules: list[Schedule], chip: Chip) -> dict:
    parts = []
    for name, counts, steps in visits(case):
        (schedule,) = (s for s in schedules if name in s.name)
        parts.append((schedule, counts, steps, schedule.cycles(counts, steps)))
    bundles = sum(cycles for *_, cycles in parts)

    def busy(slot):
        return sum(s.busy(slot, counts, n) * cycles for s, counts, n, cycles in parts) / bundles

    needed = macs(case) / chip.macs_per_cycle
    cycles = max(bundles, needed) / chip.cores
    return {
        "kernel": case.kernel,
        "direction": case.direction,
        "model": case.model,
        "blocks": f"{case.block_q}/{case.block_kv}/{case.inner}",
        "cycles": round(cycles),
        "microseconds": round(1e6 * cycles / chip.clock, 1),
        "memory_microseconds": round(1e6 * hbm_bytes(case) / chip.hbm_bytes_per_second, 1),
        "share_of_peak": round(needed / max(bundles, needed), 3),
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
    }


if __name__ == "__main__":
    function, shapes = build(Case(**json.loads(sys.argv[2])))
    compile_for(sys.argv[1], function, *shapes)
