"""Builds questions from a task's rows: prompts with examples, choices and right answers."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from llama_jax.config import InputError, require
from llama_jax.evals.task import Task
from llama_jax.evals.task_rows import Row, TaskData
from llama_jax.evals.templates import FILTERS, as_text, lookup, render
from llama_jax.runtime.files import json_text, shown

VERSION = 2
"""Increase it whenever the same question can get another answer: it is part of every key."""


@dataclass(frozen=True)
class Question:
    """One question, ready to be put to a model."""

    number: int
    """Number among the questions asked, from 0."""
    where: str
    group: str
    """The part of the task that it belongs to; empty for tasks without parts."""
    prompt: str
    """The text before the answer; for perplexity the text itself."""
    choices: tuple[str, ...] = ()
    """Without the space before them."""
    contexts: tuple[str, ...] = ()
    """The text before each choice."""
    golds: tuple[int, ...] = ()
    """The right choices."""
    answers: tuple[str, ...] = ()
    """Right answers, any of which counts."""
    row: Row | None = field(default=None, compare=False)


def ask(task: Task, data: TaskData, limit: int | None = None) -> list[Question]:
    """The questions of a task, the first `limit` of them, or of each of its groups.

    Raises InputError, with file and row, for fields that are missing or of another type, choices
    that are empty or equal, a right answer that is none of the choices, and too few examples.
    """
    rows = data.rows(task, task.source)
    examples = rows if task.shots else []
    if task.example:
        examples = [Row(r, f"task {task.name}, example {n}") for n, r in enumerate(task.example, 1)]
    elif task.shots and task.examples is not None:
        examples = data.rows(task, task.examples)
    elif task.shots:
        require(not task.same, f"task {task.name}: the key same needs examples of their own")
        rows = rows[task.shots :]
        require(rows, f"task {task.name}: shots={task.shots} leaves no row to ask about")
    make = _Maker(task, data, examples)
    return [make(number, row) for number, row in enumerate(_first(task, rows, limit))]


def _first(task: Task, rows: Sequence[Row], limit: int | None) -> list[Row]:
    if limit is None or not task.group:
        return list(rows[:limit])
    taken: Counter[str] = Counter()
    first = []
    for row in rows:
        group = _group(task, row)
        taken[group] += 1
        first += [row] if taken[group] <= limit else []
    return first


def _group(task: Task, row: Row) -> str:
    where = f"task {task.name}: {row.where}"
    return as_text(lookup(row.values, task.group, where), where) if task.group else ""


def key(task: Task, question: Question) -> str:
    """SHA-256 of everything that determines a model's answer."""
    said: list[Any] = [VERSION, task.kind, question.prompt]
    if task.kind == "choice":
        unconditional = task.unconditional if "acc_pmi" in task.metrics else ""
        said += [question.choices, question.contexts, task.delimiter, unconditional]
    elif task.kind == "perplexity":
        said += [task.stride]
    else:
        said += [task.until, task.max_new_tokens, task.temperature, task.top_p, task.samples]
        said += [task.chat, question.number if task.temperature else 0]
        said += [program(task, question, "")] if task.kind == "code" else []
    return hashlib.sha256(json_text(said).encode()).hexdigest()


def digest(keys: Sequence[str]) -> str:
    """Digest of the questions in their order: results with equal digests were asked the same."""
    return hashlib.sha256(json.dumps(list(keys)).encode()).hexdigest()


def program(task: Task, question: Question, completion: str) -> str:
    """The program that passes if a completion is right."""
    assert question.row is not None
    values = {**question.row.values, "completion": completion}
    return render(task.program, values, question.where)


@dataclass
class _Maker:
    """Makes the questions of one task."""

    task: Task
    data: TaskData
    examples: Sequence[Row]
    _files: dict[str, str] = field(default_factory=dict)
    _shown: dict[str, str] = field(default_factory=dict)

    def __call__(self, number: int, row: Row) -> Question:
        task, where = self.task, f"task {self.task.name}: {row.where}"
        group = _group(task, row)
        before = self._before(row, where)
        if task.kind == "perplexity":
            text = before + render(task.prompt, row.values, where)
            require(text, f"{where} is an empty text, which has no perplexity")
            return Question(number, where, group, text)
        if task.kind == "choice":
            choices, golds = _choices(task, row, where)
            templates = task.contexts or (task.prompt,)
            found = [before + _filtered(task, render(t, row.values, where)) for t in templates]
            contexts = found if task.contexts else found * len(choices)
            _check_choices(choices, contexts, where)
            return Question(
                number, where, group, found[0], choices, tuple(contexts), golds, row=row
            )
        prompt = before + render(task.prompt, row.values, where)
        answers = _answers(task, row, where) if task.answers else ()
        return Question(number, where, group, prompt, answers=answers, row=row)

    def _before(self, row: Row, where: str) -> str:
        """Everything in front of the question."""
        task = self.task
        stored = self._file(row, where) + task.separator if task.preamble_file else ""
        return render(task.preamble, row.values, where) + stored + self._examples(row, where)

    def _examples(self, row: Row, where: str) -> str:
        """Those before a question: the same text for all that share what examples must share."""
        task = self.task
        if not task.shots:
            return ""
        shared = as_text(lookup(row.values, task.same, where), where) if task.same else ""
        if shared not in self._shown:
            chosen = _shots(task, self.examples, row)
            self._shown[shared] = "".join(_example(task, e) + task.separator for e in chosen)
        return self._shown[shared]

    def _file(self, row: Row, where: str) -> str:
        name = render(self.task.preamble_file, row.values, where)
        if name not in self._files:
            text, mark = self.data.text(self.task, name), self.task.preamble_after
            require(mark in text, f"{where}: {name} holds no {shown(mark)} to begin after")
            self._files[name] = (text.partition(mark)[2] if mark else text).strip("\n")
        return self._files[name]


