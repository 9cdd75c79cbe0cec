"""Task files: strict reading, prompts as they are drawn here, rows that cannot be asked about."""

import json

import pytest

from llama_jax.config import InputError
from llama_jax.evals import task as tasks
from llama_jax.evals.questions import ask, digest, key
from llama_jax.evals.task_rows import TaskData
from llama_jax.evals.templates import check, render
from tests.evals.lookup import questions, read, write_task

CHOICE = {
    "kind": "choice", "metrics": ["acc"], "prompt": "Q: {q}\nA:", "choices": "c", "answer": "a",
}  # fmt: skip
ROW = {"q": "2 + 2?", "c": ["3", "4"], "a": 1}


def test_every_shipped_task_is_read():
    names = tasks.shipped()
    assert {"arc_easy", "gsm8k", "bbh", "humaneval", "mmlu"} <= set(names)
    found = tasks.find(",".join(names))
    assert [task.name for task in found] == names
    shots = {task.name: task.shots + task.stored_shots for task in found}
    # Llama 2, Table 3 and section 4.1: shots of each benchmark.
    for name, expected in {
        "gsm8k": 8, "mmlu": 5, "bbh": 3, "nq_open": 5, "triviaqa": 5, "commonsense_qa": 7,
        "boolq": 0, "piqa": 0, "siqa": 0, "hellaswag": 0, "winogrande": 0, "arc_easy": 0,
        "arc_challenge": 0, "openbookqa": 0, "humaneval": 0, "mbpp": 3,
    }.items():  # fmt: skip
        assert shots[name] == expected, name


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"promt": "x"}, "the key 'promt' is unknown; did you mean prompt?"),
        ({"source": {"fil": "x"}}, "source: the key 'fil' is unknown; did you mean file?"),
        ({"digest": "x"}, "the key digest is unknown"),
        ({"kind": "chocie"}, "kind is 'chocie'; did you mean choice?"),
        ({"shots": "5"}, "shots is '5', not of type int"),
        ({"shots": -1}, "shots=-1 must be at least 0"),
        ({"metrics": ["accuracy"]}, "metric 'accuracy' is none of kind choice; known are acc,"),
        ({"metrics": []}, "metrics names none"),
        ({"prompt": "{q"}, "prompt has a single {"),
        ({"prompt": "{q|trim}"}, "filter 'trim', which is unknown; known are strip"),
        ({"prompt": "{}"}, "has {}, which names no field"),
        ({"filter": "wiki"}, "filter 'wiki' is unknown"),
        ({"until": ["\n", ""]}, "until holds an empty text"),
        ({"extract": "(a"}, "extract is not a regular expression: missing )"),
        ({"choices": 5}, "choices"),
        ({"answer": ""}, "kind choice needs the key answer"),
        ({"source": {}}, "a source needs file or hf"),
        ({"aggregate": "mean_of_groups"}, "needs the key group"),
        ({"kind": "code", "metrics": ["pass@10"], "program": "x"}, "samples=1 answers are too few"),
    ],
)  # fmt: skip
def test_what_no_task_says_is_one_line(tmp_path, changed, message):
    file = write_task(tmp_path, **CHOICE | changed)
    with pytest.raises(InputError) as error:
        read(file)
    assert message in str(error.value)
    assert "mine" in str(error.value)


def test_missing_keys_names_and_files_are_named(tmp_path):
    with pytest.raises(InputError, match=r"task 'arc_eazy' is unknown; did you mean arc_easy\?"):
        tasks.find("arc_eazy")
    with pytest.raises(InputError, match=r"gone.toml cannot be read"):
        tasks.find(str(tmp_path / "gone.toml"))
    (tmp_path / "bad.toml").write_text("title = ")
    with pytest.raises(InputError, match=r"bad.toml is not valid TOML"):
        tasks.find(str(tmp_path / "bad.toml"))
    (tmp_path / "bare.toml").write_text('title = "T"\n')
    with pytest.raises(InputError, match="lacks the key version"):
        tasks.find(str(tmp_path / "bare.toml"))
    with pytest.raises(InputError, match="names boolq twice"):
        tasks.find("boolq,arc_easy,boolq")
    with pytest.raises(InputError, match="names no task"):
        tasks.find(" , ")
    with pytest.raises(InputError, match=r"Put boolq/val\* into a folder.*--task-data.*datasets"):
        ask(tasks.find("boolq")[0], TaskData())


