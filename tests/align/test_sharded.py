"""The steps of fine-tuning, reward models, PPO and GRPO are the same on eight devices as on one."""

from dataclasses import replace
from functools import cache

import jax
import numpy as np
import pytest

from llama_jax.align.policy_objectives import GroupedPolicy, Policy, Value
from llama_jax.align.reward import Pairwise
from llama_jax.align.sft import Answers
from llama_jax.config import MeshConfig
from llama_jax.model.presets import TINY
from llama_jax.model.weights import abstract_params, logical_axes
from llama_jax.parallel.arrays import shard_batch
from llama_jax.parallel.mesh import make_mesh
from llama_jax.parallel.rules import named_sharding
from llama_jax.train.step import mean_loss_and_gradient
from tests.comparison import assert_trees_close, quick_jit, random_params

B, T = 8, 16
LANGUAGE = replace(TINY, num_layers=1)
SCORE = replace(LANGUAGE, head="score")
PARAMS = {cfg.head: random_params(abstract_params(cfg)) for cfg in (LANGUAGE, SCORE)}
OBJECTIVES = {
    "sft": Answers(LANGUAGE),
    "reward": Pairwise(SCORE, "small", 1.0),
    "policy": Policy(LANGUAGE, clip=0.2, temperature=0.9),
    "grouped": GroupedPolicy(LANGUAGE, clip=0.2, temperature=0.9, beta=0.1),
    "value": Value(SCORE, clip=0.2),
}


def batch_of(name):
    """Rows of unequal prompts and answers, so that no device has as much to say as another."""
    rng = np.random.default_rng(0)
    shape = (B, 2, T) if name == "reward" else (B, T)
    lengths = rng.integers(4, T + 1, shape[:-1])[..., None]
    valid = np.broadcast_to(np.arange(T), shape) < lengths
    chosen = valid & (np.broadcast_to(np.arange(T), shape) >= 2)
    batch = {
        "tokens": rng.integers(0, LANGUAGE.vocab_size, shape).astype(np.int32),
        "positions": np.where(valid, np.arange(T), 0).astype(np.int32),
        "segment_ids": valid.astype(np.int32),
        "loss_mask": chosen.astype(np.uint8),
        "answer": chosen & np.roll(valid, -1, axis=-1) & (np.arange(T) < T - 1),
        "rating": rng.integers(-1, 4, (B, 1)).astype(np.int32),
        "margin": np.where(rng.random((B, 1)) < 0.5, np.nan, 0.2).astype(np.float32),
        "safe": rng.integers(-1, 2, (B, 1, 2)).astype(np.int8),
        **{k: rng.uniform(-6, -4, shape).astype(np.float32) for k in ("old_logp", "ref_logp")},
        **{k: rng.standard_normal(shape).astype(np.float32)
           for k in ("advantages", "old_values", "returns")},
    }  # fmt: skip
    return {k: batch[k] for k in OBJECTIVES[name].abstract_batch(B, T)}


@cache
def step_of(name):
    def step(params, batch):
        (loss, means), gradient = mean_loss_and_gradient(
            params, batch, objective=OBJECTIVES[name], accumulate=1
        )
        return {"loss": loss, **{k: m.total / m.count for k, m in means.items()}}, gradient

    return quick_jit(step)


@cache
def on_one_device(name):
    return step_of(name)(PARAMS[OBJECTIVES[name].model.head], batch_of(name))


FSDP, THREE = {"fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}
FAST = {("sft", str(THREE)), ("reward", str(FSDP)), ("policy", str(THREE)), ("grouped", str(FSDP))}


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        pytest.param(name, sizes, marks=() if (name, str(sizes)) in FAST else pytest.mark.slow)
        for name in OBJECTIVES
        for sizes in (FSDP, THREE)
    ],
    ids=str,
)
def test_eight_devices_agree_with_one(name, sizes):
    mesh, model = make_mesh(MeshConfig(**sizes)), OBJECTIVES[name].model
    params = jax.tree.map(
        lambda leaf, axes: jax.device_put(leaf, named_sharding(axes, mesh, leaf.shape)),
        PARAMS[model.head],
        logical_axes(model),
    )
    with jax.set_mesh(mesh):
        found, gradient = step_of(name)(params, shard_batch(batch_of(name), mesh, B))
    expected, expected_gradient = on_one_device(name)
    assert_trees_close(found, expected, 1e-5)
    assert_trees_close(gradient, expected_gradient, 1e-5)
