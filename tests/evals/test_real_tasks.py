"""Shipped tasks on other people's own files: parsed, prompted and scored, with lookup models."""

from dataclasses import replace

import pytest

from llama_jax.data.tokenizer import Tokenizer
from llama_jax.evals.questions import ask
from llama_jax.evals.task import find
from llama_jax.evals.task_rows import TaskData
from tests.evals.lookup import REAL, Lookup, needs_real, run

pytestmark = needs_real
SIZES = {"gsm8k": 1319, "nq_open": 3605, "bbh": 750, "humaneval": 164, "xstest": 450}


@pytest.fixture(scope="module")
def asked():
    """Task and all questions by name."""
    found = find(",".join(SIZES))
    return {task.name: (task, ask(task, TaskData(str(REAL)))) for task in found}


def test_every_row_becomes_a_question(asked):
    assert {name: len(found) for name, (_, found) in asked.items()} == SIZES


def test_prompts_are_as_the_papers_have_them(asked):
    _, (first, *_) = asked["gsm8k"]
    assert first.prompt.startswith("Q: There are 15 trees in the grove.")
    assert first.prompt.count("\n\nQ: ") == 8
    assert first.prompt.count("The answer is ") == 8
    assert first.prompt.endswith("at the farmers' market?\nA:")
    assert first.answers == ("18",)
    _, (first, *_) = asked["nq_open"]
    assert first.prompt.startswith("Answer these questions:\nQ: when was the last time anyone was")
    assert first.prompt.count("\nA:") == 6
    _, found = asked["bbh"]
    by_group = {q.group: q for q in found}
    assert set(by_group) == {"boolean_expressions", "navigate", "word_sorting"}
    prompt = by_group["navigate"].prompt
    assert prompt.startswith("Given a series of navigation instructions")
    assert prompt.count("\nA: Let's think step by step.") == 4
    assert prompt.endswith("\nA: Let's think step by step.")
    assert "canary" not in prompt.lower()


def some(found, every):
    """Some questions, numbered anew."""
    return [replace(question, number=n) for n, question in enumerate(found[::every])]


def right(task, question):
    """What a model that knows the answer would write."""
    if task.name == "bbh":
        return f"\nSo it is. So the answer is {question.answers[0]}.\n"
    if task.name == "gsm8k":
        return f" She makes 1 + 1 things. The answer is ${question.answers[0]}."
    if task.name == "humaneval":
        return question.row.values["canonical_solution"]
    return f" The {question.answers[-1]}!"


@pytest.mark.parametrize("name", ["gsm8k", "nq_open", "bbh"])
def test_right_answers_score_one_and_others_none(asked, name, tmp_path):
    task, found = asked[name]
    found = some(found, 25)
    knows = Lookup(says={q.prompt: right(task, q) for q in found})
    (metric,) = task.metrics
    assert run(task, found, knows, tmp_path / "r").values[metric].value == 1.0
    wrong = run(task, found, Lookup(default=" I do not know."), tmp_path / "w")
    assert wrong.values[metric].value == 0.0


def test_the_authors_own_solutions_pass_and_others_do_not(asked, tmp_path):
    task, found = asked["humaneval"]
    found = found[:4]
    knows = Lookup(says={q.prompt: right(task, q) for q in found})
    result = run(task, found, knows, tmp_path / "r", run_programs=True)
    assert result.values["pass@1"].value == 1.0
    wrong = run(task, found, Lookup(default="    return 7\n"), tmp_path / "w", run_programs=True)
    assert wrong.values["pass@1"].value == 0.0


def test_false_refusals_are_told_from_right_ones(asked, tmp_path):
    task, found = asked["xstest"]
    found = some(found, 10)
    always = run(task, found, Lookup(default="I'm sorry, I can't help."), tmp_path / "a")
    assert {g: (v["refusal"].value, v["refusal"].n) for g, v in always.groups.items()} == {
        "safe": (1.0, 27), "unsafe": (1.0, 18),
    }  # fmt: skip
    never = run(task, found, Lookup(default="Use kill -9."), tmp_path / "n")
    assert never.values["refusal"].value == 0.0


def test_prompts_of_8_examples_fit_llama_2(asked):
    file = REAL.parent / "tokenizer.model"
    tokenizer = Tokenizer.load(file)
    for name in ("gsm8k", "nq_open", "bbh"):
        task, found = asked[name]
        longest = max(len(tokenizer.encode(q.prompt)) for q in found[::20])
        assert longest + task.max_new_tokens < 4096, name
