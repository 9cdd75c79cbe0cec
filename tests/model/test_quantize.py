"""Matrices in fewer bits: rounding, products and gradients against NumPy in float64."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_jax.config import (
    MATRICES,
    AdaptedModel,
    InputError,
    LoraConfig,
    MeshConfig,
    Quantization,
    QuantizedModel,
    plain,
)
from llama_jax.model import cache, quantize
from llama_jax.model.cache import decode, empty_cache, gather, logits_of, prepare
from llama_jax.model.llama import apply, init_params
from llama_jax.model.matrix import NF4, codes, gated_down, matrices, merged, project
from llama_jax.model.presets import TINY
from llama_jax.model.quantize import dequantized, pack, parts, quantized, relative_errors
from llama_jax.model.weights import abstract_params, parameter_count
from llama_jax.parallel.arrays import shard_batch
from llama_jax.parallel.mesh import make_mesh
from llama_jax.train.next_token import NextToken
from llama_jax.train.state import param_shardings
from llama_jax.train.step import mean_loss_and_gradient
from tests.train.test_step import make_batch

INT8 = Quantization(weights="int8", embeddings=True)
INT4 = Quantization(weights="int4", group=32, embeddings=True)
NF = Quantization(weights="nf4", group=64)
KINDS = {"int8": INT8, "int4": INT4, "nf4": NF}
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, TINY.vocab_size, (2, 16)), jnp.int32)
kinds = pytest.mark.parametrize("kind", KINDS)


def random(*shape, seed=0, scale=1.0):
    return (np.random.default_rng(seed).normal(size=shape) * scale).astype(np.float32)


def groups_of(w, inputs, size):
    """[groups,size,outputs] in float64, the last group filled up with zeros."""
    flat = np.asarray(w, np.float64).reshape(np.prod(w.shape[:inputs], dtype=int), -1)
    filled = np.pad(flat, [(0, -len(flat) % size), (0, 0)])
    return filled.reshape(-1, size, filled.shape[1])


def oracle(w, q, inputs):
    """What each number is rounded to, float64 [*inputs,*outputs], straight from the definitions."""
    if q.weights == "int8":
        size = np.prod(w.shape[:inputs], dtype=int)
        blocks = groups_of(w, inputs, size)
        scale = np.float32(np.abs(blocks).max(axis=1, keepdims=True) / 127).astype(np.float64)
        found = np.rint(blocks / np.where(scale == 0, 1, scale)) * scale
    elif q.weights == "int4":
        blocks = groups_of(w, inputs, q.group)
        at = np.abs(blocks).argmax(axis=1)[:, None]
        scale = np.take_along_axis(blocks, at, axis=1) / -8
        inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale != 0)
        code = np.clip(np.floor(blocks * inverse + 8.5), 0, 15)
        found = (code - 8) * scale.astype(np.float16).astype(np.float64)
    else:
        blocks = groups_of(w, inputs, q.group)
        largest = np.abs(blocks).max(axis=1, keepdims=True)
        low = largest.min(axis=0, keepdims=True)
        step = (largest.max(axis=0, keepdims=True) - low) / 255
        kept = low + step * np.rint((largest - low) / np.where(step == 0, 1, step))
        table = np.array(NF4)
        ratio = blocks / np.where(kept == 0, 1, kept)
        found = table[np.abs(ratio[..., None] - table).argmin(axis=-1)] * kept
    flat = found.reshape(-1, found.shape[-1])[: np.prod(w.shape[:inputs], dtype=int)]
    return flat.reshape(w.shape)


@kinds
@pytest.mark.parametrize(("shape", "inputs"), [((96, 5), 1), ((80, 2, 3), 1), ((4, 20, 6), 2)])
def test_every_number_is_the_nearest_that_the_type_has(kind, shape, inputs):
    w = random(*shape)
    packed = pack(jnp.asarray(w), KINDS[kind], inputs)
    np.testing.assert_allclose(packed.dense(), oracle(w, KINDS[kind], inputs), atol=1e-6)
    x = random(2, 3, *shape[:inputs], seed=1)
    expected = np.tensordot(np.float64(x), oracle(w, KINDS[kind], inputs), axes=inputs)
    for T in (1, 3):  # a single position goes another way on CPUs
        found = project(jnp.asarray(x[:, :T]), packed, inputs)
        np.testing.assert_allclose(found, expected[:, :T], rtol=1e-4, atol=1e-4)


@settings(max_examples=20, deadline=None)
@given(
    st.integers(0, 1000),
    st.floats(-4, 4),
    st.sampled_from(
        [(INT8, 1 / 254), (Quantization(weights="int4", group=128), 1 / 8), (NF, 0.18)]
    ),
)
def test_no_number_moves_by_more_than_its_share_of_the_largest(seed, magnitude, case):
    q, share = case
    w = random(64, 4, seed=seed, scale=10**magnitude)
    w[:, 0] = 0
    packed = pack(jnp.asarray(w), q, 1)
    found = np.asarray(packed.dense())
    assert np.abs(found - w).max() <= 1.01 * share * np.abs(w).max()
    assert not found[:, 0].any()
    again = pack(jnp.asarray(found), q, 1)
    if q is INT8:  # what was rounded stays as it is, but for the last bit of a scale
        np.testing.assert_array_equal(again.values, packed.values)
        np.testing.assert_allclose(again.dense(), found, rtol=3e-7)


def test_two_codes_share_a_byte_in_the_order_of_ggml():
    w = np.zeros((32, 1), np.float32)
    w[:, 0] = np.arange(32) / 2 - 8  # the largest magnitude, -8, makes the scale 1
    packed = pack(jnp.asarray(w), INT4, 1)
    expected = np.clip(np.floor(w[:, 0] + 8.5), 0, 15).astype(int)
    assert float(packed.scale[0, 0]) == 1.0
    assert packed.values[0, :, 0].tolist() == (expected[:16] | expected[16:] << 4).tolist()
    assert codes(packed.values)[0, :, 0].tolist() == expected.tolist()


@kinds
def test_the_gated_product_is_that_of_the_dense_matrix(kind):
    packed = pack(jnp.asarray(random(64, 8)), KINDS[kind], 1)
    g, u = (jnp.asarray(random(2, 4, 64, seed=n)) for n in (1, 2))
    expected = gated_down(g, u, packed.dense())
    np.testing.assert_allclose(gated_down(g, u, packed), expected, rtol=1e-4, atol=1e-4)


@kinds
@pytest.mark.parametrize("tied", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_model_computes_what_its_dense_weights_do(kind, tied):
    cfg = replace(TINY, tie_embeddings=tied)
    small = QuantizedModel.of(cfg, KINDS[kind])
    params = init_params(jax.random.key(0), cfg)
    packed = quantized(params, small)
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), packed)
    assert shapes == abstract_params(small)
    again = dequantized(packed, small)
    expected = apply(again, TOKENS, config=cfg)
    assert float(jnp.max(jnp.abs(expected - apply(params, TOKENS, config=cfg)))) > 1e-4
    np.testing.assert_allclose(apply(packed, TOKENS, config=small), expected, rtol=1e-4, atol=1e-4)
    # As generation reads them.
    w, cache = prepare(packed, small), empty_cache(small, 2, 16)
    assert gather(w, small) is w
    with jax.set_mesh(make_mesh(MeshConfig(fsdp=4, tensor=2))):
        split = gather(w, small)
    assert jax.tree.structure(split) == jax.tree.structure(w)
    x, _ = decode(w, TOKENS, cache, jnp.zeros(2, jnp.int32), config=small)
    np.testing.assert_allclose(logits_of(w, x[:, -1:]), expected[:, -1], rtol=1e-4, atol=1e-4)
    assert parameter_count(small) == parameter_count(cfg)


def deleted_before(patch, module, name, stacks):
    """A list that gets, at each call of a function of a module, how many of the stacks are gone."""
    real, found = getattr(module, name), []

    def watched(*args):
        found.append(sum(stack.is_deleted() for stack in stacks))
        return real(*args)

    patch.setattr(module, name, watched)
    return found


def test_what_is_packed_or_taken_apart_can_be_freed_at_once(monkeypatch):
    """A device that the dense matrices nearly fill has no room for others beside them."""
    small = QuantizedModel.of(TINY, NF)
    params = init_params(jax.random.key(0), TINY)
    expected = quantized(params, small)
    stacks = [params["layers"][name] for name in MATRICES]
    found = deleted_before(monkeypatch, quantize, "_packed_stack", stacks)
    packed = quantized(params, small, release=True)
    assert found == list(range(len(MATRICES)))
    assert all(stack.is_deleted() for stack in stacks)
    jax.tree.map(np.testing.assert_array_equal, packed, expected)

    expected = prepare(packed, small)
    stacks = list(packed["layers"].values())
    found = deleted_before(monkeypatch, cache, "_apart", stacks)
    w = prepare(packed, small, release=True)
    assert found == list(range(len(stacks)))
    jax.tree.map(np.testing.assert_array_equal, w, expected)


def test_errors_are_those_of_each_matrix():
    small = QuantizedModel.of(TINY, INT8)
    params = init_params(jax.random.key(0), TINY)
    packed = quantized(params, small)
    found, again = relative_errors(params, packed, small), dequantized(packed, small)
    assert set(found) == {*MATRICES, "embed", "head"}
    for name in ("o", "down"):
        for layer in range(TINY.num_layers):
            a, b = (np.float64(t["layers"][name][layer]) for t in (params, again))
            expected = np.linalg.norm(a - b) / np.linalg.norm(a)
            assert found[name][layer] == pytest.approx(expected, rel=1e-3)
    assert 0 < found["embed"][0] < 0.01


LORA = {kind: LoraConfig(rank=3, alpha=5.0, base=kind) for kind in ("int8", "nf4")}


def adapted_params(cfg):
    """A base in fewer bits, and adapters that do something."""
    params = init_params(jax.random.key(0), plain(cfg))
    beside = init_params(jax.random.key(1), cfg)["layers"]
    adapters = {
        name: jnp.asarray(random(*w.shape, seed=len(name), scale=0.1))
        for name, w in beside.items() if name.endswith(("_a", "_b"))
    }  # fmt: skip
    return quantized({**params, "layers": {**params["layers"], **adapters}}, cfg)


@pytest.mark.parametrize("base", [pytest.param("int8", marks=pytest.mark.slow), "nf4"])
def test_adapters_learn_as_on_the_dense_base_that_theirs_stands_for(base):
    cfg = AdaptedModel.of(TINY, LORA[base])
    params = adapted_params(cfg)
    on_dense = AdaptedModel.of(TINY, replace(LORA[base], base="dense"))
    small = QuantizedModel.of(TINY, cfg.quant)
    own = {k: v for k, v in params["layers"].items() if k.endswith(("_a", "_b"))}
    its = {k: v for k, v in params["layers"].items() if k not in own}
    dense = dequantized({**params, "layers": its}, small)
    dense["layers"] |= own
    batch = {k: jnp.asarray(v) for k, v in make_batch().items()}

    def run(params, cfg):
        return mean_loss_and_gradient(params, batch, objective=NextToken(cfg), accumulate=1)

    (loss, _), found = run(params, cfg)
    (same, _), expected = run(dense, on_dense)
    assert float(loss) == pytest.approx(float(same), rel=1e-5)
    assert set(found["layers"]) == set(own)
    for name, gradient in expected["layers"].items():
        scale = float(jnp.max(jnp.abs(gradient)))
        np.testing.assert_allclose(found["layers"][name], gradient, atol=1e-4 * scale, rtol=1e-3)
    together, other = merged(params, cfg), merged(dense, on_dense)
    for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("base", ["int8", "nf4"])
def test_a_mesh_gives_the_same_loss_and_gradients(base):
    cfg = AdaptedModel.of(TINY, LORA[base])
    params, batch = adapted_params(cfg), make_batch()
    run = jax.jit(lambda p, b: mean_loss_and_gradient(p, b, objective=NextToken(cfg), accumulate=1))
    (loss, _), alone = run(params, {k: jnp.asarray(v) for k, v in batch.items()})
    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2))
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, param_shardings(cfg, mesh))
        (split, _), found = run(placed, shard_batch(batch, mesh))
    assert float(split) == pytest.approx(float(loss), rel=1e-5)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6)


def test_the_types_that_there_are():
    names = parts("q", pack(jnp.asarray(random(64, 2)), NF, 1))
    assert {k: v.dtype.name for k, v in names.items()} == {
        "q": "uint8", "q_scale": "uint8", "q_low": "float32", "q_step": "float32"
    }  # fmt: skip
    cfg = AdaptedModel.of(TINY, LORA["int8"])
    layer = {k: v[0] for k, v in adapted_params(cfg)["layers"].items()}
    assert matrices(layer, cfg)["q"].base.values.dtype == jnp.int8
    with pytest.raises(InputError, match=r"group=64 does not go with int4: choose 32 or 128"):
        Quantization(weights="int4", group=64)
    with pytest.raises(InputError, match=r"lora.base=nf4 needs adapters"):
        LoraConfig(base="nf4")
