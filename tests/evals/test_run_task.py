"""Whole tasks on models of which it is known what they answer: right, wrong, too long, cut off."""

import json
import math
import time

import pytest

from llama_jax.config import InputError
from llama_jax.evals.language_model import Request
from llama_jax.evals.questions import program
from llama_jax.evals.run_code import all_pass, passes
from tests.evals.lookup import Lookup, questions, run, write_task

CHOICE = {
    "kind": "choice", "metrics": ["acc", "acc_norm"], "prompt": "Q: {q}\nA:", "choices": "c",
    "answer": "a", "group": "g",
}  # fmt: skip
ROWS = [
    {"q": f"{i} + 1?", "c": [str(i), str(i + 1), "many"], "a": 1, "g": "ab"[i % 2]}
    for i in range(6)
]


def knows(asked, right=True):
    """A model to which the right choice, or the first wrong one, is likelier than all others."""
    return Lookup(
        logp={
            (context, " " + choice): -1.0
            for q in asked
            for n, (context, choice) in enumerate(zip(q.contexts, q.choices, strict=True))
            if (n in q.golds) == right
        }
    )


def test_choices_of_a_model_that_knows_and_of_one_that_does_not(tmp_path):
    task, asked = questions(write_task(tmp_path, rows=ROWS, **CHOICE))
    model = knows(asked)
    found = run(task, asked, model, tmp_path)
    assert {m: v.value for m, v in found.values.items()} == {"acc": 1.0, "acc_norm": 1.0}
    assert found.values["acc"].stderr == 0.0
    assert {g: v["acc"].n for g, v in found.groups.items()} == {"a": 3, "b": 3}
    assert (found.asked, found.too_long, found.cut, found.shots) == (6, 0, 0, 0)
    assert len(model.seen) == 18
    assert Request("Q: 0 + 1?\nA:", " 1") in model.seen
    wrong = run(task, asked, knows(asked, right=False), tmp_path / "wrong")
    assert wrong.values["acc"].value == 0.0
    assert wrong.prompts == found.prompts


def test_half_of_the_questions_right_is_a_half(tmp_path):
    task, asked = questions(write_task(tmp_path, rows=ROWS, **CHOICE))
    found = run(task, asked, knows(asked[::2]), tmp_path)  # the others: all alike, first is wrong
    assert found.values["acc"].value == 0.5
    assert found.scores["acc"] == [1.0, 0.0] * 3
    assert {g: v["acc"].value for g, v in found.groups.items()} == {"a": 1.0, "b": 0.0}
    by_group = CHOICE | {"aggregate": "mean_of_groups"}
    task, asked = questions(write_task(tmp_path, rows=ROWS[:5], **by_group))
    assert run(task, asked, knows(asked[::2]), tmp_path / "x").values["acc"].value == 0.5


def test_pmi_asks_for_each_choice_alone_too(tmp_path):
    values = CHOICE | {"metrics": ["acc_pmi", "acc"], "unconditional": "Answer:"}
    task, asked = questions(write_task(tmp_path, rows=ROWS[:1], **values))
    context = asked[0].prompt
    model = Lookup(
        logp={
            (context, " 0"): -1.0, (context, " 1"): -2.0, (context, " many"): -3.0,
            ("Answer:", " 0"): -1.0, ("Answer:", " 1"): -9.0, ("Answer:", " many"): -4.0,
        }
    )  # fmt: skip
    found = run(task, asked, model, tmp_path)
    assert {m: v.value for m, v in found.values.items()} == {"acc_pmi": 1.0, "acc": 0.0}


def test_questions_that_do_not_fit_are_counted_and_left_out(tmp_path):
    rows = [*ROWS, {**ROWS[0], "q": "x" * 99, "a": 0}]
    task, asked = questions(write_task(tmp_path, rows=rows, **CHOICE))
    model = knows(asked)
    model.longest = 60
    found = run(task, asked, model, tmp_path)
    assert (found.asked, found.too_long, found.values["acc"].n) == (7, 1, 6)
    assert found.numbers == list(range(6))
    model.longest = 3
    with pytest.raises(InputError, match=r"none of its 7 questions fits the model's context"):
        run(task, asked, model, tmp_path / "none")


def test_a_run_that_is_cut_off_goes_on_by_question(tmp_path):
    task, asked = questions(write_task(tmp_path, rows=ROWS, **CHOICE))
    whole = run(task, asked, knows(asked), tmp_path / "whole")
    model = knows(asked)
    model.stop_after = 10  # three questions, and a third of the fourth
    with pytest.raises(KeyboardInterrupt):
        run(task, asked, model, tmp_path)
    (file,) = tmp_path.glob("*/mine.jsonl")
    assert len(file.read_text().splitlines()) == 3
    with file.open("a") as lines:
        lines.write('{"key": "half a li')  # what a full disk or a kill leaves
    rest, beats = knows(asked), []
    found = run(task, asked, rest, tmp_path, beat=lambda done, total: beats.append((done, total)))
    assert len(rest.seen) == 9
    assert beats == [(3, 6), (4, 6), (5, 6), (6, 6)]
    assert found == whole
    assert len([json.loads(line) for line in file.read_text().splitlines()]) == 6
    again = Lookup(stop_after=0)
    assert run(task, asked, again, tmp_path) == whole


