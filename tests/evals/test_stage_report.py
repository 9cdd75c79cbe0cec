"""The page of an alignment run, from files of the forms that runs write."""

import json
import re

import pytest

from llama_jax import cli
from llama_jax.config import InputError
from llama_jax.config_align import (
    DpoConfig,
    GattConfig,
    PpoConfig,
    RejectionConfig,
    RewardConfig,
    SftConfig,
)
from llama_jax.config_file import to_json
from llama_jax.evals.run_report import write_report
from llama_jax.experiment import load_experiment

KINDS = {
    "sft": SftConfig, "reward": RewardConfig, "dpo": DpoConfig, "gatt": GattConfig,
    "ppo": PpoConfig, "rejection": RejectionConfig,
}  # fmt: skip
LEARNED = [
    {"step": 1, "train/loss": 0.75, "train/accuracy": 0.5, "train/ranking_loss": 0.5},
    {"step": 2, "train/loss": 0.5, "train/accuracy": 0.75},
    {"step": 3, "train/loss": float("nan"), "train/accuracy": 0.5},
    {"step": 3, "eval/step": 3, "eval/loss": 0.625, "eval/longer_wins": 0.4375},
    {"step": 4, "eval/step": 4},
]


@pytest.fixture
def page(tmp_path, capsys):
    """The page of a run of a stage with these metrics and files."""

    def make(stage, metrics, files=None):
        name = {"reward": "helpfulness"}.get(stage, stage)
        experiment = load_experiment([f"chat/{name}"], kind=KINDS[stage])
        (tmp_path / "config.json").write_text(to_json(experiment))
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(m) + "\n" for m in metrics))
        for path, text in (files or {}).items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(text)
        assert cli.main(["report", str(tmp_path)]) == 0
        assert "open it in a browser" in capsys.readouterr().out
        text = (tmp_path / "report.html").read_text()
        assert not re.search(r"(?i)https?://|src=|<script|<link|@import|url\(", text)
        return text

    return make


def polylines(text):
    return [len(points.split()) for points in re.findall(r'points="([^"]+)"', text)]


@pytest.mark.parametrize("stage", ["sft", "reward", "dpo", "gatt"])
def test_a_stage_that_takes_steps_shows_its_curves_and_last_evaluation(page, tmp_path, stage):
    text = page(stage, LEARNED)
    # The losses that are numbers, or the one ranking loss; one validation is a dot; accuracies.
    assert polylines(text) == ([3] if stage == "reward" else [2, 3])
    assert text.count("<circle") == (2 if stage == "reward" else 1)
    assert "The last evaluation, after 3 steps" in text
    assert "<td>longer wins</td><td class=number>0.438</td>" in text
    assert f"<code>llama-jax {stage}</code> that starts from" in text
    assert "What to type next" not in text  # there is no model yet
    (tmp_path / "checkpoints").mkdir()
    text = page(stage, LEARNED)
    assert (" chat " in text) == (stage != "reward")
    assert ("--helpfulness" in text) == (stage == "reward")


def test_what_the_model_says_is_text(page):
    text = page("sft", LEARNED, {"samples/step-00000002.txt": "> Hi\n\n<script>alert(1)</script>"})
    assert "&lt;script&gt;alert(1)" in text
    assert "<a href='samples'>" in text


def test_policies_have_scores_kl_and_their_newest_answers(page):
    metrics = [
        {"step": s, "kl/answer": 0.5 * s, "score/mean": 1.0 * s, "heldout/proxy": 1.0,
         "heldout/score": 2.0, "policy/loss": 0.1}
        for s in (1, 2, 3)
    ]  # fmt: skip
    metrics.append({"step": 4, "kl/answer": 2.0, "score/mean": 4.0})

    def answers(word):
        said = [
            {"role": "user", "content": "Early"},
            {"role": "assistant", "content": "Hm.\u2028"},
            {"role": "user", "content": "<b>Asked</b>"},
            {"role": "assistant", "content": word},
        ]
        values = {"messages": said, "score": -0.25, "finish": "stop"}
        return 20 * (json.dumps(values, ensure_ascii=False) + "\n")

    files = {f"completions/iteration-{n:06d}.jsonl": answers(f"word {n}") for n in (3, 4)}
    text = page("ppo", metrics, files)
    assert "4 of 60 iterations" in text
    assert polylines(text) == [3, 3, 4]
    assert text.count("<circle") == 4
    row = "<td>&lt;b&gt;Asked&lt;/b&gt;</td><td>word 4</td><td class=number>-0.250</td>"
    assert text.count(row) == 12
    assert "word 3" not in text
    files = {"samples/iteration-000004.jsonl": answers("held out")}
    assert page("ppo", metrics, files).count("held out") == 12


def test_rounds_have_their_numbers_and_figure_7(page):
    files = {}
    for n in (1, 2, 10):
        values = {"temperature": 0.5 + n, "prompts": 1024, "score": 0.125, "winners_score": 2.0,
                  "truncated": 0.0}  # fmt: skip
        best = {"n": [1.0, 2.0, 4.0], "max": [0.0, 1.0, 2.0], "median": [0.0] * 3}
        files[f"round_{n}/round.json"] = json.dumps(values)
        files[f"round_{n}/best_of_n.json"] = json.dumps(best)
    files["round_11/winners.jsonl"] = ""  # at work
    files["round_old/round.json"] = "{}"
    said = [{"role": "user", "content": "Best?"}, {"role": "assistant", "content": "This."}]
    files["round_10/winners.jsonl"] = json.dumps({"messages": said, "source": "round 10"}) + "\n"
    text = page("rejection", [], files)
    assert "3 of 1 rounds" in text
    assert polylines(text) == [3] * 6
    assert re.findall(r"<tr><td>(\d+)</td>", text) == ["1", "2", "10"]
    assert "<tr><td>Best?</td><td>This.</td></tr>" in text
    assert "<td class=number>1.500</td><td class=number>1,024</td>" in text


def test_a_run_that_has_not_begun_has_a_page(tmp_path):
    experiment = load_experiment(["chat/ppo"], kind=PpoConfig)
    (tmp_path / "config.json").write_text(to_json(experiment))
    text = write_report(str(tmp_path)).read_text()
    assert "0 of 60 iterations" in text
    assert "<svg" not in text
    assert "How it learned" not in text


@pytest.mark.parametrize(
    ("path", "text", "message"),
    [
        ("completions/iteration-000001.jsonl", '{"score": 1}\n', "row 1 is no answer that a run"),
        ("completions/iteration-000001.jsonl", "[\n", "row 1"),
        ("round_1/round.json", "{}", "best_of_n.json"),
    ],
)
def test_what_no_run_writes_is_named(tmp_path, path, text, message):
    experiment = load_experiment(["chat/ppo"], kind=PpoConfig)
    (tmp_path / "config.json").write_text(to_json(experiment))
    (tmp_path / path).parent.mkdir()
    (tmp_path / path).write_text(text)
    with pytest.raises(InputError, match=message):
        write_report(str(tmp_path))
    assert not (tmp_path / "report.html").exists()
