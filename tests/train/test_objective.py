"""Objectives as values: what is trained, what is frozen, what is averaged over what."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from llama_jax.config import DataConfig, OptimizerConfig, TrainConfig
from llama_jax.model.llama import init_params
from llama_jax.model.presets import TINY
from llama_jax.model.weights import model_weights
from llama_jax.train.next_token import NextToken
from llama_jax.train.objective import Mean
from llama_jax.train.optimizer import make_optimizer
from llama_jax.train.state import init_state, select, trained_table, with_updates
from llama_jax.train.step import mean_loss_and_gradient, train_step
from tests.train.test_step import make_batch

CONFIG = TrainConfig(
    workdir="unused",
    steps=10,
    batch_size=8,
    seq_len=16,
    model=TINY,
    optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=0),
    data=DataConfig(dataset="unused"),
)


@dataclass(frozen=True)
class HeadOnly(NextToken):
    """Next-token prediction that trains the head alone, and reports two averages."""

    def trains(self, name):
        return name == "head"

    def loss(self, forward, batch, weights):
        loss, _ = super().loss(forward, batch, weights)
        tokens = batch["tokens"]
        even = Mean(jnp.sum(tokens % 2 == 0, dtype=jnp.float32), jnp.float32(tokens.size))
        return loss, {"even": even}


def batch_of(**sizes):
    return {k: jnp.asarray(v) for k, v in make_batch(**sizes).items()}


def test_a_selection_of_parameters_and_back():
    class Layers(NextToken):
        def trains(self, name):
            return name.startswith("layers/") and not name.endswith("norm")

    params = init_params(jax.random.key(0), TINY)
    chosen = select(params, Layers(TINY))
    assert set(chosen) == {"layers"}
    assert set(chosen["layers"]) == {"q", "k", "v", "o", "gate", "up", "down"}
    assert select(params, NextToken(TINY)).keys() == params.keys()
    doubled = with_updates(params, jax.tree.map(lambda a: 2 * a, chosen))
    np.testing.assert_array_equal(doubled["layers"]["q"], 2 * params["layers"]["q"])
    for name in ("attn_norm", "mlp_norm"):
        assert doubled["layers"][name] is params["layers"][name]
    assert doubled["head"] is params["head"]


def test_what_is_frozen_has_no_gradient_and_no_optimizer_state():
    objective = HeadOnly(TINY)
    tx = make_optimizer(CONFIG.optimizer, trained_table(objective), 10)
    state = init_state(jax.random.key(0), objective, tx)
    before = jax.device_get(state.params)
    assert set(state.opt_state[1].mu) == {"head"}
    new, metrics = train_step(state, batch_of(), objective=objective, tx=tx, accumulate=2)
    for name, old in before.items():
        changed = jax.tree.map(lambda a, b: bool(np.any(a != b)), new.params[name], old)
        assert (
            all(jax.tree.leaves(changed)) if name == "head" else not any(jax.tree.leaves(changed))
        )
    assert float(metrics.means["even"]) == np.mean(make_batch()["tokens"] % 2 == 0)


def test_the_gradient_of_a_selection_is_that_part_of_the_whole_gradient():
    params, batch = init_params(jax.random.key(0), TINY), batch_of()
    _, whole = mean_loss_and_gradient(params, batch, objective=NextToken(TINY), accumulate=1)
    _, part = mean_loss_and_gradient(params, batch, objective=HeadOnly(TINY), accumulate=1)
    assert set(part) == {"head"}
    np.testing.assert_array_equal(part["head"], whole["head"])


def test_a_score_head_takes_the_place_of_the_language_head():
    scorer = replace(TINY, head="score")
    table = model_weights(scorer)
    assert "head" not in table
    assert table["score"].shape == (TINY.d_model, 1)
    assert not table["score"].is_matrix  # float32 whatever the compute type, and no decay
    std = float(jnp.std(init_params(jax.random.key(0), replace(scorer, d_model=4096))["score"]))
    assert abs(std * (4097**0.5) - 1) < 0.05
