"""One update: accumulation, masks, non-finite gradients, donation, meshes."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax.config import DataConfig, InputError, MeshConfig, OptimizerConfig, TrainConfig
from llama_jax.model.llama import apply, init_params
from llama_jax.model.presets import TINY
from llama_jax.model.weights import abstract_params
from llama_jax.parallel.arrays import shard_batch
from llama_jax.parallel.mesh import make_mesh
from llama_jax.train.next_token import NextToken, ring_size, summed_loss
from llama_jax.train.optimizer import make_optimizer
from llama_jax.train.state import abstract_state, sharded_init, trained_table
from llama_jax.train.step import abstract_batch, forward_of, jit_eval_step, jit_train_step
from tests.model.small import loss_and_gradient

CONFIG = TrainConfig(
    workdir="unused",
    steps=10,
    batch_size=8,
    seq_len=16,
    model=TINY,
    optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=2),
    data=DataConfig(dataset="tales"),
)


def make_batch(seed=0, B=8, T=16):
    rng = np.random.default_rng(seed)
    segments = np.sort(rng.integers(1, 4, (B, T)), axis=1).astype(np.int32)
    starts = np.diff(segments, axis=1, prepend=0) > 0
    positions = np.arange(T) - np.maximum.accumulate(np.where(starts, np.arange(T), 0), axis=1)
    return {
        "tokens": rng.integers(0, TINY.vocab_size, (B, T), dtype=np.int32),
        "segment_ids": segments,
        "positions": positions.astype(np.int32),
        "loss_mask": (rng.random((B, T)) < 0.8).astype(np.uint8),
    }


def make_state(config=CONFIG, mesh=None):
    mesh = mesh or make_mesh(config.mesh, jax.devices()[:1])
    objective = NextToken(config.model)
    tx = make_optimizer(config.optimizer, trained_table(objective), config.steps)
    abstract = abstract_state(objective, tx, mesh)
    return mesh, tx, abstract, sharded_init(config.seed, objective, tx, abstract)


def test_mean_loss_is_the_average_over_targets():
    _, _, _, state = make_state()
    batch = {k: jnp.asarray(v) for k, v in make_batch().items()}
    loss, _ = loss_and_gradient(state.params, batch, cfg=TINY)
    logits = np.asarray(
        apply(
            state.params,
            batch["tokens"],
            config=TINY,
            positions=batch["positions"],
            segment_ids=batch["segment_ids"],
        ),
        np.float64,
    )
    total = count = 0
    for b in range(8):
        for t in range(15):
            same = batch["segment_ids"][b, t] == batch["segment_ids"][b, t + 1]
            if same and batch["loss_mask"][b, t + 1]:
                row = logits[b, t]
                peak = row.max()
                partition = peak + np.log(np.sum(np.exp(row - peak)))
                total += partition - row[int(batch["tokens"][b, t + 1])]
                count += 1
    assert 0 < count < 8 * 15
    assert float(loss) == pytest.approx(total / count, rel=1e-5)
    found = jit_eval_step(NextToken(TINY))(state.params, batch)["loss"]
    assert float(found.count) == count
    assert float(found.total) == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("accumulate", [2, pytest.param(8, marks=pytest.mark.slow)])
def test_accumulation_changes_nothing_but_rounding(accumulate):
    _, _, _, state = make_state()
    batch = {k: jnp.asarray(v) for k, v in make_batch().items()}
    run = partial(loss_and_gradient, state.params, batch, cfg=TINY, z_loss=1e-3)
    whole, parts = run(accumulate=1), run(accumulate=accumulate)
    scale = max(float(jnp.max(jnp.abs(g))) for g in jax.tree.leaves(whole[1]))
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6 * scale)


def test_many_micro_batches_add_up_for_narrow_parameters():
    cfg = replace(TINY, param_dtype="bfloat16", num_layers=1)
    params = init_params(jax.random.key(0), cfg)
    batch = {k: jnp.tile(v, (64, 1)) for k, v in make_batch().items()}
    run = jax.jit(partial(loss_and_gradient, cfg=cfg), static_argnames="accumulate")
    (_, whole), (_, parts) = run(params, batch, accumulate=1), run(params, batch, accumulate=512)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        assert a.dtype == b.dtype == jnp.bfloat16
        scale = float(jnp.max(jnp.abs(a)))
        np.testing.assert_allclose(a.astype(float), b.astype(float), atol=2**-7 * scale)


def test_an_evaluation_takes_the_micro_batches_of_training():
    """A whole batch at once would need the memory that accumulation is to save."""
    params, batch = abstract_params(TINY), {k: jnp.asarray(v) for k, v in make_batch().items()}
    eval_step = jit_eval_step(NextToken(TINY), accumulate=4)
    shapes = {
        v.aval.shape
        for loop in loops_of(jax.make_jaxpr(eval_step)(params, batch).jaxpr)
        for eqn in loop.params["jaxpr"].eqns
        for v in eqn.outvars
    }
    assert (2, 16, TINY.d_model) in shapes
    assert (8, 16, TINY.d_model) not in shapes
    params = init_params(jax.random.key(0), TINY)
    parts = eval_step(params, batch)["loss"]
    whole = jit_eval_step(NextToken(TINY))(params, batch)["loss"]
    np.testing.assert_allclose(parts, whole, rtol=1e-6)


def loops_of(jaxpr):
    """Every scan of a jaxpr, inner ones too."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "scan":
            yield eqn
        for value in eqn.params.values():
            if hasattr(value, "jaxpr"):
                yield from loops_of(value.jaxpr)
            elif hasattr(value, "eqns"):
                yield from loops_of(value)


