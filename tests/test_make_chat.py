"""The one command for all stages: its order, its estimates, and how it ends."""

import json
from importlib import import_module
from pathlib import Path

import pytest

from experiments.chat import run
from llama_jax.config import InputError


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (KeyboardInterrupt(), 130, "interrupted. Run the same command to resume"),
        (InputError("runs/chat is a file"), 2, "runs/chat is a file"),
    ],
)
def test_make_chat_ends_in_one_line(capsys, error, status, said):
    def work():
        raise error

    assert run.guarded(work) == status
    assert capsys.readouterr().err.startswith(f"make chat: error: {said}")
    assert run.guarded(lambda: None) == 0


def test_make_chat_knows_how_far_it_is_after_an_interruption():
    """Stages that were done before count for what comes before the present one alone."""
    shares = {name: share for _, name, share in run.STAGES}
    assert sum(shares.values()) == pytest.approx(1)
    kept = {name: 1000 * share for name, share in shares.items()}
    assert run._progress(0, kept) == ""
    for number in (1, len(run.STAGES) - 1):
        left = 1000 * sum(share for *_, share in run.STAGES[number:]) / 60
        assert f"about {left:.0f} minutes left" in run._progress(number, kept)


def test_make_chat_goes_no_further_than_a_stage_that_was_stopped(tmp_path, monkeypatch):
    """SIGTERM ends a stage with a checkpoint; what follows would be built on half a model."""
    ended = []

    def stage(command, name):
        ended.append(name)
        return name != "safety"

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "ROOT", tmp_path)
    for name in ("tokenizer", "quiet_start", "keep_freed_memory"):
        monkeypatch.setattr(run, name, lambda: None)
    monkeypatch.setattr(run, "_stage", stage)
    monkeypatch.setattr(run, "comparisons", ended.append)
    assert run.guarded(run.main) == 130
    assert ended == ["base", "sft", "comparisons", "helpfulness", "safety"]
    assert list(json.loads((tmp_path / run.RUN / "seconds.json").read_text())) == ended


def test_the_stages_of_make_chat_start_from_what_is_there():
    there = []
    for command, name, _ in run.STAGES:
        if command in ("compare", "report"):
            there.append(f"{name}.jsonl")
            continue
        config = import_module(f"experiments.chat.{name}").CONFIG
        models = ("init_from", "helpfulness", "safety", "heldout")
        used = [getattr(config, key, None) for key in models]
        assert {Path(path).name for path in used if path} <= set(there)
        assert config.workdir == str(run.RUN / name)
        there.append(name)
    assert set(run.JUDGED) <= set(there)


def test_ghost_attention_rehearses_the_whole_answers_of_ppo(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "RUN", tmp_path)
    folder = tmp_path / "ppo" / "completions"
    folder.mkdir(parents=True)

    def line(answer, finish="stop"):
        messages = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": answer}]
        return json.dumps({"messages": messages, "score": 1.0, "finish": finish}) + "\n"

    for number in range(25):
        lines = line(f"A{number}") + line("") + line("[INST]") + line("cut", "length")
        (folder / f"iteration-{number:06d}.jsonl").write_text(lines)
    run.kept_answers()
    kept = [json.loads(text) for text in (tmp_path / "kept_answers.jsonl").read_text().splitlines()]
    assert [m["messages"][1]["content"] for m in kept] == [f"A{n}" for n in range(5, 25)]
    assert all(set(m) == {"messages"} for m in kept)
