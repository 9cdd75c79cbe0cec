"""Benchmark tasks that are put to a model while it trains."""

import pytest

from llama_jax import cli
from llama_jax.config import InputError
from llama_jax.evals.evaluate import evaluate_tasks
from llama_jax.pretrain import pretrain
from tests.evals.lookup import write_task
from tests.train.tiny import facts

ROWS = [{"q": f"{i} and", "c": [str(i), f"{i + 1}.", "park"], "a": i % 3} for i in range(6)]
TASK = {
    "kind": "choice", "metrics": ["acc", "acc_norm"], "prompt": "Q: {q}\nA:", "choices": "c",
    "answer": "a",
}  # fmt: skip


@pytest.fixture
def call(tiny, tmp_path, capsys):
    """`llama-jax train` of the tiny experiment, in this process."""
    write_task(tmp_path, rows=ROWS, **TASK)

    def run(*options):
        argv = ["train", str(tiny.file), "--workdir", str(tmp_path / "run"), *options]
        status = cli.main(argv)
        return status, capsys.readouterr().err

    return run


def test_each_evaluation_asks_what_the_command_asks_of_the_model(call, tmp_path):
    mine = str(tmp_path / "mine.toml")
    status, err = call("--eval-tasks", mine, "--eval-questions", "4")
    assert status == 0, err
    lines = [m for m in facts(tmp_path / "run") if "eval/step" in m]
    assert [m["step"] for m in lines] == [6, 12]
    run, answers = str(tmp_path / "run"), str(tmp_path / "answers")
    (after,) = evaluate_tasks([run], mine, answers=answers, limit=4)
    expected = {f"eval/mine/{k}": v.value for k, v in after.results[0].values.items()}
    assert set(expected) == {"eval/mine/acc", "eval/mine/acc_norm"}
    assert {name: lines[-1][name] for name in expected} == expected
    # They may be left out, or others asked, when a run goes on.
    status, err = call("--steps", "14")
    assert status == 0, err
    assert "eval/mine/acc" not in facts(tmp_path / "run")[-1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--eval-tasks", "arc_eazy"], "did you mean arc_easy?"),
        (["--eval-tasks", "humaneval"], "which training never does"),
        (["--eval-tasks", "MINE", "--eval-every", "0"], "need evaluations: set eval_every"),
        (["--eval-tasks", "MINE", "--eval-questions", "-1"], "eval_questions=-1 must not be"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_anything_is_made(call, tmp_path, options, message):
    mine = str(tmp_path / "mine.toml")
    status, err = call(*[mine if option == "MINE" else option for option in options])
    assert status == 2
    assert message in err.splitlines()[-1]
    assert not (tmp_path / "run").exists()


def test_a_function_that_is_given_nothing_to_ask_with_says_so(tiny, tmp_path):
    write_task(tmp_path, rows=ROWS, **TASK)
    config = tiny.config(
        "--workdir", str(tmp_path / "run"), "--eval-tasks", str(tmp_path / "mine.toml")
    )
    with pytest.raises(InputError, match=r"ask=llama_jax\.evals\.in_training\.asker"):
        pretrain(config)