def test_stacked_gradients_are_kept_in_the_compute_type_and_are_the_same_numbers():
    cfg = replace(TINY, dtype="bfloat16", num_layers=3)
    params = init_params(jax.random.key(0), cfg)
    batch = {k: jnp.asarray(v) for k, v in make_batch().items()}

    def ours(params):
        return loss_and_gradient(params, batch, cfg=cfg)

    def inside(params):
        def mean(params):
            forward = forward_of(NextToken(cfg), params)
            loss, count = summed_loss(forward, batch, cfg=cfg, z_loss=0.0)
            return loss / count

        return jax.value_and_grad(mean)(params)

    def stacked(function):
        """Types of the weights' gradients that its loops stack."""
        shape = (cfg.num_layers, cfg.d_model, cfg.d_ff)
        loops = loops_of(jax.make_jaxpr(function)(params).jaxpr)
        return {v.aval.dtype.name for loop in loops for v in loop.outvars if v.aval.shape == shape}

    assert stacked(ours) == {"bfloat16"}
    assert "float32" in stacked(inside)
    for a, b in zip(jax.tree.leaves(ours(params)), jax.tree.leaves(inside(params)), strict=True):
        assert a.dtype == jnp.float32
        scale = float(jnp.max(jnp.abs(b)))
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6 * scale)


def test_a_non_finite_gradient_changes_nothing_and_is_counted():
    mesh, tx, abstract, state = make_state()
    step = jit_train_step(CONFIG, NextToken(TINY), tx, abstract)
    with jax.set_mesh(mesh):
        state, first = step(state, shard_batch(make_batch(), mesh))
        poisoned = state.replace(
            params={**state.params, "norm": state.params["norm"].at[0].set(jnp.nan)}
        )
        before = jax.device_get(poisoned)
        after, metrics = step(poisoned, shard_batch(make_batch(1), mesh))
        after = jax.device_get(after)
        again, twice = step(after, shard_batch(make_batch(2), mesh))
        healed = again.replace(params={**again.params, "norm": jnp.ones_like(again.params["norm"])})
        _, healthy = step(healed, shard_batch(make_batch(3), mesh))
    assert not np.isfinite(metrics.grad_norm)
    assert [int(m.skipped) for m in (first, metrics, twice, healthy)] == [0, 1, 2, 0]
    assert [int(m.updates) for m in (first, metrics, twice, healthy)] == [0, 1, 1, 1]
    assert int(after.step) == int(before.step) + 1
    for a, b in zip(
        jax.tree.leaves((before.params, before.opt_state)),
        jax.tree.leaves((after.params, after.opt_state)),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


def test_the_state_is_donated():
    mesh, tx, abstract, state = make_state()
    with jax.set_mesh(mesh):
        compiled = jit_train_step(CONFIG, NextToken(TINY), tx, abstract)
        compiled = compiled.lower(abstract, abstract_batch(CONFIG, NextToken(TINY), mesh)).compile()
        compiled(state, shard_batch(make_batch(), mesh))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))


