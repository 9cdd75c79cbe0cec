"""Every kernel goes through the TPU compiler for every generation, at the sizes of 7B and 70B."""

import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from llama_jax.kernels.block_sizes import VMEM
from llama_jax.kernels.decode_attention import decode_attention
from llama_jax.kernels.flash_attention_vjp import flash_attention
from llama_jax.ops.attention import dot_product_attention
from llama_jax.tpu.bundles import compile_for
from llama_jax.tpu.chips import CHIPS
from llama_jax.tpu.kernel_cases import MODELS

pytest.importorskip("libtpu", reason="libtpu is only made for x86-64 Linux")
pytestmark = pytest.mark.slow


@functools.cache
def devices(generation):
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    name = CHIPS[generation].topology
    return topologies.get_topology_desc(topology_name=name, platform="tpu").devices


def lower(generation, axes, function, *shapes):
    """HLO text of `function(mesh, *arrays)` compiled for four chips, two by two with two axes."""
    shape = (2, 2) if len(axes) == 2 else (4,)
    mesh = Mesh(np.array(devices(generation)[:4]).reshape(shape), axes)
    arrays = [
        jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))
        for shape, dtype, spec in shapes
    ]
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        traced = jax.jit(functools.partial(function, mesh)).trace(*arrays)
        return traced.lower(lowering_platforms=("tpu",)).compile().as_text()


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("generation", VMEM)
def test_training(generation, model):
    """Gradient of scanned, rematerialised layers under shard_map: rows and heads are split."""
    N, K = MODELS[model]
    spec = PartitionSpec("data", None, "tensor")

    def loss(mesh, q, k, v):
        attend = jax.shard_map(
            flash_attention, mesh=mesh, in_specs=(spec,) * 3, out_specs=spec, check_vma=False
        )

        @jax.checkpoint
        def layer(x, _):
            return attend(x, k, v), None

        out, _ = jax.lax.scan(layer, q, None, length=2)
        return jnp.sum(out.astype(jnp.float32))

    def gradients(mesh, q, k, v):
        return jax.grad(functools.partial(loss, mesh), (0, 1, 2))(q, k, v)

    shapes = [((2, 4096, heads, 128), jnp.bfloat16, spec) for heads in (N, K, K)]
    text = lower(generation, ("data", "tensor"), gradients, *shapes)
    assert "flash_attention_backward" in text
    # K and V are never repeated to the heads of the queries.
    if N != K:
        assert f"bf16[1,{N // 2},4096,128]" in text
        assert f"bf16[1,{K // 2},{N // K},4096,128]" not in text


@pytest.mark.parametrize("generation", VMEM)
@pytest.mark.parametrize(
    ("dtype", "H", "T", "S", "masks"),
    [
        ("bfloat16", 64, 4096, 4096, "causal"),
        ("float32", 64, 1000, 1000, "segments"),
        ("bfloat16", 128, 512, 16384, "offset"),
    ],
    ids=["narrow-heads", "f32-packed", "chunked-prefill"],
)
def test_other_shapes(generation, dtype, H, T, S, masks):
    def gradients(q, k, v, numbers):
        mask = {"segments": {"segment_ids": numbers}, "offset": {"q_offset": numbers[0, 0]}}
        out, pull = jax.vjp(
            lambda q, k, v: flash_attention(q, k, v, **mask.get(masks, {})), q, k, v
        )
        return out, *pull(out)

    shapes = [jax.ShapeDtypeStruct((1, n, h, H), dtype) for n, h in ((T, 4), (S, 2), (S, 2))]
    numbers = jax.ShapeDtypeStruct((1, T), jnp.int32)
    assert "flash_attention" in compile_for(generation, gradients, *shapes, numbers).as_text()


@pytest.mark.parametrize("generation", VMEM)
@pytest.mark.parametrize(
    ("N", "K", "dtype"), [(32, 32, "bfloat16"), (64, 8, "int8"), (8, 1, "bfloat16")]
)
def test_decode(generation, N, K, dtype):
    def step(q, k, v, lengths, *scales):
        names = ("k_scale", "v_scale")
        return decode_attention(q, k, v, lengths, **dict(zip(names, scales, strict=False)))

    cache = jax.ShapeDtypeStruct((4, 4096, K, 128), dtype)
    shapes = [jax.ShapeDtypeStruct((4, 1, N, 128), jnp.bfloat16), cache, cache]
    shapes += [jax.ShapeDtypeStruct((4,), jnp.int32)]
    if dtype == "int8":
        shapes += [jax.ShapeDtypeStruct((4, K, 4096), jnp.float32)] * 2
    assert "decode_attention" in compile_for(generation, step, *shapes).as_text()


def test_ring():
    spec = PartitionSpec(None, "chip", None, None)

    def step(mesh, q, k, v):
        ring = functools.partial(dot_product_attention, spec=spec, zigzag=True)
        return jax.grad(lambda q: jnp.sum(ring(q, k, v).astype(jnp.float32)))(q)

    shapes = [((1, 16384, heads, 128), jnp.bfloat16, spec) for heads in (8, 2, 2)]
    text = lower("v5e", ("chip",), step, *shapes)
    assert "flash_attention_backward" in text
    assert "collective-permute" in text
    assert "all-gather" not in text
