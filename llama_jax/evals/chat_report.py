"""HTML report of the alignment stages: one file that opens from disk."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from llama_jax.evals.calibration import Bin
from llama_jax.evals.charts import Bar, bars, lines
from llama_jax.evals.figures import best_of_n, policies
from llama_jax.evals.page import document, table


def page(report: Mapping[str, Any], figures: Mapping[str, Any], talk: Sequence[str]) -> str:
    """The page of a report (see experiments/chat/run.py for its keys).

    figures: best_of_n by round, calibration by reward model, policies with their lines of metrics,
    answers by prompt and stage. talk: commands to continue with.
    """
    parts = [
        "<p>Each stage of Llama 2's alignment, run on this machine in "
        f"{report['seconds'] / 60:.0f} minutes. A program that knows the rules of this small world "
        "judges every answer; no model is its own judge.</p>",
        "<h2>What each stage did</h2>",
        _stages(report["stages"]),
        f"<p>The base keeps the name of its hero from the first sentence to the last in "
        f"{100 * report['hero_kept']:.0f} of 100 stories.</p>",
        "<h2>Reward models</h2>",
        _reward_models(report["reward_accuracy"], figures["calibration"]),
        "<h2>Rejection sampling and reinforcement learning</h2>",
        best_of_n(figures["best_of_n"]),
        policies(figures["policies"]),
        "<h2>Ghost attention</h2>",
        _ghost(report["gatt"]),
        "<h2>The same prompts, answered by each stage</h2>",
        _answers(figures["answers"]),
        "<h2>Talk to it</h2>",
        *(f"<p><code>{escape(command)}</code></p>" for command in talk),
    ]
    return document("From a base model to a chat model", parts)


def _stages(stages: Sequence[Mapping[str, Any]]) -> str:
    helpful = bars(
        [Bar(s["name"], s["helpfulness"], *s["helpfulness_interval"]) for s in stages],
        "helpfulness",
    )
    unsafe = bars(
        [Bar(s["name"], s["violations"], *s["violations_interval"]) for s in stages],
        "violations",
    )
    rows = [
        (s["name"], s.get("origin", ""), s["helpfulness"],
         "{:.3f} to {:.3f}".format(*s["helpfulness_interval"]), s["violations"],
         s["false_refusals"], _p_value(s.get("p_value")))
        for s in stages
    ]  # fmt: skip
    head = ("stage", "starts from", "helpfulness", "95 % interval", "violations",
            "false refusals", "p of no gain over its start")  # fmt: skip
    return (
        f"<figure>{helpful}<figcaption>Judged helpfulness of answers to {stages[0]['prompts']} "
        f"held-out prompts.</figcaption></figure><figure>{unsafe}<figcaption>Share of unkind "
        f"requests that were not refused kindly.</figcaption></figure>{table(head, rows)}"
    )


def _p_value(p: float | None) -> str:
    return "" if p is None else f"{p:.3f}" if p >= 0.001 else "< 0.001"


def _reward_models(
    accuracy: Mapping[str, Mapping[str, float]], calibrated: Mapping[str, Sequence[Bin]]
) -> str:
    ratings = ("significantly", "better", "slightly", "negligibly")
    rows = [(kind, *(float(found[r]) for r in ratings)) for kind, found in accuracy.items()]
    series = {"what would be right": [(0.5, 0.5), (1.0, 1.0)]}
    for kind, bins in calibrated.items():
        series[kind] = [(b.predicted, b.observed) for b in bins]
    return (
        "<p>Share of held-out pairs in which the model prefers the better answer, by how much "
        f"better it is (the paper's Table 8).</p>{table(('model', *ratings), rows)}"
        f"<figure>{lines(series, 'certainty of the model', 'share that is right')}<figcaption>"
        "Calibration: how often the answer that a model prefers is the better one, by how certain "
        "it is.</figcaption></figure>"
    )


def _ghost(gatt: Mapping[str, Mapping[str, float]]) -> str:
    turns = list(next(iter(gatt.values())))
    rows = [(name, *(float(found[t]) for t in turns)) for name, found in gatt.items()]
    return (
        "<p>Share of conversations whose answer at a turn still keeps what the first turn asked "
        f"for.</p>{table(('ghost attention', *(f'turn {t}' for t in turns)), rows)}"
    )


def _answers(answers: Sequence[Mapping[str, Any]]) -> str:
    out = []
    for found in answers:
        rows = [(name, text) for name, text in found["answers"].items()]
        opened = " open" if found is answers[0] else ""
        out.append(
            f"<details{opened}><summary>{escape(found['prompt'])}</summary>"
            f"{table(('stage', 'answer'), rows)}</details>"
        )
    return "".join(out)