def curve(config, devices, steps=3):
    """Loss and gradient norm of each step, and the parameters after the last."""
    mesh, tx, abstract, state = make_state(config, make_mesh(config.mesh, devices))
    with jax.set_mesh(mesh):
        step = jit_train_step(config, NextToken(config.model), tx, abstract)
        out = []
        for i in range(steps):
            batch = make_batch(i, T=config.seq_len)
            state, metrics = step(state, shard_batch(batch, mesh))
            out.append((float(metrics.loss), float(metrics.grad_norm)))
    return out, jax.device_get(state.params)


@pytest.mark.parametrize(
    "axes",
    [
        pytest.param({"fsdp": 8}, marks=pytest.mark.slow),
        {"data": 2, "fsdp": 2, "tensor": 2},
        pytest.param({"fsdp": 4, "sequence": 2}, marks=pytest.mark.slow),
        pytest.param({"fsdp": 2, "sequence": 4}, marks=pytest.mark.slow),
    ],
)
def test_every_mesh_takes_the_same_steps(axes):
    alone, params = curve(CONFIG, jax.devices()[:1])
    spread, sharded = curve(replace(CONFIG, mesh=MeshConfig(**{"fsdp": 1, **axes})), jax.devices())
    np.testing.assert_allclose(alone, spread, rtol=2e-5)
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(sharded), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "mesh",
    [MeshConfig(), MeshConfig(fsdp=2, sequence=2, tensor=2), MeshConfig(fsdp=1, sequence=4)],
    ids=["alone", "fsdp 2 x sequence 2 x tensor 2", "sequence 4"],
)
def test_the_kernels_take_the_steps_of_xla(mesh):
    """Interpreted, forward, backward and around the ring, with the policy that keeps lse."""
    model = replace(TINY, head_dim=64, num_layers=1, attention="xla")
    config = replace(CONFIG, model=model)
    expected, params = curve(config, jax.devices()[:1])
    kernels = replace(model, attention="pallas", remat="qkvo")
    size = max(mesh.fsdp, 1) * mesh.sequence * mesh.tensor
    got, other = curve(replace(config, model=kernels, mesh=mesh), jax.devices()[:size])
    np.testing.assert_allclose(got, expected, rtol=2e-5)
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5)


MESHES = [{"fsdp": 8}, {"fsdp": 2, "sequence": 4}, {"sequence": 8}]


@pytest.mark.parametrize("axes", MESHES, ids=str)
def test_a_device_has_the_logits_of_its_own_positions_alone(axes):
    batch = {k: jnp.asarray(v) for k, v in make_batch().items()}
    with jax.set_mesh(make_mesh(MeshConfig(**{"fsdp": 1, **axes}))):
        gradient = partial(loss_and_gradient, cfg=TINY)
        jaxpr = jax.make_jaxpr(gradient)(abstract_params(TINY), batch).jaxpr
    made = {
        loop.params["length"] * v.aval.size // TINY.vocab_size
        for loop in loops_of(jaxpr)
        for eqn in loop.params["jaxpr"].eqns
        for v in eqn.outvars
        if eqn.primitive.name == "dot_general" and v.aval.shape[2:] == (TINY.vocab_size,)
    }
    assert made == {8 * 16 // 8}


def test_a_row_that_the_ring_cannot_share_out_is_refused():
    model = replace(TINY, head_dim=64, attention="pallas")
    with jax.set_mesh(make_mesh(MeshConfig(fsdp=1, sequence=8))):
        with pytest.raises(InputError, match="seq_len=24 must be a multiple of 16"):
            ring_size(model, 24)
        assert ring_size(replace(model, attention="auto"), 24) == 1
        assert ring_size(replace(model, attention="xla"), 32) == 1
        assert ring_size(model, 32) == 8


def test_parameters_and_moments_are_born_sharded():
    _, _, abstract, state = make_state(CONFIG, make_mesh(MeshConfig(fsdp=8)))
    gate = state.params["layers"]["gate"]
    assert {s.data.shape for s in gate.addressable_shards} == {(2, 32 // 8, 64)}
    moments = state.opt_state[1].mu["layers"]["gate"]
    assert moments.sharding == gate.sharding
    assert jax.tree.map(lambda a: a.sharding, abstract.params) == jax.tree.map(
        lambda a: a.sharding, state.params
    )
