"""A text table of the results of one or several models."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from llama_jax.evals.metrics import Value
from llama_jax.evals.run_task import Result


class ModelResults(NamedTuple):
    """Results of one model."""

    model: str
    """Its path."""
    digest: str
    results: Sequence[Result]
    """In the order of the tasks."""


def difference(ours: Result, theirs: Result, metric: str) -> Value | None:
    """Our value minus theirs, over the questions that fit both, with the standard error of paired
    differences; None where there are no scores of single questions."""
    if metric not in ours.scores or metric not in theirs.scores:
        return None
    other = dict(zip(theirs.numbers, theirs.scores[metric], strict=True))
    pairs = [
        (score, other[number])
        for number, score in zip(ours.numbers, ours.scores[metric], strict=True)
        if number in other
    ]
    if not pairs:
        return None
    d = np.subtract(*np.asarray(pairs, np.float64).T)
    error = float(d.std(ddof=1) / math.sqrt(d.size)) if d.size > 1 else None
    return Value(float(d.mean()), error, d.size)


def table(found: Sequence[ModelResults]) -> str:
    """One line for each metric of each task and its groups, one column for each model; with two
    models, the second minus the first. Notes on the numbers follow."""
    head = ["task", "shots", "n", "metric", *(of.model for of in found)]
    head += ["difference"] if len(found) == 2 else []
    lines = [head]
    for number, first in enumerate(found[0].results):
        results = [of.results[number] for of in found]
        for metric in first.values:
            lines.append(_line(first, "", metric, results))
            for group in first.groups if len(first.groups) <= MAX_GROUPS else ():
                lines.append(_line(first, group, metric, results))
    widths = [max(len(line[i]) for line in lines if i < len(line)) for i in range(len(head))]
    text = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=False)).rstrip()
            for line in lines]  # fmt: skip
    return "\n".join([*text, "", *_notes(found)])


MAX_GROUPS = 8
"""If a task has more groups than this, the table shows none of them; --json has them."""


def _line(first: Result, group: str, metric: str, results: Sequence[Result]) -> list[str]:
    values = [(r.groups.get(group, {}) if group else r.values).get(metric) for r in results]
    name = f"  {group}" if group else f"{first.task} v{first.version}"
    n = str(values[0].n) if values[0] else "0"
    line = [name, str(first.shots), n, metric, *map(said, values)]
    if len(results) == 2 and not group:
        line.append(said(difference(results[1], results[0], metric), sign="+"))
    return line


def said(value: Value | None, sign: str = "") -> str:
    """A value with its standard error, as `0.2500 ± 0.0433`."""
    if value is None:
        return "-"
    error = "" if value.stderr is None else f" ± {value.stderr:.4f}"
    return f"{value.value:{sign}.4f}{error}"


def _notes(found: Sequence[ModelResults]) -> list[str]:
    notes = []
    for of in found:
        for result in of.results:
            if result.too_long:
                notes.append(
                    f"{result.task}: {result.too_long} of {result.asked} questions are longer than "
                    f"the context of {of.model} and left out of its numbers"
                )
            if result.cut:
                notes.append(
                    f"{result.task}: {result.cut} answers of {of.model} were cut off by the end of "
                    "its context"
                )
    notes += [f"prompts of {r.task}: {r.prompts[:16]}" for r in found[0].results]
    return notes + [f"digest of {of.model}: {of.digest[:16]}" for of in found]
