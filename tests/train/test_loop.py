"""The loop in this process: what it writes, how it resumes, what it refuses."""

import json
import os
import signal

import jax
import numpy as np
import pytest

from llama_jax.config import InputError
from llama_jax.pretrain import pretrain as train
from llama_jax.train import loop, step
from llama_jax.train.report import TrainingError
from tests.devices import devices
from tests.train.tiny import digests, facts


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    """A run of 12 steps that was never interrupted."""
    run = tmp_path_factory.mktemp("finished") / "run"
    config = tiny.config("--workdir", str(run), "--sample-prompts", "One day")
    summary = train(config, sample=lambda params, tokenizer: ["One day it rained."])
    return run, summary


def test_a_run_folder_holds_what_it_promises(finished):
    run, summary = finished
    names = {p.name for p in run.iterdir()}
    assert names >= {
        "config.json", "tokenizer.model", "metrics.jsonl", "tensorboard", "checkpoints", "samples",
        "loss.svg",
    }  # fmt: skip
    assert (run / "samples" / "step-00000012.txt").read_text() == "One day it rained.\n"
    assert sorted(int(p.name) for p in (run / "checkpoints").iterdir()) == [8, 12]
    lines = facts(run)
    train_lines = [m for m in lines if "train/loss" in m]
    assert [m["step"] for m in train_lines] == list(range(1, 13))
    assert train_lines[-1]["train/loss"] < train_lines[0]["train/loss"] - 0.3
    assert [m["step"] for m in lines if "eval/loss" in m] == [6, 12]
    assert (summary.step, summary.steps, summary.resumed_from) == (12, 12, 0)
    assert summary.loss == train_lines[-1]["train/loss"]
    assert summary.evaluation["bits_per_byte"] == pytest.approx(lines[-1]["eval/bits_per_byte"])
    assert 0 < summary.goodput < 1


def test_stopping_by_sigterm_and_resuming_gives_the_same_bytes(
    tiny, tmp_path, finished, monkeypatch
):
    config = tiny.config("--workdir", str(tmp_path / "run"), "--checkpoint.every", "5")
    calls = []
    place = loop.shard_batch

    def place_and_kill(*args):
        calls.append(1)
        if len(calls) == 6:  # real, to this process, while the sixth step is being prepared
            os.kill(os.getpid(), signal.SIGTERM)
        return place(*args)

    monkeypatch.setattr(loop, "shard_batch", place_and_kill)
    assert train(config).step == 6
    monkeypatch.undo()
    summary = train(config)
    assert (summary.step, summary.resumed_from) == (12, 6)
    assert digests(tmp_path / "run", 12) == digests(finished[0], 12)
    # The evaluation due at step 6 was put off until the run went on.
    assert facts(tmp_path / "run") == facts(finished[0])


def test_a_finished_run_says_so_and_a_longer_one_goes_on(tiny, tmp_path):
    workdir = ("--workdir", str(tmp_path / "run"), "--eval-every", "0")
    train(tiny.config(*workdir, "--steps", "3"))
    again = train(tiny.config(*workdir, "--steps", "3"))
    assert (again.step, again.resumed_from, again.loss) == (3, 3, None)
    assert train(tiny.config(*workdir, "--steps", "4")).resumed_from == 3


def test_a_second_program_keeps_out_of_a_folder_that_is_trained_in(tiny, tmp_path, monkeypatch):
    config = tiny.config("--workdir", str(tmp_path / "run"), "--steps", "2", "--eval-every", "0")
    refused, place = [], loop.shard_batch

    def place_and_start_another(*args):
        monkeypatch.setattr(loop, "shard_batch", place)
        with monkeypatch.context() as patch:
            patch.setattr("llama_jax.pretrain.prepare", None)  # no data is read for it
            with pytest.raises(TrainingError, match="another program trains in") as caught:
                train(config)
        refused.append(caught)
        return place(*args)

    monkeypatch.setattr(loop, "shard_batch", place_and_start_another)
    assert train(config).step == 2
    assert len(refused) == 1
    assert train(config).resumed_from == 2


def test_double_precision_that_a_shell_asks_for_is_not_taken_up(tiny, tmp_path):
    """JAX_ENABLE_X64, set for another program: the same types, and the same losses to rounding."""
    found = []
    for double in (False, True):
        workdir = tmp_path / str(double)
        with jax.enable_x64(double):
            train(tiny.config("--workdir", str(workdir), "--steps", "3", "--eval-every", "3"))
        losses = [row.get("train/loss", row.get("eval/loss")) for row in facts(workdir)]
        types = {name: array["dtype"] for name, array in digests(workdir, 3).items()}
        found.append((losses, types))
    (losses, types), (doubled, kept) = found
    assert len([loss for loss in losses if loss is not None]) >= 3
    assert doubled == pytest.approx(losses, rel=1e-5)
    assert kept == types


