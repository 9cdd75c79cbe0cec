"""PPO on a slice, by the facts of two compilations and arithmetic."""

import json
from argparse import ArgumentParser
from dataclasses import replace

import pytest

from llama_jax.config import InputError, MeshConfig
from llama_jax.model.weights import parameter_count
from llama_jax.tpu import plan as planning
from llama_jax.tpu import ppo_plan as planner
from llama_jax.tpu.chips import GiB
from llama_jax.tpu.command import preset_experiment, run
from llama_jax.tpu.ppo_plan import ppo_json, ppo_plan, ppo_text
from llama_jax.tpu.topology import parse
from tests.tpu.test_plan import FACTS

V5E = parse("v5e-64")


@pytest.fixture
def compiled(monkeypatch):
    """Compilations that find what FACTS says; the parts that were asked for."""
    asked = []

    def facts_of(config, topology, save, part):
        asked.append((part, config.model.head, config.batch_size))
        return FACTS

    monkeypatch.setattr(planning, "facts_of", facts_of)
    return asked


def experiment(**changes):
    return replace(preset_experiment("llama2-7b", V5E, "ppo"), **changes)


def test_both_updates_are_of_a_minibatch(compiled):
    p = ppo_plan(experiment(), V5E)
    assert compiled == [("policy", "language", 64), ("value", "score", 64)]
    assert p.seconds["update"] == 8 * sum(u.step_seconds for u in p.updates.values())


def test_grpo_has_no_value(compiled):
    config = preset_experiment("llama2-7b", V5E, "grpo")
    p = ppo_plan(config, V5E)
    assert compiled == [("policy", "language", 64)]
    assert p.models.keys() == {"policy", "reference", "helpfulness", "safety"}
    assert set(p.moments) == {"generate", "policy update"}
    assert "GRPO with 512 answers" in ppo_text(p)
    alone = replace(config, helpfulness=None, safety=None, reward="judge")
    assert ppo_plan(alone, V5E).models.keys() == {"policy", "reference"}
    # Each prompt of a group is read once.
    more = ppo_plan(replace(config, group=2), V5E)
    assert more.seconds["generate"] > p.seconds["generate"]


def test_memory_is_every_model_and_what_the_moment_adds(compiled):
    config = experiment()
    p = ppo_plan(config, V5E)
    scored = replace(config.model, head="score")
    trained = 3 * GiB  # FACTS: parameters and optimizer
    frozen = (parameter_count(config.model) * 4 // 64, parameter_count(scored) * 4 // 64)
    assert p.resident == 2 * trained + frozen[0] + 2 * frozen[1]
    update = p.updates["policy"].total
    assert p.moments["policy update"] == p.resident - trained + update
    assert ppo_plan(replace(config, safety=None), V5E).resident == p.resident - frozen[1]

    # Keys and values of a row in bfloat16, its heads split by `tensor`.
    tensor = config.mesh.tensor
    assert p.row == 4096 * 2 * 32 * 4096 * 2 // tensor
    assert p.gathered == parameter_count(config.model) * 2 // tensor
    shards = 64 // tensor
    free = p.limit - p.resident - p.gathered
    assert p.wave_rows == min(free // p.row, 512 // shards) * shards > 0
    assert p.moments["generate"] <= p.limit


def test_more_answers_than_fit_take_more_waves(compiled, monkeypatch):
    config = experiment(max_new_tokens=1024)
    one = ppo_plan(config, V5E)
    monkeypatch.setattr(planner, "_cache_bytes", lambda c: one.row * config.mesh.tensor)
    # So large that one row fits, where several did.
    row = (one.limit - one.resident - one.gathered) // config.seq_len
    monkeypatch.setattr(planner, "_cache_bytes", lambda c: row * config.mesh.tensor)
    few = ppo_plan(config, V5E)
    assert few.rows_of_a_device == 1 < one.rows_of_a_device
    assert few.seconds["generate"] > one.seconds["generate"]


def test_weights_that_leave_no_room_for_an_answer_are_said(compiled):
    whole = ppo_plan(experiment(mesh=MeshConfig(fsdp=-1)), V5E)
    assert whole.wave_rows == 0
    assert not whole.fits
    assert "raise --mesh.tensor" in ppo_text(whole)


def test_a_chip_reads_weights_and_cache_once_a_token(compiled):
    config = experiment(max_new_tokens=1000, seq_len=3000)
    longer = replace(config, max_new_tokens=1004, seq_len=3004)  # as long prompts
    p, q = ppo_plan(config, V5E), ppo_plan(longer, V5E)
    rows, more = p.rows_of_a_device, q.seconds["generate"] - p.seconds["generate"]
    mean = p.row / 3000 * 2500  # bytes of a row that is drawn by half
    least = 4 * (p.gathered + rows * mean) / V5E.chip.hbm_bytes_per_second
    assert rows == q.rows_of_a_device
    # The others read 2 more positions each.
    others = 1000 * rows * p.row / 3000 * 2 / V5E.chip.hbm_bytes_per_second
    waves = -(-config.batch_size // p.wave_rows)
    assert more == pytest.approx(waves * (least + others), rel=0.01)


def test_the_command_prints_it(compiled):
    arguments = ["--model", "llama2-7b", "--topology", "v5e-64", "--stage", "ppo"]
    said = run(arguments, ArgumentParser)
    assert "wave size" in said
    assert "512 answers an iteration, minibatches of 64 x 4096 tokens, 1024 of them drawn" in said
    found = json.loads(run([*arguments, "--json"], ArgumentParser))
    assert found == json.loads(json.dumps(ppo_json(ppo_plan(experiment(), V5E))))
    assert set(found["hbm_bytes_per_chip"]) == {
        "policy", "value", "reference", "helpfulness", "safety",
    }  # fmt: skip
    with pytest.raises(InputError, match="plans iterations: drop --save or --search"):
        run([*arguments, "--search"], ArgumentParser)


def test_answers_that_do_not_divide_are_refused(compiled):
    with pytest.raises(InputError, match="batch_size=72 answers do not divide over the 16"):
        ppo_plan(experiment(batch_size=72, minibatch=72), V5E)
