"""Attention kernels to compare: ours, jax's splash attention and, where installed, tokamax's.

A case says how to compile a kernel; `python -m llama_jax.tpu.kernel_cases GENERATION JSON` compiles
one, in the process that `schedule.compile_in_subprocess` starts.
"""

import dataclasses
import importlib
import importlib.util
import json
import sys

import jax
import jax.numpy as jnp

from llama_jax.kernels import block_sizes
from llama_jax.kernels.block_sizes import BlockSizes
from llama_jax.kernels.decode_attention import block_of, decode_attention
from llama_jax.kernels.flash_attention_vjp import flash_attention
from llama_jax.tpu.bundles import compile_for

# Llama 2: query heads, key/value heads. One row of T = 4096.
MODELS = {"7B": (32, 32), "70B": (64, 8)}
T = 4096
# The packed row: sixteen documents.
DOCUMENT = 256
# Decoding: valid tokens of the rows of a cache for 4096, from a short prompt to a full context.
LENGTHS = (173, 600, 1024, 1500, 2048, 2777, 3333, 4096)
CACHES = ("bfloat16", "int8")


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
    """Ours: queries of a piece of a tile. Others: keys of one computed piece."""
    inner_kv: int = 256
    """Ours, backward: keys of a piece."""
    masks: str = "causal"
    """causal, or packed: sixteen documents of 256 tokens; decoding sees the valid cache."""
    head_dim: int = 128
    cache: str = "bfloat16"
    """dtype of the cache for decoding: bfloat16 or int8."""
    scheduler: bool = False
    """tokamax's experimental scheduler."""
    skip: bool = False
    """tokamax's skipping above the diagonal; needs block_q == block_kv == inner."""

    @property
    def blocks(self) -> str:
        """The block sizes, for people."""
        return f"{self.block_q}/{self.block_kv}/{self.inner}"


# (forward, backward): block_q, block_kv and keys of a computed piece with the fewest cycles that a
# search found (experiments/LOG.md). tokamax has its scheduler on, and skips where all three agree.
SPLASH = {
    "v4": ((1024, 1024, 1024), (1024, 1024, 512)),
    "v5e": ((1024, 1024, 512), (1024, 1024, 512)),
    "v5p": ((1024, 1024, 512), (1024, 1024, 512)),
    "v6e": ((1024, 1024, 512), (1024, 1024, 512)),
    "tpu7x": ((1024, 1024, 512), (1024, 1024, 512)),
}
TOKAMAX = {
    "v4": ((1024, 1024, 1024), (1024, 1024, 1024)),
    "v5e": ((1024, 1024, 1024), (512, 512, 512)),
    "v5p": ((1024, 1024, 1024), (1024, 1024, 1024)),
    "v6e": ((1024, 1024, 512), (1024, 1024, 1024)),
    "tpu7x": ((1024, 1024, 512), (1024, 1024, 1024)),
}


def build(case: Case):
    """The function of a case and the shapes of its arguments."""
    if case.direction == "decode":
        function, *shapes = decode_call(case)
        return function, shapes
    N, K = MODELS[case.model]

    def heads(n):
        return jax.ShapeDtypeStruct((n, T, case.head_dim), jnp.bfloat16)

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


def decode_call(case: Case):
    """The function of a decode case and the shapes of its arguments."""
    (N, K), H = MODELS[case.model], case.head_dim
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


def sizes_of(case: Case) -> BlockSizes:
    """The block sizes of a case of ours."""
    return BlockSizes(case.block_q, case.block_kv, case.inner, case.inner_kv)


def spans_of(case: Case, generation: str) -> int:
    """Number of parts that ours cuts the queries into, one part per grid step."""
    if case.kernel != "ours" or case.direction == "decode":
        return 1
    bytes_of = getattr(block_sizes, f"{case.direction}_bytes")
    limit = block_sizes.VMEM[generation]
    held = block_sizes.hold(sizes_of(case), T, T, case.head_dim, 2, bytes_of, limit)
    if held.chunks > 1:
        raise ValueError(f"{case}: keys do not fit {generation} at once, which is not counted")
    return T // held.span


def _ours(case):
    sizes = sizes_of(case)
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
        chosen = block_sizes.choose(T, T, 128, jnp.bfloat16, masks == "packed", generation)
        for direction, sizes in zip(("forward", "backward"), chosen, strict=True):
            ours = Case("ours", direction, "7B", sizes.block_q, sizes.block_kv, sizes.sub)
            ours = dataclasses.replace(ours, inner_kv=sizes.sub_kv, masks=masks)
            # Backward, sums over a group of query heads make another kernel.
            models = ("7B",) if direction == "forward" else MODELS
            cases += [dataclasses.replace(ours, model=model) for model in models]
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


if __name__ == "__main__":
    function, shapes = build(Case(**json.loads(sys.argv[2])))
    compile_for(sys.argv[1], function, *shapes)