def _shots(task: Task, examples: Sequence[Row], row: Row) -> list[Row]:
    """The rows of the examples before a question."""
    chosen = examples
    if task.same:
        wanted = lookup(row.values, task.same, row.where)
        chosen = [e for e in examples if lookup(e.values, task.same, e.where) == wanted]
    require(
        len(chosen) >= task.shots,
        f"task {task.name}: shots={task.shots}, but there are only {len(chosen)} examples for "
        f"{row.where}",
    )
    return list(chosen[: task.shots])


def _example(task: Task, row: Row) -> str:
    """A question with its answer."""
    where = f"task {task.name}: {row.where}"
    template = task.prompt
    if task.target:
        answer = render(task.target, row.values, where)
    elif task.kind == "choice":
        choices, golds = _choices(task, row, where)
        require(golds, f"{where} has no right choice, which an example needs")
        template = task.contexts[golds[0]] if task.contexts else task.prompt
        answer = choices[golds[0]]
    else:
        answer = _answers(task, row, where)[0]
    return _filtered(task, render(template, row.values, where)) + task.delimiter + answer


def _texts(value: str | tuple[str, ...], row: Row, where: str) -> tuple[str, ...]:
    """A path of a list of texts, or templates."""
    if isinstance(value, tuple):
        return tuple(render(template, row.values, where) for template in value)
    found = lookup(row.values, value, where)
    require(isinstance(found, list), f"{where}: {value} must be a list, not {shown(found)}")
    return tuple(as_text(text, f"{where}: {value} {n}") for n, text in enumerate(found))


def _choices(task: Task, row: Row, where: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    choices = _texts(task.choices, row, where)
    if task.contexts:
        require(len(choices) == 1, f"{where}: contexts need one choice, not {len(choices)}")
        choices = choices * len(task.contexts)
    choices = tuple(_filtered(task, choice) for choice in choices)
    return choices, _golds(task, row, len(choices), where)


def _filtered(task: Task, text: str) -> str:
    return FILTERS[task.filter](text) if task.filter else text


def _golds(task: Task, row: Row, count: int, where: str) -> tuple[int, ...]:
    value = lookup(row.values, task.answer, where)
    if isinstance(value, list):
        require(
            len(value) == count, f"{where}: {task.answer} marks {len(value)} of {count} choices"
        )
        return tuple(n for n, right in enumerate(value) if right)
    if task.labels:
        labels, name = _texts(task.labels, row, where), as_text(value, where)
        require(
            labels.count(name) == 1 and len(labels) == count,
            f"{where}: {task.answer} is {shown(name)}, which names none of the {count} choices; "
            f"they are {shown(list(labels))}",
        )
        return (labels.index(name),)
    text = as_text(int(value) if isinstance(value, bool) else value, where)
    require(
        text.isascii() and text.isdigit() and int(text) < count,
        f"{where}: {task.answer} is {shown(value)}, not the number of one of {count} choices",
    )
    return (int(text),)


def _check_choices(choices: Sequence[str], contexts: Sequence[str], where: str) -> None:
    require(len(choices) > 1, f"{where} has {len(choices)} choices; a question needs two")
    for number, choice in enumerate(choices):
        require(choice.strip(), f"{where}: choice {number} is empty")
    pairs = list(zip(contexts, choices, strict=True))
    for number, pair in enumerate(pairs):
        first = pairs.index(pair)
        if first != number:
            raise InputError(
                f"{where}: choices {first} and {number} are equal ({shown(choices[number])})"
            )


def _answers(task: Task, row: Row, where: str) -> tuple[str, ...]:
    if "{" in task.answers:
        found: Any = [render(task.answers, row.values, where)]
    else:
        found = lookup(row.values, task.answers, where)
    found = found if isinstance(found, list) else [found]
    require(found, f"{where}: {task.answers} holds no answer")
    return tuple(as_text(answer, f"{where}: {task.answers}") for answer in found)
