"""What the gradient of the whole loss keeps and what it computes again."""

import re
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax.config import AdaptedModel, InputError, LoraConfig
from llama_jax.model.llama import apply
from llama_jax.model.matrix import MATRICES
from llama_jax.model.weights import abstract_params, dense_weights
from llama_jax.ops.loss import next_token_targets
from tests.comparison import assert_trees_close, quick_jit, random_params
from tests.model.small import SMALL, loss_and_gradient, packed, tokens_of

POLICIES = ("none", "full", "dots", "qkvo", "offload")


def batch_of(cfg, *documents):
    """A packed training batch."""
    segment_ids, positions = packed(*documents)
    return {
        "tokens": tokens_of(cfg, *segment_ids.shape),
        "segment_ids": segment_ids,
        "positions": positions,
        "loss_mask": jnp.ones(segment_ids.shape, jnp.uint8),
    }


def ours(cfg):
    return quick_jit(partial(loss_and_gradient, cfg=cfg))


def naive(cfg):
    """The same from all logits at once."""

    def loss(params, batch):
        logits = apply(
            params,
            batch["tokens"],
            config=cfg,
            positions=batch["positions"],
            segment_ids=batch["segment_ids"],
        )
        targets, mask = next_token_targets(batch["tokens"], batch["segment_ids"])
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], axis=-1)
        return -jnp.sum(picked[..., 0] * mask) / mask.sum()

    return quick_jit(jax.value_and_grad(loss))


def as_large_as_logits(hlo, positions, V):
    """Float32 shapes in the program's text that hold V values for each of the positions or more."""
    shapes = {tuple(map(int, s.split(","))) for s in re.findall(r"\bf32\[([\d,]+)\]", hlo)}
    return {s for s in shapes if V in s and np.prod(s) >= positions * V}


@pytest.mark.parametrize(("dtype", "tied"), [("float32", False), ("bfloat16", True)])
def test_no_float32_logits_of_all_positions_are_ever_kept(dtype, tied):
    B, T, V = 4, 32, 251  # V is prime and B T > D, so that neither table nor gradient is as large
    cfg = replace(SMALL, vocab_size=V, dtype=dtype, tie_embeddings=tied)
    batch = batch_of(cfg, *B * [(20, 12)])
    params = abstract_params(cfg)

    def offenders(make):
        compiled = make(cfg).lower(params, batch).compile()
        return as_large_as_logits(compiled.as_text(), B * T, V)

    assert not offenders(ours)
    if dtype == "float32":
        assert (B, T, V) in offenders(naive), "the search finds nothing where there is something"


@pytest.fixture(scope="module")
def by_policy():
    """For each policy: the gradient's jaxpr, its compiled plan, its value at one point."""
    results = {}
    for policy in POLICIES:
        cfg = replace(SMALL, remat=policy, num_layers=3)
        params, batch = random_params(abstract_params(cfg)), batch_of(cfg, (40, 24), (64,))
        traced = ours(cfg).trace(params, batch)
        compiled = traced.lower().compile()
        results[policy] = traced, compiled, compiled(params, batch)
    return results


@pytest.mark.parametrize("policy", POLICIES[1:])
def test_remat_changes_neither_loss_nor_gradients(by_policy, policy):
    loss, gradients = by_policy[policy][2]
    expected, expected_gradients = by_policy["none"][2]
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)
    assert_trees_close(gradients, expected_gradients, 1e-5)


def test_each_policy_computes_again_what_it_says(by_policy):
    products = {p: str(traced.jaxpr).count("dot_general") for p, (traced, *_) in by_policy.items()}
    # Of the forward pass's nine products a layer, `dots` computes the two of attention again,
    # `qkvo` those of the MLP and o or less, `full` all that a gradient asks for.
    none, full, dots, qkvo, offload = (products[p] for p in POLICIES)
    assert none < dots < qkvo == offload < full, products


def test_what_is_computed_again_is_not_kept(by_policy):
    kept = {
        p: compiled.memory_analysis().temp_size_in_bytes
        for p, (_, compiled, _) in by_policy.items()
    }
    # `dots` keeps every product, the last one of a block too. Attention and SwiGLU keep hardly more
    # than their inputs where nothing is computed again, so on small shapes either may be larger.
    assert kept["full"] < kept["qkvo"] < min(kept["dots"], kept["none"]), kept


def test_offload_keeps_in_the_hosts_memory(by_policy):
    def placed(policy):
        return by_policy[policy][0].lower(lowering_platforms=("tpu",)).as_text()

    assert "pinned_host" in placed("offload")
    assert "pinned_host" not in placed("qkvo")


@pytest.mark.parametrize(("remat", "calls"), [("none", 2), ("full", 3), ("qkvo", 2)])
def test_attention_is_computed_again_only_where_its_output_is_not_kept(remat, calls):
    """Kernels in the program: forward, backward, and forward once more if lse is not kept."""
    cfg = replace(SMALL, head_dim=64, attention="pallas", remat=remat)
    batch = batch_of(cfg, (9, 7))
    traced = ours(cfg).trace(abstract_params(cfg), batch)
    assert str(traced.jaxpr).count("pallas_call[") == calls


@pytest.mark.parametrize("base", ["dense", "int8", "nf4"])
def test_a_packed_base_is_dense_one_layer_at_a_time(base, optimized):
    """Neither pass of the compiled gradient holds the matrices of all layers as floats."""
    L = 5
    cfg = AdaptedModel.of(replace(SMALL, num_layers=L), LoraConfig(rank=3, base=base))
    gradient = jax.jit(partial(loss_and_gradient, cfg=cfg))
    batch = batch_of(cfg, (20, 12), (32,))
    hlo = gradient.lower(abstract_params(cfg), batch).compile().as_text()
    found = re.findall(r"\b(?:f32|bf16)\[([\d,]+)\]", hlo)
    floats = {tuple(map(int, shape.split(","))) for shape in found}
    sizes = {L * int(np.prod(dense_weights(SMALL)[name].shape)) for name in MATRICES}
    stacked = {s for s in floats if s[0] == L and int(np.prod(s)) in sizes}
    assert bool(stacked) == (base == "dense"), stacked


def test_an_attention_that_cannot_be_used_is_a_setting_refused():
    for attention, message in (("pallas", "no head width H=8"), ("cudnn", "made for gpu, not cpu")):
        cfg = replace(SMALL, attention=attention)
        with pytest.raises(InputError, match=f"model.attention={attention}: .*{message}"):
            ours(cfg).trace(abstract_params(cfg), batch_of(cfg, (9, 7)))
