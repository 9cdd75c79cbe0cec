"""Every stage from beginning to end, at a size of seconds: what it leaves, and what reads it."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath

import llama_jax
from llama_jax.align import iterations
from llama_jax.align.bank import read_samples, winners
from llama_jax.align.distill_context import distill_context
from llama_jax.align.ghost_attention import gatt
from llama_jax.align.grpo import grpo
from llama_jax.align.ppo import ppo
from llama_jax.align.rejection import rejection
from llama_jax.align.rollouts import Rollouts
from llama_jax.align.scoring import Scorer
from llama_jax.checkpoint import saved_steps
from llama_jax.config import InputError
from llama_jax.config_file import read_config
from llama_jax.data.conversations import prepare_prompts
from llama_jax.evals.stage_report import stage_parts
from llama_jax.model.llama import init_params
from llama_jax.models import open_model
from llama_jax.pretrain import pretrain
from llama_jax.train.metrics import METRICS_FILE, read_metrics
from tests.align.tiny_chat import MODEL
from tests.devices import devices
from tests.train.tiny import digests, facts

COMPILED = "/jax/core/compile/backend_compile_duration"


@pytest.fixture(scope="module")
def compiled():
    """Programs compiled until the end of each iteration of `ppo_run`."""
    return []


@pytest.fixture(scope="module")
def ppo_run(chat, compiled):
    """A run of three iterations, and its summary."""
    count, report = [0], iterations.Progress.report

    def listen(event, duration, **_):
        count[0] += event == COMPILED

    def note(self, *args):
        compiled.append(count[0])
        report(self, *args)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        with devices(1), pytest.MonkeyPatch.context() as patch:
            patch.setattr(iterations.Progress, "report", note)
            summary = ppo(chat.ppo())
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    return Path(summary.workdir), summary


@pytest.fixture(scope="module")
def rejection_run(chat):
    with devices(1):
        summary = rejection(chat.rejection(temperatures=(0.7, 1.3), temperature_prompts=4))
    return Path(summary.workdir), summary


@pytest.fixture(scope="module")
def grpo_run(chat):
    with devices(1):
        summary = grpo(chat.grpo())
    return Path(summary.workdir), summary


@pytest.fixture(scope="module")
def gatt_run(chat):
    with devices(1):
        summary = gatt(chat.gatt())
    return Path(summary.workdir), summary


@pytest.fixture(scope="module")
def distill_run(chat):
    with devices(1):
        summary = distill_context(chat.distill())
    return Path(summary.workdir), summary


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


COMMON = {"config.json", "tokenizer.model", "usage.json", "metrics.jsonl"}
TRAINED = COMMON | {"checkpoints", "tensorboard"}


def test_fine_tuning_leaves_a_run_that_knows_its_answers(chat):
    run = chat.folder / "sft"
    assert {p.name for p in run.iterdir()} == TRAINED | {"samples", "loss.svg"}
    evaluation = facts(run)[-1]
    assert evaluation.keys() >= {
        "eval/loss", "eval/accuracy", "eval/entropy", "eval/eos_accuracy"
    }  # fmt: skip
    assert evaluation["eval/accuracy"] > 0.5
    losses = [m["train/loss"] for m in facts(run) if "train/loss" in m]
    assert losses[-1] < losses[0] - 1
    sample = (run / "samples" / "step-00000006.txt").read_text()
    assert sample.startswith("> Can a cat eat corn?\n\n")


def test_reward_models_tell_what_they_get_right(chat):
    for kind, own in (("helpfulness", {"accuracy_negligibly"}), ("safety", {"unsafe_recall"})):
        run = chat.folder / kind
        assert {p.name for p in run.iterdir()} == TRAINED | {"loss.svg"}
        lines = facts(run)
        names = {"train/ranking_loss", "train/accuracy", "train/gap", "train/score"}
        assert lines[0].keys() >= names
        assert ("train/safety_loss" in lines[0]) == (kind == "safety")
        names = {"loss", "accuracy", "ties", "gap", "accuracy_significantly"} | own
        assert lines[-1].keys() >= {f"eval/{name}" for name in names}
        assert read_config(run)[1].stage == "reward"
    # A rating that no pair of the set has is not there, rather than 0.
    assert "eval/accuracy_better" not in facts(chat.folder / "safety")[-1]


def test_an_iteration_of_ppo_tells_all_that_it_is_watched_by(ppo_run):
    run, summary = ppo_run
    lines = read_lines(run / "metrics.jsonl")
    assert [m["step"] for m in lines] == [1, 2, 3]
    scores = {"mean", "scale_mean", "scale_std", "whitened", "by_safety", "unsafe"} | {
        f"{model}{part}" for model in ("helpfulness", "safety") for part in ("", "_p5", "_p95")
    }
    variety = {"distinct_2", "repetition", "self_bleu"}
    policy = {"loss", "grad_norm", "skipped", "clipped", "ratio", "ratio_first", "ratio_variance",
              "approx_kl", "entropy", "entropy_sampled"}  # fmt: skip
    answer = {"tokens", "truncated", "length_score_correlation"} | variety
    perf = {f"{phase}_seconds" for phase in ("generate", "score", "update", "eval")} | {
        "generate_tokens_per_second", "generate_compiled_share", "generate_busy_rows"
    }  # fmt: skip
    expected = {
        "score": scores, "policy": policy, "answer": answer, "perf": perf,
        "value": {"loss", "grad_norm", "skipped", "clipped", "explained_variance", "return"},
        "kl": {"answer", "answer_k3", "token", "token_k3"},
        "drift": {"mean", "max"},
        "heldout": {"proxy", "score"} | variety,
    }  # fmt: skip
    wanted = {f"{group}/{name}" for group, names in expected.items() for name in names}
    for line in lines:
        assert wanted <= line.keys()
        assert all(np.isfinite(value) for value in line.values())
    assert summary.last["score/mean"] == lines[-1]["score/mean"]
    assert summary.lines()[0] == "iteration 3 of 3: complete"


def test_ppo_starts_where_its_reference_is_and_its_ratio_at_exactly_one(ppo_run):
    lines = facts(ppo_run[0])
    first = lines[0]
    assert first["kl/answer"] == first["kl/token_k3"] == 0
    assert all(m["kl/answer"] != 0 for m in lines[1:])
    assert [m["policy/ratio_first"] for m in lines] == [1.0] * 3
    assert all(m["policy/ratio"] != 1 for m in lines)  # the second minibatch has moved
    assert all(m["drift/max"] < 1e-4 for m in lines)


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_ratio_is_exactly_one_in_bfloat16_too(chat, tmp_path, optimized, accumulate):
    """Scorer and step are two programs, of which one rematerialises, and pack other rows."""
    model = replace(MODEL, dtype="bfloat16", remat="full")
    own = {"workdir": str(tmp_path / "run"), "heldout": None, "eval_every": 0}
    with devices(1):
        run = Path(ppo(chat.ppo(model=model, accumulate=accumulate, **own)).workdir)
    assert facts(run)[0]["kl/answer"] == 0
    assert [m["policy/ratio_first"] for m in facts(run)] == [1.0] * 3


def test_answers_of_ppo_are_kept_for_people(chat, ppo_run):
    run, _ = ppo_run
    names = {p.name for p in run.iterdir()}
    assert names == TRAINED | {"completions", "samples", "rollouts"}
    assert list((run / "rollouts").iterdir()) == []  # a checkpoint is past them all
    assert saved_steps(epath.Path(run) / "checkpoints") == [1, 2, 3]
    for folder, rows in (("completions", 16), ("samples", 8)):
        files = sorted((run / folder).iterdir())
        assert [f.name for f in files] == [f"iteration-{n:06d}.jsonl" for n in (1, 2, 3)]
        for line in (line for file in files for line in read_lines(file)):
            assert [m["role"] for m in line["messages"]] == ["user", "assistant"]
            assert line["finish"] in ("stop", "length")
            assert line["score"] in (line["safety"], line["helpfulness"])
        assert all(len(read_lines(file)) == rows for file in files)
    asked = [
        m["messages"][0]["content"] for m in read_lines(run / "samples/iteration-000001.jsonl")
    ]
    trained = {
        line["messages"][0]["content"]
        for file in (run / "completions").iterdir()
        for line in read_lines(file)
    }
    assert trained.isdisjoint(asked)


def test_an_iteration_of_grpo_tells_what_its_groups_teach(grpo_run):
    run, summary = grpo_run
    assert {p.name for p in run.iterdir()} == TRAINED | {"completions", "samples", "rollouts"}
    lines = read_lines(run / "metrics.jsonl")
    assert [m["step"] for m in lines] == [1, 2, 3]
    wanted = {"group/flat", "group/flat_share", "group/std", "group/best", "group/learned_tokens",
              "policy/kl", "policy/loss", "policy/ratio_first", "kl/answer", "drift/max",
              "heldout/proxy", "score/mean"}  # fmt: skip
    for number, line in enumerate(lines, 1):
        assert wanted <= line.keys()
        assert not any(name.startswith("value/") for name in line)
        # Four answers to each of four prompts, one after another, and their rewards.
        found = read_lines(run / f"completions/iteration-{number:06d}.jsonl")
        asked = [m["messages"][0]["content"] for m in found]
        assert len(set(asked)) == 4
        assert asked == [asked[r // 4 * 4] for r in range(16)]
        scores = np.array([m["score"] for m in found]).reshape(4, 4)
        flat = (scores == scores[:, :1]).all(axis=1)
        assert line["group/flat"] == flat.sum()
        assert line["score/mean"] == pytest.approx(scores.mean(), abs=1e-4)
        assert line["policy/ratio_first"] == 1
    assert any(m["group/flat"] < 4 for m in lines)
    assert lines[0]["kl/answer"] == 0
    assert any(m["kl/answer"] != 0 for m in lines[1:])
    assert digests(run, 3).keys() & {"scale/mean", "value/step"} == set()
    assert summary.lines()[0] == "iteration 3 of 3: complete"
    assert summary.lines()[3].startswith("  held-out score")


def test_grpo_learns_from_reward_models_too(chat, tmp_path):
    config = chat.grpo(
        workdir=str(tmp_path / "run"), steps=1, reward=None,
        helpfulness=str(chat.folder / "helpfulness"), safety=str(chat.folder / "safety"),
        heldout=str(chat.folder / "heldout"), truncated="mask",
    )  # fmt: skip
    with devices(1):
        last = grpo(config).last
    assert {"score/helpfulness", "score/safety", "heldout/score"} <= last.keys()
    line = read_lines(tmp_path / "run" / "completions" / "iteration-000001.jsonl")[0]
    assert line["score"] in (line["safety"], line["helpfulness"])


def test_nothing_compiles_after_the_second_iteration(ppo_run, compiled):
    first, second, third = compiled
    assert first > 0  # it hears
    assert third == second


def test_rollouts_spend_their_time_in_compiled_steps(chat, tmp_path):
    """Of a model that has something to do: those of the other tests are drawn in milliseconds."""
    config = chat.ppo(wave_rows=16, model=replace(MODEL, d_model=128, d_ff=512, num_layers=3))
    limit = config.seq_len - config.max_new_tokens
    prompts = prepare_prompts(config.data, chat.tokenizer, max_tokens=limit)["train"][:32]
    policy = Scorer(config.model, init_params(jax.random.key(0), config.model), 16)
    rollouts = Rollouts(config, epath.Path(tmp_path), chat.tokenizer, prompt_len=limit)
    rollouts.draw(0, prompts, policy)
    _, _, found = rollouts.draw(1, prompts, policy)
    assert found["perf/generate_compiled_share"] > 0.7
    assert found["perf/generate_busy_rows"] > 0.7
    # What lies on disk is not drawn again.
    rows, stopped, again = rollouts.draw(1, prompts, policy)
    assert (again, len(rows["tokens"]), stopped.shape) == ({}, 32, (32,))


def test_rounds_of_rejection_sampling_leave_a_bank(chat, rejection_run):
    run, summary = rejection_run
    assert {p.name for p in run.iterdir()} == COMMON | {"round_1", "round_2"}
    assert len(read_lines(run / "metrics.jsonl")) == len(summary.rounds) == 2
    for number in (1, 2):
        folder = run / f"round_{number}"
        assert {p.name for p in folder.iterdir()} == {
            "samples.jsonl", "scores.jsonl", "winners.jsonl", "temperature.json",
            "best_of_n.json", "round.json", "sft",
        }  # fmt: skip
        samples = read_lines(folder / "samples.jsonl")
        assert len(samples) == len(read_lines(folder / "scores.jsonl")) == 6 * 3
        assert {s["round"] for s in samples} == {number}
        found = json.loads((folder / "temperature.json").read_text())
        means = found["mean_best_score"]
        assert means.keys() == {"0.7", "1.3"}
        assert found["chosen"] == float(max(means, key=means.get))
        assert {s["temperature"] for s in samples} == {found["chosen"]}
        facts = json.loads((folder / "round.json").read_text())
        figure = json.loads((folder / "best_of_n.json").read_text())
        assert figure["n"] == [1, 2]
        assert figure["max"][0] == pytest.approx(facts["score"], abs=1e-5)
        assert figure["max"][1] >= figure["max"][0]
        # The bank of all rounds so far, and the winners among it.
        bank = []
        for earlier in range(1, number + 1):
            part = epath.Path(run) / f"round_{earlier}"
            scores = [m["score"] for m in read_lines(part / "scores.jsonl")]
            bank += zip(read_samples(part / "samples.jsonl"), scores, strict=True)
        best = winners(bank)
        assert len(best) == facts["winners"] > 0
        assert facts["winners_score"] == pytest.approx(np.mean([score for _, score in best]))
        told = [[m["content"] for m in d["messages"]] for d in read_lines(folder / "winners.jsonl")]
        assert sorted(told) == sorted([s.messages[0]["content"], s.text] for s, _ in best)
    # The rounds have prompts of their own, and the second learns from the bank of both.
    first, second = ({s["prompt_id"] for s in read_lines(run / f"round_{n}/samples.jsonl")}
                     for n in (1, 2))  # fmt: skip
    assert first.isdisjoint(second)
    assert facts["winners"] > json.loads((run / "round_1/round.json").read_text())["winners"]
    policies = [read_lines(run / f"round_{n}/samples.jsonl")[0]["policy"] for n in (1, 2)]
    assert policies[0] != policies[1]
    assert summary.model == str(run / "round_2" / "sft")


def test_ghost_attention_trains_on_conversations_of_the_models_own(chat, gatt_run):
    run, summary = gatt_run
    assert {p.name for p in run.iterdir()} == TRAINED
    assert (summary.step, read_config(run)[1].stage) == (2, "gatt")
    (file,) = (chat.folder / "cache").glob("gatt-*.jsonl")
    for dialogue in read_lines(file):
        users = [m["content"] for m in dialogue["messages"] if m["role"] == "user"]
        assert [u.startswith("Be kind. ") for u in users] == [True] + [False] * (len(users) - 1)
        trained = [m.get("train", True) for m in dialogue["messages"] if m["role"] == "assistant"]
        assert trained == [False] * (len(users) - 1) + [True]
        assert 2 <= len(users) <= 3


def test_context_distillation_trains_on_answers_without_their_preprompt(chat, distill_run):
    run, summary = distill_run
    assert {p.name for p in run.iterdir()} == TRAINED
    assert (summary.step, read_config(run)[1].stage) == (2, "distill-context")
    (file,) = (chat.folder / "cache").glob("distill-context-*.jsonl")
    dialogues = read_lines(file)
    assert dialogues
    assert {tuple(m["role"] for m in d["messages"]) for d in dialogues} == {("user", "assistant")}


@pytest.mark.parametrize("stage", ["ppo", "grpo", "rejection", "gatt", "distill"])
def test_a_run_of_any_stage_is_a_model(chat, stage, request):
    run, _ = request.getfixturevalue(f"{stage}_run")
    model, source = llama_jax.load(run), llama_jax.load(chat.folder / "sft")
    assert model.config == source.config
    assert model.tokenizer.fingerprint == chat.tokenizer.fingerprint
    assert jax.tree.structure(model.params) == jax.tree.structure(source.params)
    assert np.any(np.asarray(model.params["head"]) != np.asarray(source.params["head"]))
    assert llama_jax.generate(model, "Can", max_new_tokens=3).startswith("Can")


@pytest.mark.parametrize("stage", ["ppo", "grpo", "rejection", "gatt", "distill"])
def test_a_run_of_any_stage_has_a_page(stage, request):
    run = epath.Path(request.getfixturevalue(f"{stage}_run")[0])
    experiment = read_config(run)[1]
    page = "".join(stage_parts(str(run), run, experiment, read_metrics(run / METRICS_FILE)))
    assert f"A run of <code>llama-jax {experiment.stage}</code> that starts from" in page
    assert "<svg" in page
    assert ("What it says" in page) == (stage in ("ppo", "grpo", "rejection"))
    assert f"chat {run}" in page


def test_the_model_of_ppo_is_its_policy_and_not_its_value(ppo_run):
    run, _ = ppo_run
    saved = digests(run, 3)
    assert {name.split("/")[0] for name in saved} == {
        "params", "opt_state", "step", "skipped", "value", "scale"
    }  # fmt: skip
    assert "params/head" in saved
    assert {"value/params/score", "value/params/score_bias"} <= saved.keys()
    assert "params/score" not in saved


def test_the_model_of_rejection_sampling_is_that_of_its_newest_round(rejection_run, tmp_path):
    run, _ = rejection_run
    newest = llama_jax.load(run / "round_2" / "sft")
    np.testing.assert_array_equal(llama_jax.load(run).params["head"], newest.params["head"])
    assert open_model(run).path == str(run / "round_2" / "sft")
    # A round that is not complete does not count.
    (tmp_path / "run" / "round_1").mkdir(parents=True)
    with pytest.raises(InputError, match="has finished no round of rejection sampling yet"):
        open_model(tmp_path / "run")
    for number in (2, 10):
        (tmp_path / "run" / f"round_{number}").mkdir()
    (tmp_path / "run" / "round_1" / "round.json").touch()
    with pytest.raises(InputError, match="round_1/sft"):
        open_model(tmp_path / "run")
    for number in (2, 10):
        (tmp_path / "run" / f"round_{number}" / "round.json").touch()
    with pytest.raises(InputError, match="round_10/sft"):
        open_model(tmp_path / "run")


def test_a_reward_model_writes_nothing_and_says_so_in_one_line(chat):
    model = llama_jax.load(chat.folder / "helpfulness")
    assert model.config.head == "score"
    with pytest.raises(
        InputError, match=r"^the model is a reward model: .* name a language model$"
    ):
        llama_jax.generate(model, "Can", max_new_tokens=3)


def test_the_answers_of_the_stages_are_the_models_own(chat, ppo_run):
    """A fine-tuned base continues training as a base: stages follow each other in any order."""
    run, _ = ppo_run
    with devices(1):
        config = replace(chat.base(workdir=str(chat.folder / "after")), init_from=str(run))
        assert pretrain(replace(config, steps=1)).step == 1
