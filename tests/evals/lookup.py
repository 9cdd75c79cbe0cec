"""Models made of a table: what they know, they say, so that it is known how they must score."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from llama_jax.evals import task as tasks
from llama_jax.evals.kept_answers import KeptAnswers
from llama_jax.evals.language_model import Answer, Likelihood
from llama_jax.evals.questions import ask
from llama_jax.evals.run_task import run_task
from llama_jax.evals.task_rows import TaskData

REAL = Path(__file__).parents[3] / "shared" / "data" / "real"
needs_real = pytest.mark.skipif(not REAL.exists(), reason="no real data beside the checkout")


@dataclass
class Lookup:
    """A `LanguageModel`: likelihoods by (context, continuation) or by the continuation's end,
    answers by a word of the prompt; what it was asked is kept, the last things first."""

    logp: dict = field(default_factory=dict)
    says: dict = field(default_factory=dict)
    default: str = ""
    longest: int = 10**9
    """Characters that fit its context."""
    seen: list = field(default_factory=list)
    stop_after: int = 10**9
    """Raises KeyboardInterrupt after so many answers."""

    def likelihoods(self, requests):
        for number in reversed(range(len(requests))):
            self._tick(requests[number])
            context, continuation = requests[number]
            if len(context + continuation) > self.longest:
                yield number, None
                continue
            found = self.logp.get((context, continuation), self.logp.get(continuation, -9.0))
            yield number, Likelihood(float(found), False, max(1, len(continuation.split())))

    def rolling(self, texts, stride):
        for number, text in enumerate(texts):
            self._tick(text)
            yield number, Likelihood(float(self.logp[text]), False, len(text) // 2)

    def answers(self, prompts, writing):
        for number in reversed(range(len(prompts))):
            _, prompt = prompts[number]
            self._tick(prompt)
            if len(prompt) > self.longest:
                yield number, None
                continue
            said = self.says.get(prompt, self.default)
            texts = said if isinstance(said, list) else [said] * writing.samples
            yield number, [Answer(text, False) for text in texts]

    def _tick(self, asked):
        if len(self.seen) >= self.stop_after:
            raise KeyboardInterrupt
        self.seen.append(asked)


def write_task(folder, name="mine", rows=(), **values):
    """A task file, and its rows beside it in `rows.jsonl`, as the reader reads it."""
    values = {"title": "T", "version": 1, "source": {"file": "rows.jsonl"}} | values
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines, tables = [], []
    for key, value in values.items():
        if isinstance(value, dict):
            tables.append(f"[{key}]\n{_pairs(value)}")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            tables += [f"[[{key}]]\n{_pairs(row)}" for row in value]
        else:
            lines.append(_pairs({key: value}))
    file = folder / f"{name}.toml"
    file.write_text("".join([*lines, *tables]))
    return file


def _pairs(values):
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())


def read(file):
    """The one task of a file."""
    (task,) = tasks.find(str(file))
    return task


def questions(file, limit=None):
    """Task and questions of a task file."""
    task = read(file)
    return task, ask(task, TaskData(), limit)


def run(task, asked, model, folder, **options):
    """The result of a task; answers are kept below the folder."""
    with KeptAnswers(str(folder), "digest-of-the-model", task.name) as kept:
        return run_task(task, asked, model, kept, **options)
