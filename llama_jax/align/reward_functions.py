"""Rewards from a user's Python function: a checkable result, rules, or any program.

    def reward(prompts: Sequence[EncodedPrompt], answers: Sequence[Answered]) -> Sequence[float]

`prompts[i].messages` is the conversation that `answers[i].text` answers, `prompts[i].answer` the
answer that its record came with, if any, and `answers[i].ended` says whether the model stopped by
itself. The function is called on host 0 and returns a finite number for each answer.
"""

import importlib
import json
import math
import os
import runpy
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from llama_jax.align.answering import Answered
from llama_jax.align.rewards import Scores
from llama_jax.align.scoring import Rows
from llama_jax.config import InputError, require
from llama_jax.data.conversations import EncodedPrompt
from llama_jax.data.corpora.tales.judge import judge
from llama_jax.experiment import project
from llama_jax.runtime.hosts import exchange, fail_together, is_main
from llama_jax.runtime.places import expand

Function = Callable[[Sequence[EncodedPrompt], Sequence[Answered]], Sequence[float]]
JUDGE = "judge"
"""Name of the rule judge of the tales."""
LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class RewardFunction:
    """A function, and its name in the experiment."""

    name: str
    function: Function

    def digest(self) -> str:
        """The name alone, so that a function can be repaired while a run is stopped."""
        return self.name

    def score(
        self, prompts: Sequence[EncodedPrompt], rows: Rows, answers: Sequence[Answered]
    ) -> Scores:
        """The function's results, float32: computed on host 0 and sent to every host.

        Raises InputError if it raises, or returns anything but a finite number for each answer.
        """
        with fail_together():
            found = self._values(prompts, answers) if is_main() else []
        return Scores(np.array(json.loads(exchange(json.dumps(found))[0]), np.float32))

    def _values(self, prompts: Sequence[EncodedPrompt], answers: Sequence[Answered]) -> list[float]:
        kept = "; the answers are kept: repair it, and run the same command again"
        try:
            found: Any = list(self.function(prompts, answers))
        except Exception as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            raise InputError(
                f"reward {self.name} raised {error!r:.200} ({frame.filename}, line "
                f"{frame.lineno}){kept}"
            ) from error
        require(
            len(found) == len(answers),
            f"reward {self.name} returned {len(found)} numbers for {len(answers)} answers{kept}",
        )
        values = [_number(value) for value in found]
        for prompt, answer, said, value in zip(prompts, answers, found, values, strict=True):
            if not abs(value) <= LARGEST:
                raise InputError(
                    f"reward {self.name} returned {said!r:.40} for the answer "
                    f"{answer.text!r:.60} to {prompt.messages[-1]['content']!r:.60}, which is no "
                    f"finite number{kept}"
                )
        return values


def _number(value: Any) -> float:
    """As a float; NaN where it is no number."""
    try:
        return float(value) if hasattr(value, "__float__") else math.nan
    except (TypeError, ValueError):  # an array
        return math.nan


def open_function(name: str) -> RewardFunction:
    """The function that an experiment names: `module:function`, `FILE.py:function` or `judge`.

    Modules are looked for in the working directory too, files also among the experiments that come
    with the project. Raises InputError if there is none, or its module does not run.
    """
    if name == JUDGE:
        return RewardFunction(name, rule_judge)
    place, _, function = name.rpartition(":")
    require(
        place and function,
        f"reward={name} must be module:function, FILE.py:function or {JUDGE}",
    )
    is_file = place.endswith(".py")
    file = expand(place)
    if is_file and not os.path.isfile(file):
        file = os.fspath(project() / place)
    require(not is_file or os.path.isfile(file), f"reward={name}: {place} is not a file")
    try:
        with _working_directory():
            names = runpy.run_path(file) if is_file else vars(_module(place))
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"reward={name}: {place} does not run: {error!r:.200}") from error
    found = names.get(function)
    require(callable(found), f"reward={name}: {place} has no function {function}")
    return RewardFunction(name, found)  # type: ignore[arg-type]


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name and not name.startswith(f"{error.name}."):
            raise  # one that it imports
        raise InputError(
            f"reward={name}: there is no module {error.name}, here or installed: a file is named "
            "as FILE.py:function"
        ) from error


@contextmanager
def _working_directory() -> Iterator[None]:
    """Let modules that lie there be found."""
    before = list(sys.path)
    sys.path.insert(0, os.getcwd())
    try:
        yield
    finally:
        sys.path[:] = before


def rule_judge(prompts: Sequence[EncodedPrompt], answers: Sequence[Answered]) -> list[float]:
    """Helpfulness from 0 to 1 by the rule judge of the tales, which knows no other prompts."""
    return [
        judge(p.messages, a.text, a.ended).helpfulness
        for p, a in zip(prompts, answers, strict=True)
    ]