def test_templates_read_fields_and_nothing_else():
    row = {"a": " Hi ", "n": {"m": ["x", "y_z"]}, "f": 2.5, "s": "say #### #### 5"}
    assert render("{a|strip|lower}, {n.m.1|words} {{f}} {f}{s|after:####}", row, "w") == (
        "hi, y z {f} 2.5 5"
    )
    assert render("{s|before: ####}", row, "w") == "say"
    assert render("{t|wikihow}", {"t": " A [title] B [step] C  D"}, "w") == "A. B C D"
    for template, message in (
        ("{b}", r"w has no field b; it has \['a', 'f', 'n', 's'\]"),
        ("{n.m.2}", "w has no field n.m.2"),
        ("{a.b}", "has no field a.b"),
        ("{n}", "w, field n must be text, not {'m'"),
    ):
        with pytest.raises(InputError, match=message):
            render(template, row, "w")
    with pytest.raises(InputError, match=r"t has {a.__class__\(\)}, which names no field"):
        check("{a.__class__()}", "t")


def test_a_question_with_its_examples_is_as_drawn_here(tmp_path):
    rows = [
        {"q": "one", "c": ["a", "b"], "a": 0, "g": "x"},
        {"q": "two", "c": ["c", "d"], "a": 1, "g": "y"},
        {"q": "three", "c": ["e", "f"], "a": 1, "g": "x"},
    ]
    file = write_task(
        tmp_path, rows=rows, **CHOICE, shots=2, preamble="About {g}.\n\n", separator="\n--\n"
    )
    _, (only,) = questions(file)
    assert only.prompt == "About x.\n\nQ: one\nA: a\n--\nQ: two\nA: d\n--\nQ: three\nA:"
    assert (only.choices, only.golds, only.number) == (("e", "f"), (1,), 0)
    assert only.where.endswith("rows.jsonl, row 3")
    file = write_task(
        tmp_path, rows=rows, **CHOICE, shots=1, same="g", group="g",
        examples={"file": "rows.jsonl"}, target="<{q}>",
    )  # fmt: skip
    _, found = questions(file)
    assert [q.prompt.partition("\n\n")[0] for q in found] == [
        "Q: one\nA: <one>", "Q: two\nA: <two>", "Q: one\nA: <one>",
    ]  # fmt: skip
    assert [q.group for q in found] == ["x", "y", "x"]
    assert [q.where[-1] for q in questions(file, limit=1)[1]] == ["1", "2"]  # of each group


def test_examples_in_the_task_file_and_prompts_in_files_of_their_own(tmp_path):
    (tmp_path / "p-rows.txt").write_text("canary\n-----\nSort words.\n\nQ: b a\nA: a b\n")
    file = write_task(
        tmp_path, rows=[{"q": "d c", "t": ["c d", "C D"]}], kind="generate",
        metrics=["exact_match"], prompt="Q: {q}\nA:", answers="t", preamble_file="p-{_file}.txt",
        preamble_after="-----\n", shots=1, example=[{"q": "z y", "t": "y z"}],
    )  # fmt: skip
    _, (only,) = questions(file)
    assert only.prompt == "Sort words.\n\nQ: b a\nA: a b\n\nQ: z y\nA: y z\n\nQ: d c\nA:"
    assert only.answers == ("c d", "C D")