def test_host_0_says_whether_there_is_something_to_resume(tiny, tmp_path, monkeypatch):
    workdir = ("--workdir", str(tmp_path / "run"), "--eval-every", "0")
    train(tiny.config(*workdir, "--steps", "2"))
    # A host whose view of a network file system is older.
    monkeypatch.setattr(loop.Checkpointer, "steps", lambda self: [])
    monkeypatch.setattr(loop, "broadcast_from_main", lambda holds: True)
    assert train(tiny.config(*workdir, "--steps", "3")).resumed_from == 2


def test_a_trace_begins_and_ends_between_steps(tiny, tmp_path, monkeypatch):
    run, finished = tmp_path / "run", []
    for name in ("start_trace", "stop_trace"):
        monkeypatch.setattr(jax.profiler, name, lambda *_: finished.append(len(facts(run))))
    train(
        tiny.config("--workdir", str(run), "--steps", "6", "--eval-every", "0",
                    "--profile-steps", "2", "3")
    )  # fmt: skip
    assert finished == [1, 3]


def test_another_experiment_is_refused_with_what_differs(tiny, tmp_path):
    workdir = ("--workdir", str(tmp_path / "run"), "--eval-every", "0", "--steps", "2")
    train(tiny.config(*workdir))
    with pytest.raises(InputError, match=r"model\.num_layers 2 -> 3.*seed 0 -> 1|seed 0 -> 1.*"):
        train(tiny.config(*workdir, "--seed", "1", "--model.num-layers", "3"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("mine")
    with pytest.raises(InputError, match=r"is not empty and holds no run"):
        train(tiny.config("--workdir", str(tmp_path / "full")))


def test_non_finite_updates_stop_the_run_with_their_batches(tiny, tmp_path, monkeypatch):
    def poisoned(config, objective, tx, abstract):
        plain = step.train_step

        def with_nan(state, batch, **kwargs):
            bad = jax.tree.map(lambda p: p * np.nan, state.params)
            return plain(state.replace(params=bad), batch, **kwargs)

        monkeypatch.setattr(step, "train_step", with_nan)
        return step.jit_train_step(config, objective, tx, abstract)

    monkeypatch.setattr(loop, "jit_train_step", poisoned)
    config = tiny.config("--workdir", str(tmp_path / "run"), "--max-skipped", "3")
    with pytest.raises(TrainingError, match=r"3 non-finite updates in a row.*up to step 3"):
        train(config)
    report = json.loads((tmp_path / "run" / "nonfinite.json").read_text())
    assert [r["step"] for r in report] == [1, 2, 3]
    assert all(len(r["records"]) == 8 for r in report)


@pytest.mark.slow
def test_eight_devices_save_and_two_by_two_go_on(tiny, tmp_path, finished):
    workdir = ("--workdir", str(tmp_path / "run"), "--eval-every", "0")
    with devices(8):
        train(tiny.config(*workdir, "--steps", "12", "--mesh.fsdp", "8"))
        other = train(
            tiny.config(*workdir, "--steps", "14", "--mesh.fsdp", "2", "--mesh.tensor", "2",
                        "--mesh.data", "2", "--accumulate", "2")
        )  # fmt: skip
    assert other.resumed_from == 12
    losses = [m["train/loss"] for m in facts(tmp_path / "run") if "train/loss" in m]
    alone = [m["train/loss"] for m in facts(finished[0]) if "train/loss" in m]
    np.testing.assert_allclose(losses[:12], alone, rtol=1e-4)


def test_a_batch_for_other_devices_is_refused_before_anything_is_written(tiny, tmp_path):
    with devices(8), pytest.raises(InputError, match="not divisible by the 8 devices"):
        train(tiny.config("--workdir", str(tmp_path / "run"), "--batch-size", "12"))
    assert not (tmp_path / "run").exists()


def test_an_attention_that_cannot_be_used_is_refused_before_anything_is_written(tiny, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(InputError, match=r"attention=cudnn.* made for gpu, not cpu"):
        train(tiny.config("--workdir", str(run), "--model.attention", "cudnn"))
    assert not run.exists()


def test_a_run_can_start_from_the_parameters_of_another(tiny, tmp_path, finished):
    config = tiny.config(
        "--workdir", str(tmp_path / "run"), "--init-from", str(finished[0]), "--steps", "2",
        "--eval-every", "1",
    )  # fmt: skip
    train(config)
    started = [m["train/loss"] for m in facts(tmp_path / "run") if "train/loss" in m]
    scratch = [m["train/loss"] for m in facts(finished[0]) if "train/loss" in m]
    assert started[0] < scratch[6]
    copied = (tmp_path / "run" / "tokenizer.model").read_bytes()
    assert copied == (finished[0] / "tokenizer.model").read_bytes()
