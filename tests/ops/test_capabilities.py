"""The table of capabilities against what the kernels take, and what is picked from it."""

import functools
import logging
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, PartitionSpec

from llama_jax.kernels.block_sizes import VMEM
from llama_jax.kernels.decode_attention import decode_attention
from llama_jax.kernels.flash_attention_vjp import flash_attention
from llama_jax.ops import attention, capabilities
from llama_jax.ops.attention import dot_product_attention
from llama_jax.ops.cached_attention import cache_order
from llama_jax.tpu.bundles import CHIPS
from tests.comparison import assert_close, epsilon

HEADS = PartitionSpec("rows", None, "heads", None)


def arrays(B=4, T=128, N=4, K=2, H=64, dtype="bfloat16"):
    return [jax.ShapeDtypeStruct((B, T, n, H), dtype) for n in (N, K, K)]


@functools.cache
def mesh_of(generation):
    """Two by two chips of a TPU that this machine has not."""
    pytest.importorskip("libtpu", reason="libtpu is only made for x86-64 Linux")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    topology = topologies.get_topology_desc(CHIPS[generation].topology, platform="tpu")
    grid = np.array(topology.devices[:4]).reshape(2, 2)
    return Mesh(grid, ("rows", "heads"), axis_types=(AxisType.Auto,) * 2).abstract_mesh


def traced(shapes, **options):
    return str(jax.make_jaxpr(functools.partial(dot_product_attention, **options))(*shapes))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("H", [32, 64, 80, 128, 256])
@pytest.mark.parametrize("name", ["pallas", "decode"])
def test_the_kernels_take_what_the_table_says_and_no_more(name, H, dtype):
    q, k, v = arrays(H=H, dtype=dtype)
    problem = capabilities.problem(name, "v5e", dtype, H, offset=False, segments=False)

    def call():
        if name == "pallas":
            jax.eval_shape(functools.partial(flash_attention, interpret=True), q, k, v)
        else:
            lengths = jax.ShapeDtypeStruct((4,), jnp.int32)
            jax.eval_shape(functools.partial(decode_attention, interpret=True), q, k, v, lengths)

    if problem:
        assert dtype in problem or f"{H=}" in problem
        with pytest.raises(ValueError, match=f"{dtype}|{H=}"):
            call()
    else:
        call()


def test_every_device_has_an_implementation_that_takes_anything():
    assert set(capabilities.CAPABILITIES) == {"cpu", "gpu", *VMEM}
    for device in [*capabilities.CAPABILITIES, "TPU v3"]:
        assert not capabilities.problem("xla", device, "float16", 7, offset=True, segments=True)
    ring = capabilities.problem("ring", "v4", "float32", 64, offset=True, segments=True)
    assert ring == "its queries start at position 0"
    decode = capabilities.problem("decode", "v4", "float32", 64, offset=True, segments=True)
    assert decode == "it takes no segment ids"
    other = capabilities.problem("pallas", "TPU v3", "float32", 64, offset=True, segments=True)
    assert other == "it is made for cpu, v4, v5e, v5p, v6e, tpu7x, not TPU v3"


