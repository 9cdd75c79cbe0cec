"""Figures of a run's course, from the numbers that it logged."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from llama_jax.evals.charts import lines

Logged = Sequence[Mapping[str, Any]]
"""The lines of a run's metrics."""
Points = list[tuple[float, float]]


def best_of_n(rounds: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """Score of the best of n answers and of the median one, for each named round: Figure 7."""
    series = {}
    for name, found in rounds.items():
        series[f"{name}, best of n"] = list(zip(found["n"], found["max"], strict=True))
        series[f"{name}, median"] = list(zip(found["n"], found["median"], strict=True))
    return _figure(
        lines(series, "answers", "score"),
        "The best of n answers, and the median one (the paper's Figure 7).",
    )


def policies(runs: Mapping[str, Logged]) -> str:
    """Scores, KL, and one against the other, for each named run of `ppo` or `grpo`."""
    kl = {name: curve(found, "kl/answer") for name, found in runs.items()}
    score = {
        f"{name}, {judge}": curve(found, key)
        for name, found in runs.items()
        for judge, key in (("its reward", "heldout/proxy"), ("held-out judge", "heldout/score"))
    }
    bought = {name: points(found, "kl/answer", "score/mean") for name, found in runs.items()}
    return "".join((
        _figure(lines(_drawn(score), "iteration", "score"),
                "Scores of answers to held-out prompts."),
        _figure(lines(_drawn(kl), "iteration", "nats an answer"),
                "How far a policy is from where it started."),
        _figure(lines(_drawn(bought), "KL, nats an answer", "score", joined=False),
                "Score bought with KL: each dot is an iteration."),
    ))  # fmt: skip


def learned(metrics: Logged, training: str, validation: str, label: str, caption: str) -> str:
    """Two numbers, by their keys, at each step that logged them; empty if none did."""
    series = {"training": curve(metrics, training), "validation": curve(metrics, validation)}
    return _figure(lines(_drawn(series), "step", label), caption)


def curve(metrics: Logged, key: str) -> Points:
    """(step, value) of each line that has the key."""
    return points(metrics, "step", key)


def points(metrics: Logged, x: str, y: str) -> Points:
    """(x, y) of each line that has both keys, and finite numbers for them."""
    pairs = [(m[x], m[y]) for m in metrics if x in m and y in m]
    return [
        (float(a), float(b))
        for a, b in pairs
        if all(isinstance(v, int | float) and math.isfinite(v) for v in (a, b))
    ]


def _drawn(series: Mapping[str, Points]) -> dict[str, Points]:
    return {name: found for name, found in series.items() if found}


def _figure(chart: str, caption: str) -> str:
    return f"<figure>{chart}<figcaption>{caption}</figcaption></figure>" if chart else ""
