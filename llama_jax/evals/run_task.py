"""Runs a task on a model: asks the questions, stores the answers, and scores them."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from llama_jax.config import require
from llama_jax.evals import metrics
from llama_jax.evals.kept_answers import KeptAnswers
from llama_jax.evals.language_model import LanguageModel, Likelihood, Request, Writing
from llama_jax.evals.metrics import Found, Value
from llama_jax.evals.questions import Question, digest, key, program
from llama_jax.evals.run_code import all_pass
from llama_jax.evals.task import Task

Beat = Callable[[int, int], None]
"""Called with the questions that are done and how many there are."""


@dataclass(frozen=True)
class Result:
    """Results of a model on a task."""

    task: str
    version: int
    shots: int
    prompts: str
    """Digest of the questions: results with equal ones were asked the same."""
    asked: int
    too_long: int
    """Number of questions longer than the context. They are left out of all metrics."""
    cut: int
    """Number of answers cut off at the end of the context. They are scored as they are."""
    values: dict[str, Value]
    groups: dict[str, dict[str, Value]]
    scores: dict[str, list[float]] = field(repr=False)
    """By metric, the scores of the questions that fit, in their order; none for perplexity."""
    numbers: list[int] = field(repr=False)
    """The numbers of those questions."""

    def to_json(self) -> dict[str, Any]:
        """For --json: everything except the scores of single questions."""
        values = asdict(self)
        del values["scores"], values["numbers"]
        return values


def run_task(
    task: Task,
    questions: Sequence[Question],
    model: LanguageModel,
    kept: KeptAnswers,
    *,
    run_programs: bool = False,
    beat: Beat = lambda done, total: None,
) -> Result:
    """Ask the questions that have no stored answer, then score everything.

    Raises InputError for a task of code without `run_programs`, or if no question fits the context.
    """
    check_allowed(task, run_programs)
    keys = [key(task, question) for question in questions]
    waiting = [q for q, k in zip(questions, keys, strict=True) if kept.get(k) is None]
    done = len(questions) - len(waiting)
    beat(done, len(questions))
    for question, found in _ask(task, waiting, model):
        kept.add(keys[question.number], question.prompt, found)
        done += 1
        beat(done, len(questions))
    found = [kept.get(k) or {} for k in keys]
    fits = [(q, f) for q, f in zip(questions, found, strict=True) if not f["too_long"]]
    require(
        fits,
        f"task {task.name}: none of its {len(questions)} questions fits the model's context; use "
        "fewer shots or a model with a longer one",
    )
    values, groups, scores = _score(task, fits)
    return Result(
        task=task.name,
        version=task.version,
        shots=task.shots + task.stored_shots,
        prompts=digest(keys),
        asked=len(questions),
        too_long=len(questions) - len(fits),
        cut=sum(f.get("cut", 0) for _, f in fits),
        values=values,
        groups=groups,
        scores=scores,
        numbers=[q.number for q, _ in fits],
    )


def check_allowed(task: Task, run_programs: bool) -> None:
    """Raise InputError for a task of code unless programs may run."""
    require(
        task.kind != "code" or run_programs,
        f"task {task.name} runs the programs that the model writes; allow that with --run-code "
        "(each gets a process with limits, which is no sandbox)",
    )


def _ask(
    task: Task, questions: Sequence[Question], model: LanguageModel
) -> Iterator[tuple[Question, Found]]:
    ask = {"choice": _ask_choices, "perplexity": _ask_texts}.get(task.kind, _ask_answers)
    return ask(task, questions, model)


def _ask_choices(
    task: Task, questions: Sequence[Question], model: LanguageModel
) -> Iterator[tuple[Question, Found]]:
    requests: list[Request] = []
    owner: list[tuple[Question, int]] = []
    for question in questions:
        asked = list(zip(question.contexts, question.choices, strict=True))
        if "acc_pmi" in task.metrics:
            asked += [(task.unconditional, choice) for choice in question.choices]
        requests += [Request(context, task.delimiter + choice) for context, choice in asked]
        owner += [(question, place) for place in range(len(asked))]
    sizes = Counter(question.number for question, _ in owner)
    left: dict[int, dict[int, Likelihood | None]] = defaultdict(dict)
    for n, likelihood in model.likelihoods(requests):
        question, place = owner[n]
        found = left[question.number]
        found[place] = likelihood
        if len(found) < sizes[question.number]:
            continue
        del left[question.number]
        parts = [part for _, part in sorted(found.items()) if part is not None]
        if len(parts) < len(found):
            yield question, {"too_long": True}
            continue
        C = len(question.choices)
        said = {
            "too_long": False,
            "logp": [p.logp for p in parts[:C]],
            "tokens": [p.tokens for p in parts[:C]],
            "greedy": [p.greedy for p in parts[:C]],
        }
        yield question, said | ({"unconditional": [p.logp for p in parts[C:]]} if parts[C:] else {})


def _ask_texts(
    task: Task, questions: Sequence[Question], model: LanguageModel
) -> Iterator[tuple[Question, Found]]:
    for n, likelihood in model.rolling([q.prompt for q in questions], task.stride):
        found = {"too_long": likelihood is None}
        if likelihood is not None:
            found |= {"logp": likelihood.logp, "tokens": likelihood.tokens}
        yield questions[n], found


def _ask_answers(
    task: Task, questions: Sequence[Question], model: LanguageModel
) -> Iterator[tuple[Question, Found]]:
    writing = Writing(
        max_new_tokens=task.max_new_tokens,
        temperature=task.temperature,
        top_p=task.top_p,
        samples=task.samples,
        until=task.until,
        chat=task.chat,
    )
    for n, answers in model.answers([(q.number, q.prompt) for q in questions], writing):
        if answers is None:
            yield questions[n], {"too_long": True}
            continue
        texts = [answer.text for answer in answers]
        found: dict[str, Any] = {
            "too_long": False,
            "texts": texts,
            "cut": sum(a.cut for a in answers),
        }
        if task.kind == "code":
            programs = [program(task, questions[n], text) for text in texts]
            found["passed"] = all_pass(programs, task.seconds)
        yield questions[n], found


def _score(
    task: Task, answered: Sequence[tuple[Question, Found]]
) -> tuple[dict[str, Value], dict[str, dict[str, Value]], dict[str, list[float]]]:
    """Of all, of each group, and of each question."""
    groups: dict[str, list[int]] = defaultdict(list)
    for number, (question, _) in enumerate(answered):
        groups[question.group].append(number)
    parts = groups if task.group else {}
    if task.kind == "perplexity":
        values = _perplexities(task, answered)
        by_group = {g: _perplexities(task, [answered[n] for n in ns]) for g, ns in parts.items()}
        return values, by_group, {}
    each = [metrics.SCORES[task.kind](task, question, found) for question, found in answered]
    scores = {m: [score[m] for score in each] for m in task.metrics}
    split = {m: {g: [scores[m][n] for n in ns] for g, ns in groups.items()} for m in task.metrics}
    if task.aggregate == "mean":
        values = {m: metrics.mean(scores[m]) for m in task.metrics}
    else:
        values = {m: metrics.mean_of_groups(split[m]) for m in task.metrics}
    by_group = {g: {m: metrics.mean(split[m][g]) for m in task.metrics} for g in parts}
    return values, by_group, scores


def _perplexities(task: Task, answered: Sequence[tuple[Question, Mapping]]) -> dict[str, Value]:
    logp = [found["logp"] for _, found in answered]
    counts = [metrics.sizes(question.prompt, found["tokens"]) for question, found in answered]
    return {
        metric: metrics.perplexity(metric, logp, [c[_UNIT[metric]] for c in counts])
        for metric in task.metrics
    }


_UNIT = {
    "token_perplexity": "token", "word_perplexity": "word", "byte_perplexity": "byte",
    "bits_per_byte": "byte",
}  # fmt: skip
