"""Policies, values and reward models as adapters of one base: held once, and exactly the base."""

import shutil
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.tpu import llama2_7b_ppo
from llama_jax.align.grpo import grpo
from llama_jax.align.ppo import Ppo, objectives, ppo
from llama_jax.align.reward import reward
from llama_jax.config import InputError, LoraConfig, MeshConfig, adapted
from llama_jax.model.weights import abstract_params
from llama_jax.models import load, open_model
from llama_jax.parallel.mesh import make_mesh
from llama_jax.tpu.chips import GiB
from llama_jax.train.state import abstract_state, saved_part, with_updates
from llama_jax.train.step import jit_adapter_step, jit_train_step
from tests.devices import devices
from tests.optimized import optimizing
from tests.train.tiny import digests, facts

LORA = LoraConfig(rank=3, targets=("q", "v", "down"))
SCORED = LoraConfig(rank=2, targets=("q", "gate"))
"""Adapters of the reward models, and so of the value."""


def names(lora):
    return {f"layers/{name}_{end}" for name in lora.targets for end in "ab"}


@pytest.fixture(scope="module", autouse=True)
def one_device():
    with devices(1):
        yield


@pytest.fixture(scope="module")
def world(files, tmp_path_factory):
    """A base and two reward models that are adapters of it."""
    folder = tmp_path_factory.mktemp("hydra")
    shutil.copytree(files.untrained("hydra_base", seed=6), folder / "base")
    for kind in ("helpfulness", "safety"):
        reward(
            files.reward(
                kind,
                workdir=str(folder / kind),
                init_from=str(folder / "base"),
                lora=SCORED,
                steps=1,
            )
        )
    return folder


def settings(folder, name, **changes):
    models = {k: str(folder / k) for k in ("helpfulness", "safety")}
    here = {"workdir": str(folder / name), "init_from": str(folder / "base"), "lora": LORA}
    return {**here, **models, "steps": 2, "heldout": None, "eval_every": 0, **changes}


@pytest.fixture(scope="module")
def ppo_run(files, world):
    with optimizing():  # exactly equal is a word about the programs that users have
        summary = ppo(files.ppo(**settings(world, "ppo")))
    assert summary.step == 2
    return Path(summary.workdir)


def test_the_kl_is_exactly_0_before_the_first_update(ppo_run):
    first, second = facts(ppo_run)
    assert first["kl/answer"] == first["kl/answer_k3"] == first["kl/token"] == 0
    assert first["policy/ratio_first"] == second["policy/ratio_first"] == 1
    assert second["kl/answer"] != 0
    assert max(first["drift/max"], second["drift/max"]) < 1e-4  # the sampler's are merged


def test_a_checkpoint_holds_adapters_and_the_head_of_the_value_alone(ppo_run):
    saved = digests(ppo_run, 2)
    assert {n.removeprefix("params/") for n in saved if n.startswith("params/")} == names(LORA)
    value = {n.removeprefix("value/params/") for n in saved if n.startswith("value/params/")}
    assert value == names(SCORED) | {"score", "score_bias"}
    moments = {n.split("mu/")[1] for n in saved if n.startswith("opt_state") and "/mu/" in n}
    assert moments == names(LORA)


def test_the_run_opens_as_its_base_with_the_policy_merged(ppo_run, world):
    base, model = load(str(world / "base")), load(str(ppo_run))
    pairs = {k: (w, base.params["layers"][k]) for k, w in model.params["layers"].items()}
    changed = {k for k, (a, b) in pairs.items() if np.any(np.asarray(a) != np.asarray(b))}
    assert changed == set(LORA.targets)


def test_a_run_that_stopped_and_went_on_has_the_same_bytes(files, world, ppo_run, optimized):
    for steps in (1, 2):
        summary = ppo(files.ppo(**settings(world, "cut", steps=steps)))
    assert summary.resumed_from == 1
    assert digests(world / "cut", 2) == digests(ppo_run, 2)


def learner_of(files, folder, **changes):
    config = adapted(files.ppo(**settings(folder, "unused", **changes)))
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    source = open_model(config.init_from)
    with jax.set_mesh(mesh):
        return config, mesh, Ppo(config, source.tokenizer, source, mesh)


def test_all_models_share_the_arrays_of_one_base(files, world):
    _, mesh, learner = learner_of(files, world)
    with jax.set_mesh(mesh):
        learner.begin()
    base = learner.trainer.base.params
    models = [
        learner.reference, learner.trainer.scorer("policy"), learner.trainer.scorer("value"),
        learner.rewards.helpfulness.scorer, learner.rewards.safety.scorer,
    ]  # fmt: skip
    for model in models:
        for name, w in base["layers"].items():
            assert model.params["layers"][name] is w
        assert model.params["embed"] is base["embed"]
    held = {id(w): w.nbytes for model in models for w in jax.tree.leaves(model.params)}
    whole = sum(w.nbytes for w in jax.tree.leaves(base))
    assert sum(held.values()) < 1.5 * whole  # not five times


