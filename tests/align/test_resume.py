"""Stages that fail anywhere and are started again leave the bytes of one that never failed."""

import functools
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from etils import epath

from llama_jax.align import (
    experience,
    ghost_attention,
    grpo,
    iterations,
    ppo,
    rejection,
    rejection_round,
    trainer,
)
from llama_jax.align.reward import reward
from llama_jax.align.sft import sft
from llama_jax.checkpoint import Checkpointer, saved_steps
from llama_jax.config import CheckpointConfig, InputError
from llama_jax.train import loop
from llama_jax.train.report import TrainingError
from tests.devices import devices
from tests.train.tiny import digests, facts


class Killed(BaseException):
    """Nothing catches it, as nothing catches a kill."""


def fail_at(patch, owner, name, call, *, after=False):
    """Let a function fail at its `call`-th call, before it does anything or when it has."""
    real, calls = getattr(owner, name), []

    def failing(*args, **kwargs):
        calls.append(1)
        if len(calls) == call and not after:
            raise Killed
        found = real(*args, **kwargs)
        if len(calls) == call:
            raise Killed
        return found

    patch.setattr(owner, name, failing)


def run_to_the_end(stage, config, failures):
    """Run a stage that fails at each of the places in turn, then once more without failing."""
    for owner, name, call, after in failures:
        with devices(1), pytest.MonkeyPatch.context() as patch:
            fail_at(patch, owner, name, call, after=after)
            with pytest.raises(Killed):
                stage(config)
    with devices(1):
        return stage(config)


def files(folder, *patterns):
    """The content of files by their names below a folder."""
    found = [path for pattern in patterns for path in sorted(folder.glob(pattern))]
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


@pytest.fixture(scope="module")
def reference(chat, tmp_path_factory):
    """reference("ppo"), reference("grpo"): a run that never failed."""
    folder = tmp_path_factory.mktemp("policies")
    stages = {"ppo": (ppo.ppo, chat.ppo), "grpo": (grpo.grpo, chat.grpo)}

    @functools.cache
    def run(stage):
        function, make = stages[stage]
        with devices(1):
            return Path(function(make(workdir=str(folder / stage))).workdir)

    return run


@pytest.fixture(scope="module")
def ppo_run(reference):
    return reference("ppo")


FAILURES = {
    "after rollouts": (iterations.Rollouts, "answers", 1, False),
    "between updates": (trainer.Trainer, "update", 3, False),
    "after an examination": (iterations, "examine", 1, True),
    "before a checkpoint": (Checkpointer, "save", 1, False),
    "while scoring, in the second iteration": (experience, "read_answers", 2, True),
    "after a checkpoint": (iterations.Rollouts, "forget", 1, False),
}


def assert_same_policy(run, reference):
    assert digests(run, 3) == digests(reference, 3)
    assert facts(run) == facts(reference)
    patterns = ("completions/*", "samples/*")
    assert files(run, *patterns) == files(reference, *patterns)
    assert files(run, "rollouts/*") == {}


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "checkpoint"), [("ppo", 1), ("ppo", 2), ("grpo", 1)])
def test_a_policy_that_fails_everywhere_ends_with_the_same_bytes(
    chat, reference, tmp_path, stage, checkpoint
):
    """With a checkpoint at every other iteration, some are made twice, from their rollouts."""
    function, make = {"ppo": (ppo.ppo, chat.ppo), "grpo": (grpo.grpo, chat.grpo)}[stage]
    every = CheckpointConfig(every=checkpoint)
    config = make(workdir=str(tmp_path / "run"), checkpoint=every)
    summary = run_to_the_end(function, config, FAILURES.values())
    assert summary.step == 3
    assert_same_policy(tmp_path / "run", reference(stage))


