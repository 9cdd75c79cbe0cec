"""Figures of reinforcement learning and rejection sampling, from the numbers that runs log."""

from collections.abc import Mapping, Sequence
from typing import Any

from llama_jax.evals.charts import lines

Logged = Sequence[Mapping[str, Any]]
"""The lines of a run's metrics."""


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
        for judge, key in (("its judges", "heldout/proxy"), ("held-out judge", "heldout/score"))
    }
    bought = {
        name: [
            (m["kl/answer"], m["score/mean"]) for m in found if {"kl/answer", "score/mean"} <= {*m}
        ]
        for name, found in runs.items()
    }
    return "".join((
        _figure(lines(_drawn(score), "iteration", "score"),
                "Scores of answers to held-out prompts."),
        _figure(lines(_drawn(kl), "iteration", "nats an answer"),
                "How far a policy is from where it started."),
        _figure(lines(_drawn(bought), "KL, nats an answer", "score", joined=False),
                "Score bought with KL: an iteration is a dot."),
    ))  # fmt: skip


def learned(metrics: Logged, name: str, label: str, caption: str) -> str:
    """A number of training and validation at each step that logged it; empty if none did."""
    series = {
        "training": curve(metrics, f"train/{name}"),
        "validation": curve(metrics, f"eval/{name}"),
    }
    return _figure(lines(_drawn(series), "step", label), caption)


def curve(metrics: Logged, key: str) -> list[tuple[float, float]]:
    """(step, value) of each line that has the key."""
    return [(float(m["step"]), float(m[key])) for m in metrics if key in m]


def _drawn(series: Mapping[str, list[tuple[float, float]]]) -> dict[str, list[tuple[float, float]]]:
    return {name: points for name, points in series.items() if points}


def _figure(chart: str, caption: str) -> str:
    return f"<figure>{chart}<figcaption>{caption}</figcaption></figure>" if chart else ""