def test_the_step_over_a_base_is_that_of_the_whole_model(files, world):
    config, mesh, learner = learner_of(files, world)
    rng = np.random.default_rng(0)
    shape = (config.minibatch, config.seq_len)
    batch = {
        "tokens": rng.integers(0, 400, shape).astype(np.int32),
        "positions": np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape),
        "segment_ids": np.ones(shape, np.int32),
        "answer": rng.random(shape) < 0.5,
        "old_logp": rng.uniform(-7, -5, shape).astype(np.float32),
        "advantages": rng.standard_normal(shape).astype(np.float32),
    }
    with jax.set_mesh(mesh):
        learner.begin()
        trainer = learner.trainer
        policy, tx = trainer.objectives["policy"], trainer.tx["policy"]
        part = trainer.states["policy"]
        whole = replace(part, params=with_updates(trainer.base.params, part.params))
        abstract = abstract_state(policy, tx, mesh)
        copy = jax.tree.map(jax.numpy.copy, whole)
        expected, _ = jit_train_step(config, policy, tx, abstract)(copy, batch)
        step = jit_adapter_step(config, policy, tx, saved_part(abstract, policy))
        found, metrics = step(part, trainer.base.params, batch)
    assert float(metrics.grad_norm) > 0
    assert set(found.params) == {"layers"}
    for name, w in found.params["layers"].items():
        np.testing.assert_array_equal(w, expected.params["layers"][name])
    assert not trainer.base.params["embed"].is_deleted()  # unlike the state, it is not given away


def test_the_value_starts_from_adapters_of_the_same_base_or_not_at_all(files, world):
    """Neither a whole reward model will do, nor adapters of another base, nor those that were
    trained on this base in fewer bits."""
    other = settings(world, "refused", init_from=files.untrained("other_base", seed=7))
    whole = settings(world, "refused", helpfulness=files.untrained("whole", head="score"))
    shutil.copytree(world / "helpfulness", world / "on_nf4")
    file = world / "on_nf4" / "config.json"
    file.write_text(file.read_text().replace('"base": "dense"', '"base": "nf4"'))
    packed = settings(world, "refused", helpfulness=str(world / "on_nf4"))
    for changed in (other, whole, packed):
        with pytest.raises(
            InputError, match=r"^helpfulness \S+ is not an adapter of init_from \S+ in"
        ):
            ppo(files.ppo(**changed))
    assert not (world / "refused").exists()


def test_a_policy_keeps_its_base_as_it_is(files, world):
    packed = LoraConfig(rank=2, base="nf4")
    with pytest.raises(InputError, match=r"^lora.base=nf4 is for train, sft, reward and dpo; ppo"):
        files.ppo(**settings(world, "refused", lora=packed))


@pytest.mark.slow
def test_groups_learn_adapters_too(files, world):
    own = settings(world, "grpo", helpfulness=None, safety=None, steps=2)
    summary = grpo(files.grpo(**own))
    assert facts(Path(summary.workdir))[0]["kl/answer"] == 0
    saved = digests(Path(summary.workdir), 2)
    assert {n.removeprefix("params/") for n in saved if n.startswith("params/")} == names(LORA)
    assert not any(n.startswith("value/") for n in saved)


def test_a_hydra_of_the_7b_holds_17_gib_where_whole_models_hold_200():
    """Of abstract trees: weights, adapters and moments, as the stages make them."""
    mesh, whole = make_mesh(MeshConfig(), jax.devices()[:1]), llama2_7b_ppo.CONFIG
    model = replace(whole.model, param_dtype="bfloat16")
    hydra = adapted(replace(whole, model=model, lora=LoraConfig(rank=64)))

    def bytes_of(tree):
        return sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(tree))

    def trained(config):
        score = replace(config.model, head="score")
        parts, tx = objectives(config, score)
        own = {k: saved_part(abstract_state(parts[k], tx[k], mesh), parts[k]) for k in parts}
        return bytes_of(own), bytes_of(own["value"].params)

    own, reward = trained(hydra)
    base = bytes_of(abstract_params(model))
    assert (base + own + 2 * reward) / GiB == pytest.approx(17.3, abs=0.05)
    states, score = trained(whole)
    # And the reference, two reward models, and a copy in bfloat16 that answers.
    frozen = bytes_of(abstract_params(whole.model)) + 2 * score + base
    assert (states + frozen) / GiB > 200
