"""Checkpoints of bfloat16 weights alone: what they hold, who reads them, how a run goes on."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from llama_jax.config import CheckpointConfig, InputError, LoraConfig
from llama_jax.convert.native import read
from llama_jax.models import load
from llama_jax.pretrain import pretrain as train
from llama_jax.train.next_token import NextToken
from llama_jax.train.optimizer import learning_rate, make_optimizer
from llama_jax.train.state import init_state, saved_part, trained_table, with_saved
from tests.train.tiny import digests, facts

WEIGHTS = ("--checkpoint.weights-only", "True", "--eval-every", "0")


@pytest.fixture(scope="module")
def runs(tiny, tmp_path_factory):
    """The same four steps, saved in both ways."""
    folder = tmp_path_factory.mktemp("weights")
    train(tiny.config("--workdir", str(folder / "state"), "--eval-every", "0", "--steps", "4"))
    train(tiny.config("--workdir", str(folder / "weights"), *WEIGHTS, "--steps", "4"))
    return folder


def test_a_checkpoint_holds_the_weights_in_bfloat16_and_is_read_like_any_other(runs):
    saved = digests(runs / "weights", 4)
    assert {name for name in saved if not name.startswith("params/")} == {
        "opt_state/updates", "skipped", "step",
    }  # fmt: skip
    assert {a["dtype"] for name, a in saved.items() if name.startswith("params/")} == {"bfloat16"}
    whole, weights = load(runs / "state"), load(runs / "weights")
    assert weights.config.param_dtype == "bfloat16"
    for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(weights.params), strict=True):
        np.testing.assert_array_equal(np.asarray(a.astype(jnp.bfloat16)), np.asarray(b))
    assert read(runs / "weights").config == weights.config, "convert reads the same"


def test_a_run_goes_on_from_weights_at_its_place_in_the_schedule(runs, tiny, caplog):
    config = tiny.config("--workdir", str(runs / "weights"), *WEIGHTS, "--steps", "6")
    summary = train(config)
    assert (summary.resumed_from, summary.step) == (4, 6)
    assert "the optimizer's moments restart at step 4" in caplog.text
    rates = [m["train/learning_rate"] for m in facts(runs / "weights") if m["step"] > 4]
    schedule = learning_rate(config.optimizer, 6)
    assert rates == pytest.approx([float(schedule(4)), float(schedule(5))])
    caplog.clear()
    assert train(config).resumed_from == 6
    assert "anew" not in caplog.text


def test_a_state_from_weights_has_their_values_and_counts_and_no_moments(tiny):
    config = tiny.config()
    objective = NextToken(config.model)
    tx = make_optimizer(config.optimizer, trained_table(objective), config.steps)
    state = init_state(jax.random.key(0), objective, tx)
    grads = jax.tree.map(jnp.ones_like, state.params)
    for _ in range(3):
        _, moved = tx.update(grads, state.opt_state, state.params)
        state = state.replace(opt_state=moved, step=state.step + 1)
    saved = saved_part(state, objective, weights_only=True)
    assert int(saved.opt_state["updates"]) == 3
    fresh = init_state(jax.random.key(1), objective, tx)
    begun = with_saved(fresh, saved, weights_only=True)
    assert int(begun.step) == 3
    for a, b in zip(jax.tree.leaves(begun.params), jax.tree.leaves(state.params), strict=True):
        assert a.dtype == jnp.float32
        np.testing.assert_array_equal(a, b.astype(jnp.bfloat16).astype(jnp.float32))
    for leaf in jax.tree.leaves(begun.opt_state):
        assert int(jnp.max(leaf)) == (3 if leaf.ndim == 0 else 0)
    assert [int(v) for _, v in optax.tree.get_all_with_path(begun.opt_state, "count")] == [3, 3]


def test_weights_alone_are_refused_where_they_do_not_serve(runs, tiny):
    with pytest.raises(InputError, match=r"checkpoint\.weights_only False -> True"):
        train(tiny.config("--workdir", str(runs / "state"), *WEIGHTS, "--steps", "6"))
    with pytest.raises(InputError, match=r"lora\.rank=4 hold the adapters alone"):
        tiny.config(*WEIGHTS, "--init-from", "x", "--lora.rank", "4")
    assert not CheckpointConfig().weights_only
    assert not LoraConfig().rank