def test_a_choice_can_stand_inside_the_question(tmp_path):
    """WinoGrande: the text behind the blank is what is scored."""
    row = {"sentence": "The cup is in the box as _ is small.", "option1": "the cup",
           "option2": "the box", "answer": "1"}  # fmt: skip
    (tmp_path / "winogrande").mkdir()
    (tmp_path / "winogrande" / "val.jsonl").write_text(json.dumps(row))
    (task,) = tasks.find("winogrande")
    (only,) = ask(task, TaskData(str(tmp_path)))
    assert only.contexts == (
        "The cup is in the box as the cup", "The cup is in the box as the box",
    )  # fmt: skip
    assert only.choices == ("is small.",) * 2
    assert only.golds == (0,)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"c": ["3", " "]}, "rows.jsonl, row 2: choice 1 is empty"),
        ({"c": ["4", "3", "4"]}, "row 2: choices 0 and 2 are equal ('4')"),
        ({"c": ["4"], "a": 0}, "row 2 has 1 choices; a question needs two"),
        ({"c": "34"}, "row 2: c must be a list, not '34'"),
        ({"c": ["3", None]}, "row 2: c 1 must be text, not None"),
        ({"a": 2}, "row 2: a is 2, not the number of one of 2 choices"),
        ({"a": "B"}, "row 2: a is 'B', not the number"),
        ({"a": [0, 1, 0]}, "row 2: a marks 3 of 2 choices"),
        ({"q": None}, "row 2, field q must be text, not None"),
    ],
)
def test_rows_that_cannot_be_asked_about_are_named(tmp_path, row, message):
    file = write_task(tmp_path, rows=[ROW, ROW | row], **CHOICE)
    with pytest.raises(InputError) as error:
        questions(file)
    assert message in str(error.value)


def test_labels_numbers_and_marks_all_name_the_right_choice(tmp_path):
    rows = [ROW | {"a": a} for a in (1, "1", True, [0, 1], [1, 1])]
    _, found = questions(write_task(tmp_path, rows=rows, **CHOICE))
    assert [q.golds for q in found] == [(1,), (1,), (1,), (1,), (0, 1)]
    rows = [ROW | {"a": "B", "l": ["A", "B"]}]
    _, (only,) = questions(write_task(tmp_path, rows=rows, **CHOICE | {"labels": "l"}))
    assert only.golds == (1,)
    rows[0]["l"] = ["A", "C"]
    file = write_task(tmp_path, rows=rows, **CHOICE | {"labels": "l"})
    with pytest.raises(InputError, match="a is 'B', which names none of the 2 choices"):
        questions(file)


def test_too_few_examples_and_empty_texts_are_refused(tmp_path):
    with pytest.raises(InputError, match="shots=1 leaves no row"):
        questions(write_task(tmp_path, rows=[ROW], **CHOICE, shots=1))
    few = {"shots": 3, "examples": {"file": "rows.jsonl"}}
    with pytest.raises(InputError, match="shots=3, but there are only 1 examples"):
        questions(write_task(tmp_path, rows=[ROW], **CHOICE, **few))
    text = {"kind": "perplexity", "metrics": ["bits_per_byte"], "prompt": "{t}"}
    with pytest.raises(InputError, match="is an empty text"):
        questions(write_task(tmp_path, rows=[{"t": ""}], **text))
    with pytest.raises(InputError, match="holds no rows"):
        questions(write_task(tmp_path, rows=[], **text))


def test_a_key_changes_with_all_that_decides_the_answer(tmp_path):
    """And with nothing else: a new title or metric asks nothing anew."""
    task, (first,) = questions(write_task(tmp_path, rows=[ROW], **CHOICE))
    keys = [key(task, first)]
    for changed in ({"title": "Other"}, {"metrics": ["acc", "acc_norm"]}):
        task, (same,) = questions(write_task(tmp_path, rows=[ROW], **CHOICE | changed))
        assert key(task, same) == keys[0]
    for changed in (
        {"prompt": "Q: {q} A:"}, {"delimiter": ""}, {"metrics": ["acc_pmi"]},
        {"preamble": "Hi. "},
    ):  # fmt: skip
        task, (other,) = questions(write_task(tmp_path, rows=[ROW], **CHOICE | changed))
        keys.append(key(task, other))
    task, (other,) = questions(write_task(tmp_path, rows=[ROW | {"c": ["3", "5"]}], **CHOICE))
    keys.append(key(task, other))
    assert len(set(keys)) == len(keys) == 6
    assert digest(keys) != digest(keys[::-1])
