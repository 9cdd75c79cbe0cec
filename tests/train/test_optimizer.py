"""AdamW against NumPy, the schedule against its formula."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax.config import OptimizerConfig
from llama_jax.model.llama import init_params
from llama_jax.model.presets import TINY
from llama_jax.model.weights import model_weights
from llama_jax.train.optimizer import applied_updates, learning_rate, make_optimizer

CONFIG = OptimizerConfig(learning_rate=1e-2, warmup_steps=4)


def formula(update: int, steps: int, c: OptimizerConfig) -> float:
    """Learning rate of the update with this number, counted from 1 (Llama 2, section 2.2)."""
    if update <= c.warmup_steps:
        return c.learning_rate * update / c.warmup_steps
    share = min((update - c.warmup_steps) / (steps - c.warmup_steps), 1.0)
    low = c.learning_rate * c.final_ratio
    return low + (c.learning_rate - low) * 0.5 * (1 + math.cos(math.pi * share))


def test_schedule_rises_linearly_and_ends_at_a_tenth():
    schedule = learning_rate(CONFIG, 20)
    rates = [float(schedule(i)) for i in range(20)]
    np.testing.assert_allclose(rates, [formula(i + 1, 20, CONFIG) for i in range(20)], rtol=1e-6)
    assert rates[3] == pytest.approx(1e-2)
    assert rates[-1] == pytest.approx(1e-3)


def test_constant_schedule_stays_at_the_peak():
    constant = OptimizerConfig(learning_rate=1e-6, warmup_steps=0, schedule="constant")
    assert {float(learning_rate(constant, 9)(i)) for i in range(9)} == {float(np.float32(1e-6))}


def test_a_run_shorter_than_its_warmup_follows_the_same_line():
    short, long = learning_rate(CONFIG, 3), learning_rate(CONFIG, 20)
    assert [float(short(i)) for i in range(3)] == [float(long(i)) for i in range(3)]


def numpy_adamw(param, grads, decayed, steps, c, norms):
    """Parameter after AdamW with clipping, from the formulas, in float64."""
    m = v = np.zeros_like(param)
    for t, (g, norm) in enumerate(zip(grads, norms, strict=True), start=1):
        g = g * min(1.0, c.clip_norm / norm)
        m = c.b1 * m + (1 - c.b1) * g
        v = c.b2 * v + (1 - c.b2) * g * g
        direction = (m / (1 - c.b1**t)) / (np.sqrt(v / (1 - c.b2**t)) + c.eps)
        if decayed:
            direction = direction + c.weight_decay * param
        param = param - formula(t, steps, c) * direction
    return param


def test_updates_agree_with_numpy_and_norms_are_not_decayed():
    params = init_params(jax.random.key(0), TINY)
    tx = make_optimizer(CONFIG, model_weights(TINY), 20)
    rng = np.random.default_rng(0)
    # The second gradient is small, so that one is clipped and one is not.

    def draw(size):
        return jax.tree.map(lambda p: size * rng.standard_normal(p.shape), params)

    draws = [draw(1.0), draw(1e-4), draw(0.1)]
    norms = [math.sqrt(sum(np.sum(g**2) for g in jax.tree.leaves(d))) for d in draws]
    assert norms[1] < CONFIG.clip_norm < norms[0]
    state, new = tx.init(params), params
    for draw in draws:
        grads = jax.tree.map(lambda g: jnp.asarray(g, jnp.float32), draw)
        updates, state = tx.update(grads, state, new)
        new = jax.tree.map(jnp.add, new, updates)
    assert int(applied_updates(state)) == 3
    for path, decayed in {
        ("layers", "q"): True, ("layers", "attn_norm"): False, ("norm",): False, ("embed",): True,
    }.items():  # fmt: skip
        before, after, *grads = (_at(tree, path) for tree in (params, new, *draws))
        expected = numpy_adamw(before, grads, decayed, 20, CONFIG, norms)
        np.testing.assert_allclose(after, expected, rtol=2e-5, atol=2e-7, err_msg=str(path))


def _at(tree, path):
    for key in path:
        tree = tree[key]
    return np.asarray(tree, np.float64)
