"""`llama-jax eval --tasks`: tables, JSON, resuming, two models, bad input."""

import json

import pytest

from llama_jax import cli
from llama_jax.runtime import console
from tests.convert.models import GROUPED, random_params, save
from tests.evals.lookup import write_task

ROWS = [{"q": f"{i} and", "c": [str(i), f"{i + 1}.", "park"], "a": i % 3} for i in range(6)]
TASK = {
    "kind": "choice", "metrics": ["acc", "acc_norm"], "prompt": "Q: {q}\nA:", "choices": "c",
    "answer": "a",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two models and a task."""
    folder = tmp_path_factory.mktemp("eval")
    params = random_params(GROUPED)
    save(folder / "a", GROUPED, params)
    save(folder / "b", GROUPED, params | {"norm": -params["norm"]})
    write_task(folder, rows=ROWS, **TASK)
    return folder


@pytest.fixture
def call(capsys, folder):
    def run(*argv):
        argv = ["eval", *argv, "--answers", str(folder / "answers")]
        status = cli.main([str(folder / a[1:]) if a.startswith("@") else a for a in argv])
        out, err = capsys.readouterr()
        return status, out, err

    return run


def test_two_models_are_compared_and_a_second_call_asks_nothing(call, folder, monkeypatch, caplog):
    monkeypatch.setattr(console, "LOG_SECONDS", -1)
    with caplog.at_level("INFO"):
        status, out, _ = call("@a", "@b", "--tasks", f"{folder}/mine.toml", "--json", "@out.json")
    assert status == 0
    head, first, *_ = out.splitlines()
    assert head.split()[:4] == ["task", "shots", "n", "metric"]
    assert head.split()[-1] == "difference"
    assert first.split()[:5] == ["mine", "v1", "0", "6", "acc"]
    found = json.loads((folder / "out.json").read_text())
    a, b = found["models"]
    assert a["digest"] != b["digest"]
    (task,), (other,) = a["tasks"], b["tasks"]
    assert task["prompts"] == other["prompts"]
    assert (task["asked"], task["too_long"], task["version"]) == (6, 0, 1)
    value, against = task["values"]["acc"], other["values"]["acc"]
    assert f"{value['value']:.4f} ± {value['stderr']:.4f}" in first
    assert f"{against['value'] - value['value']:+.4f}" in first
    for model in "ab":
        assert f"mine, {folder / model}: 6 of 6 questions" in caplog.text
    monkeypatch.setattr("llama_jax.evals.likelihood.prefill", None)
    assert call("@a", "@b", "--tasks", f"{folder}/mine.toml")[1] == out
    status, printed, _ = call("@a", "@b", "--tasks", f"{folder}/mine.toml", "--json")
    assert json.loads(printed) == found
    status, out, _ = call("@b", "--tasks", f"{folder}/mine.toml", "--limit", "4")
    assert out.splitlines()[1].split()[3] == "4"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["@a", "--tasks", "arc_eazy"], "did you mean arc_easy?"),
        (["@a", "--tasks", "@mine.toml", "--limit", "0"], "--limit 0 must be positive"),
        (["@a", "--tasks", "@mine.toml", "--batch-size", "0"], "--batch-size 0 must be positive"),
        (["@a", "@a", "--tasks", "@mine.toml"], "a model is named twice"),
        (["@a", "@b"], "several models are compared by --tasks or --judge"),
        (["@a", "--limit", "3"], "--limit belongs to --tasks"),
        (
            ["@a", "--tasks", "@mine.toml", "--data", "tales"],
            "--data belongs to a loss, not to --tasks",
        ),
        (["@a", "--run-code"], "--run-code belongs to --tasks, which is not given"),
        (["@a", "--judge", "rules", "--prompts", "tales"], "--judge compares two models, not"),
        (["@a", "@b", "--judge", "rules"], "--judge needs prompts to answer"),
        (["@a", "@b", "--judge", "rules", "--tasks", "bbh"], "--tasks belongs to --tasks, not to"),
        (["@a", "@b", "--judge", "rules", "--prompts", "gone.jsonl"], "gone.jsonl"),
        (["@a", "@b", "--judge", "http://x/v1", "--prompts", "tales:2"], "--judge-model NAME"),
        (
            ["@a", "@b", "--judge", "rules", "--judge-model", "x", "--prompts", "tales:2"],
            "--judge-model belongs to a --judge that is a URL",
        ),
        (["--json", "@a"], "name the model first"),
        ([], "required: MODEL"),
        (["@a", "--tasks", "humaneval"], "--run-code"),
        (["@a", "--tasks", "gsm8k"], "task gsm8k has no data: Put gsm8k/test* into a folder"),
    ],
)
def test_bad_input_is_one_line_and_status_2(call, argv, message):
    status, out, err = call(*argv)
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_what_does_not_fit_is_said_below_the_table(call, folder):
    rows = [*ROWS[:2], {**ROWS[0], "q": "word " * 60}]
    write_task(folder, "long", rows=rows, **TASK)
    status, out, _ = call("@a", "--tasks", "@long.toml")
    assert status == 0
    assert "long: 1 of 3 questions are longer than the context of" in out
    write_task(folder, rows=ROWS, **TASK)