@pytest.mark.parametrize("generation", VMEM)
def test_a_tpu_in_scope_gets_the_kernels(generation):
    with jax.sharding.use_abstract_mesh(mesh_of(generation)):
        assert capabilities.device() == generation
        text = traced(arrays(), spec=HEADS)
        assert "shard_map" in text
        assert "name=flash_attention" in text.replace(" ", "")
        assert "pallas_call" not in traced(arrays(), spec=HEADS, implementation="xla")
        sizes = {"B": 4, "N": 4, "K": 2, "H": 64, "dtype": "bfloat16"}
        assert cache_order(None, **sizes, spec=HEADS) == "BSKH"
        assert cache_order("xla", **sizes, spec=HEADS) == "BKHS"
    assert "pallas_call" not in traced(arrays())
    assert cache_order(None, **sizes, spec=None) == "BKHS"


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"H": 80}, "no head width H=80; the nearest is 64"),
        ({"dtype": "float16"}, "it takes bfloat16, float32, not float16"),
        ({"N": 3, "K": 3}, "N=3 is not divisible by the 2 devices of 'heads'"),
        ({"K": 1}, "K=1 is not divisible by the 2 devices of 'heads'"),
        ({"B": 3}, "B=3 is not divisible by the 2 devices of 'rows'"),
    ],
)
def test_what_the_kernels_do_not_take_falls_back_once_or_raises(shape, message, caplog):
    attention.say_once.cache_clear()
    shapes = arrays(**shape)
    with jax.sharding.use_abstract_mesh(mesh_of("v5e")):
        with caplog.at_level(logging.WARNING):
            for _ in range(2):
                assert "pallas_call" not in traced(shapes, spec=HEADS)
        (record,) = caplog.records
        assert record.getMessage().startswith("attention falls back from pallas to xla on v5e: ")
        assert message in record.getMessage()
        with pytest.raises(ValueError, match=message):
            traced(shapes, spec=HEADS, implementation="pallas")
        with pytest.raises(ValueError, match="made for gpu, not v5e"):
            traced(shapes, spec=HEADS, implementation="cudnn")


class Gpu:
    device_kind = "NVIDIA H100 80GB HBM3"
    compute_capability = "9.0"


@pytest.fixture
def gpu(monkeypatch):
    """A GPU that computes what it is given on this CPU; gives the calls that reach cuDNN."""
    plain, calls = jax.nn.dot_product_attention, []

    def on_cpu(*arrays, implementation, **options):
        calls.append(implementation)
        return plain(*arrays, implementation="xla", **options)

    monkeypatch.setattr(jax, "devices", lambda: [Gpu])
    monkeypatch.setattr(jax.nn, "dot_product_attention", on_cpu)
    attention.say_once.cache_clear()
    return calls


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("segments", [True, False])
def test_cudnn_is_given_the_same_attention(gpu, causal, segments):
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.standard_normal(a.shape), a.dtype) for a in arrays(B=2, T=32))
    ids = jnp.repeat(jnp.asarray([[1, 2, 0], [1, 1, 2]]), jnp.asarray([9, 13, 10]), axis=1)
    options = {"causal": causal, "segment_ids": ids if segments else None}
    picked = dot_product_attention(q, k, v, **options)
    assert gpu == ["cudnn"]
    ours = dot_product_attention(q, k, v, **options, implementation="xla")
    # Both round the weights and the output to bfloat16 once.
    assert_close(picked, ours, 2 * epsilon(jnp.bfloat16))


def test_what_cudnn_does_not_do_falls_back_or_raises(gpu, monkeypatch):
    bf16, ids = arrays(T=33), jax.ShapeDtypeStruct((4, 33), jnp.int32)
    refused = {
        "it takes bfloat16, float16, not float32": (arrays(dtype="float32"), {}),
        "its queries start at position 0": (bf16, {"q_offset": 3}),
        "an even length, not T=33": (bf16, {"segment_ids": ids}),
        "kv_segment_ids allow that": (bf16, {"segment_ids": ids, "kv_segment_ids": ids}),
        "no head width H=136; the nearest is 128": (arrays(H=136), {}),
    }

    def trace(shapes, masks, implementation=None):
        def call(q, k, v, ids):
            given = {n: ids if n.endswith("ids") else m for n, m in masks.items()}
            return dot_product_attention(q, k, v, **given, implementation=implementation)

        jax.eval_shape(call, *shapes, ids)

    for message, (shapes, masks) in refused.items():
        trace(shapes, masks)
        with pytest.raises(ValueError, match=message):
            trace(shapes, masks, "cudnn")
    monkeypatch.setattr(Gpu, "compute_capability", "7.5")
    trace(bf16, {})
    with pytest.raises(ValueError, match=r"compute capability 8.0 or more, not 7.5"):
        trace(bf16, {}, "cudnn")
    assert gpu == []