def test_rollouts_are_not_drawn_again(chat, ppo_run, tmp_path):
    config = chat.ppo(workdir=str(tmp_path / "run"))
    with devices(1), pytest.MonkeyPatch.context() as patch:
        fail_at(patch, *FAILURES["between updates"][:3])
        with pytest.raises(Killed):
            ppo.ppo(config)
    (kept,) = (tmp_path / "run" / "rollouts").iterdir()
    assert kept.name == "000000.npz"
    with devices(1), pytest.MonkeyPatch.context() as patch:
        drawn = []
        sample = iterations.Rollouts._sample

        def counted(self, prompts, *args):
            drawn.append(len(prompts))
            return sample(self, prompts, *args)

        patch.setattr(iterations.Rollouts, "_sample", counted)
        ppo.ppo(config)
    assert drawn == [8, 16, 8, 16, 8]  # held out, then two iterations of answers with theirs
    assert_same_policy(tmp_path / "run", ppo_run)


@pytest.fixture(scope="module")
def rejection_run(chat, tmp_path_factory):
    workdir = str(tmp_path_factory.mktemp("rejection") / "run")
    with devices(1):
        return Path(rejection.rejection(rejection_config(chat, workdir)).workdir)


def rejection_config(chat, workdir):
    return chat.rejection(workdir=workdir, temperatures=(0.8, 1.2), temperature_prompts=3)


REJECTION_FAILURES = (
    (rejection_round, "score_answers", 2, False),  # of the second temperature
    (rejection_round, "decode_answer", 7, False),  # with six of eighteen answers in the bank
    (rejection_round, "decode_answer", 5, False),  # with ten
    (rejection_round, "scored", 1, False),
    (rejection_round, "scored", 1, True),
    (rejection_round.Round, "fine_tune", 1, False),
    (loop, "shard_batch", 1, False),  # in fine-tuning
    (rejection_round.Round, "fine_tune", 1, True),
    (rejection_round, "scored", 2, True),  # of the first round's bank, in the second
)


@pytest.mark.slow
def test_rejection_sampling_that_fails_everywhere_ends_with_the_same_bytes(
    chat, rejection_run, tmp_path
):
    run = tmp_path / "run"
    run_to_the_end(rejection.rejection, rejection_config(chat, str(run)), REJECTION_FAILURES)
    patterns = ("*.jsonl", "round_*/*.json", "round_*/*.jsonl")
    found, expected = files(run, *patterns), files(rejection_run, *patterns)
    assert found.keys() == expected.keys()
    assert found == expected
    for number in (1, 2):
        path = f"round_{number}/sft"
        assert digests(run / path, 1) == digests(rejection_run / path, 1)


def test_answers_in_the_bank_are_not_drawn_again(chat, rejection_run, tmp_path):
    """A kill leaves half a line as well, which is no answer."""
    config = rejection_config(chat, str(tmp_path / "run"))
    with devices(1), pytest.MonkeyPatch.context() as patch:
        fail_at(patch, rejection_round, "decode_answer", 7)
        with pytest.raises(Killed):
            rejection.rejection(config)
    partial = tmp_path / "run" / "round_1" / "samples.partial.jsonl"
    assert len(partial.read_text().splitlines()) == 6
    partial.write_text(partial.read_text() + '{"prompt_id": "')
    with devices(1), pytest.MonkeyPatch.context() as patch:
        fail_at(patch, rejection_round, "decode_answer", 13)
        with pytest.raises(Killed):  # the first answer of the second round
            rejection.rejection(config)
    assert not partial.exists()
    name = "round_1/samples.jsonl"
    assert (tmp_path / "run" / name).read_bytes() == (rejection_run / name).read_bytes()


def test_a_run_with_more_rounds_goes_on(chat, rejection_run, tmp_path):
    config = rejection_config(chat, str(tmp_path / "run"))
    with devices(1):
        assert len(rejection.rejection(replace(config, rounds=1)).rounds) == 1
        summary = rejection.rejection(config)
    assert len(summary.rounds) == 2
    name = "round_2/samples.jsonl"
    assert (tmp_path / "run" / name).read_bytes() == (rejection_run / name).read_bytes()