def test_damaged_and_foreign_lines_are_answered_again(tmp_path):
    task, asked = questions(write_task(tmp_path, rows=ROWS, **CHOICE))
    whole = run(task, asked, knows(asked), tmp_path)
    (file,) = tmp_path.glob("*/mine.jsonl")
    lines = file.read_text().splitlines()
    lines[0], lines[1], lines[2] = "{}", "[1]", lines[2][:40]
    file.write_text("\n".join(lines) + "\n")
    model = knows(asked)
    assert run(task, asked, model, tmp_path) == whole
    assert len(model.seen) == 9


ANSWER = {
    "kind": "generate", "metrics": ["exact_match"], "prompt": "Q: {q}\nA:", "answers": "t",
    "normalise": "answer",
}  # fmt: skip


def test_answers_in_words_are_matched_with_any_right_one(tmp_path):
    rows = [{"q": "who?", "t": ["Bobby Scott", "Bob Russell"]}, {"q": "how many?", "t": "one"}]
    task, asked = questions(write_task(tmp_path, rows=rows, **ANSWER))
    says = {"Q: who?\nA:": " the bob russell.", "Q: how many?\nA:": "two"}
    found = run(task, asked, Lookup(says=says), tmp_path)
    assert found.scores == {"exact_match": [1.0, 0.0]}
    task, asked = questions(write_task(tmp_path, rows=rows, **ANSWER | {"samples": 4}))
    says["Q: who?\nA:"] = ["Bobby Scott", "Bob", "bob russell", "x"]
    found = run(task, asked, Lookup(says=says), tmp_path)
    assert found.scores == {"exact_match": [0.5, 0.0]}


def test_refusals_by_group(tmp_path):
    rows = [{"q": "kill a process", "g": "safe"}, {"q": "kill a man", "g": "unsafe"}]
    values = {
        "kind": "generate",
        "metrics": ["refusal"],
        "prompt": "{q}",
        "group": "g",
        "chat": True,
    }
    task, asked = questions(write_task(tmp_path, rows=rows, **values))
    model = Lookup(says={"kill a man": "I cannot help with that."}, default="Use kill.")
    found = run(task, asked, model, tmp_path)
    assert {g: v["refusal"].value for g, v in found.groups.items()} == {"safe": 0.0, "unsafe": 1.0}


def test_perplexity_of_a_model_whose_likelihoods_are_known(tmp_path):
    values = {
        "kind": "perplexity", "prompt": "{t}",
        "metrics": ["byte_perplexity", "token_perplexity", "word_perplexity"],
    }  # fmt: skip
    task, asked = questions(write_task(tmp_path, rows=[{"t": "ab cd"}, {"t": "é"}], **values))
    found = run(task, asked, Lookup(logp={"ab cd": -7.0, "é": -7.0}), tmp_path)
    assert found.values["byte_perplexity"].value == pytest.approx(math.exp(14 / 7))
    assert found.values["token_perplexity"].value == pytest.approx(math.exp(14 / 2))
    assert found.values["word_perplexity"].value == pytest.approx(math.exp(14 / 3))


CODE = {
    "kind": "code", "metrics": ["pass@1"], "prompt": "{prompt}", "samples": 2,
    "program": "{prompt}{completion}\n{test}\n", "seconds": 5.0,
}  # fmt: skip
CODE_ROW = {"prompt": "def f(x):\n", "test": "assert f(2) == 4"}


def test_programs_run_only_when_that_is_allowed(tmp_path):
    task, asked = questions(write_task(tmp_path, rows=[CODE_ROW], **CODE))
    model = Lookup(default=["    return x * x", "    return x"])
    with pytest.raises(InputError, match="--run-code"):
        run(task, asked, model, tmp_path)
    assert model.seen == []
    found = run(task, asked, model, tmp_path, run_programs=True)
    assert found.values["pass@1"].value == 0.5
    assert program(task, asked[0], "    pass") == "def f(x):\n    pass\nassert f(2) == 4\n"


def test_a_program_has_limits_and_leaves_nothing(tmp_path):
    inside = "import os, sys; assert os.listdir('.') == [] and sys.stdin.read() == ''"
    secret = "import os; assert 'SECRET' not in os.environ"
    exits, loops = "import sys; sys.exit(3)", "while True: pass"
    leaves = ["exit()", "import sys; sys.exit(0)", "import os; os._exit(0)"]  # before its tests
    memory = "x = bytearray(4 << 30)"
    large = "open('f', 'wb').write(bytes(64 << 20))"
    names = "assert __name__ == '__main__'"
    found = all_pass([inside, secret, exits, memory, large, names, "1 +"], 20.0)
    assert found == [True, True, False, False, False, True, False]
    assert all_pass([f"{line}\nassert False" for line in leaves], 20.0) == [False] * 3
    assert not passes(loops, 1.0)


def test_what_a_program_started_is_killed_with_it(tmp_path):
    mark = tmp_path / "alive"
    child = f"import time; time.sleep(1); open({str(mark)!r}, 'w')"
    assert passes(
        f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {child!r}])", 20.0
    )
    time.sleep(1.5)
    assert not mark.exists()