def test_sigterm_in_the_fine_tuning_of_a_round_does_not_complete_it(chat, tmp_path):
    """Half a fine-tuning is no round; afterwards newer reward models may score the whole bank."""
    config = chat.rejection(workdir=str(tmp_path / "run"), rounds=1, prompts=2, steps=2)
    folder = tmp_path / "run" / "round_1"
    with devices(1), pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Preemption, "reached", lambda self, step: True)
        summary = rejection.rejection(config)
    assert not summary.finished
    assert summary.lines()[0] == "0 of 1 rounds complete; the same command resumes"
    assert saved_steps(epath.Path(folder) / "sft" / "checkpoints") == [1]
    assert not (folder / "round.json").exists()
    with devices(1):
        summary = rejection.rejection(config)
    assert summary.finished
    assert saved_steps(epath.Path(folder) / "sft" / "checkpoints")[-1] == 2
    scores = (folder / "scores.jsonl").read_bytes()
    newer = str(chat.folder / "heldout")
    with devices(1):
        assert rejection.rejection(replace(config, rounds=2, helpfulness=newer)).finished
    assert (folder / "scores.jsonl").read_bytes() != scores


@pytest.mark.parametrize("stage", ["sft", "reward", pytest.param("gatt", marks=pytest.mark.slow)])
def test_a_stage_of_the_loop_that_fails_ends_with_the_same_bytes(chat, tmp_path, stage):
    function, config, failures = {
        "sft": (sft, chat.sft, [(loop, "shard_batch", 4, False)]),
        "reward": (reward, chat.reward, [(loop, "shard_batch", 2, False)]),
        "gatt": (
            ghost_attention.gatt,
            chat.gatt,
            [(ghost_attention, "training_row", 3, False), (loop, "shard_batch", 2, False)],
        ),
    }[stage]
    run, reference = tmp_path / "run", tmp_path / "reference"
    data = replace(config().data, cache_dir=str(tmp_path / "cache"))
    summary = run_to_the_end(function, config(workdir=str(run), data=data), failures)
    with devices(1):
        function(config(workdir=str(reference)))
    assert digests(run, summary.step) == digests(reference, summary.step)
    assert facts(run) == facts(reference)


def test_other_weights_under_the_same_name_are_refused(chat, tmp_path):
    """What a checkpoint was made from is known by digests: paths may come to hold other models."""
    models = tmp_path / "models"
    for name in ("sft", "helpfulness"):
        shutil.copytree(chat.folder / name, models / name)
    config = chat.ppo(
        workdir=str(tmp_path / "run"), steps=1, init_from=str(models / "sft"),
        helpfulness=str(models / "helpfulness"), safety=None, heldout=None,
    )  # fmt: skip
    with devices(1):
        ppo.ppo(config)
        for name, other, what in (
            ("helpfulness", "heldout", "reward model"), ("sft", "base", "reference")
        ):  # fmt: skip
            shutil.move(models / name, models / "kept")
            shutil.copytree(chat.folder / other, models / name)
            with pytest.raises(InputError, match=f"was trained on another {what}"):
                ppo.ppo(replace(config, steps=2))
            shutil.rmtree(models / name)
            shutil.move(models / "kept", models / name)
        assert ppo.ppo(replace(config, steps=2)).resumed_from == 1


def test_numbers_that_cannot_be_right_end_a_run_without_a_trace_of_it(chat, tmp_path):
    config = chat.ppo(workdir=str(tmp_path / "run"), max_drift=0.0)
    with devices(1), pytest.raises(TrainingError, match=r"iteration 1: .* nats apart on average"):
        ppo.ppo(config)
    assert facts(tmp_path / "run") == []
    with devices(1), pytest.MonkeyPatch.context() as patch:
        make = ppo.make_experience

        def broken(*args, **kwargs):
            experience, metrics = make(*args, **kwargs)
            experience["advantages"] = experience["advantages"] * np.nan
            return experience, metrics

        patch.setattr(ppo, "make_experience", broken)
        with pytest.raises(TrainingError, match=r"iteration 1: policy/loss is nan"):
            ppo.ppo(chat.ppo(workdir=str(tmp_path / "run")))
    assert facts(tmp_path / "run") == []
    assert not list((tmp_path / "run" / "checkpoints").glob("*"))
