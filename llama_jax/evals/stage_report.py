"""The report of an alignment run: how it learned, its scores, and what its model says.

All of it comes from what the run wrote; the model is not loaded.
"""

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from etils import epath

from llama_jax.config import TrainConfig
from llama_jax.evals.figures import Logged, best_of_n, learned, policies
from llama_jax.evals.page import commands, table
from llama_jax.evals.run_files import files
from llama_jax.model.weights import parameter_count
from llama_jax.runtime.console import own_command
from llama_jax.runtime.files import read_bytes, read_json

SHOWN = 12
"""Number of answers on the page."""


def stage_parts(path: str, run: epath.Path, experiment: TrainConfig, metrics: Logged) -> list[str]:
    """The parts of the page of a run of any stage but pretraining."""
    parts = [
        _facts(experiment, metrics),
        "<h2>How it learned</h2>",
        learned(metrics, "loss", "nats", "The loss that is minimised."),
        learned(metrics, "accuracy", "accuracy", "Accuracy: of pairs, or of tokens."),
        policies({experiment.stage: metrics}) if experiment.stage in ("ppo", "grpo") else "",
        _rounds(run),
        _last(metrics),
        _samples(run),
        "<h2>Where everything is</h2>",
        files(run),
        "<h2>What to type next</h2>",
        commands(_next(path, experiment)),
    ]
    return [part for part in parts if part]


def _facts(experiment: TrainConfig, metrics: Logged) -> str:
    c = experiment.model
    done = max((m["step"] for m in metrics), default=0)
    unit = {"ppo": "iterations", "grpo": "iterations", "rejection": "rounds"}
    steps = getattr(experiment, "rounds", experiment.steps)
    return (
        f"<p>A run of <code>llama-jax {experiment.stage}</code> that starts from "
        f"<code>{escape(str(experiment.init_from))}</code>, a model of {parameter_count(c):,} "
        f"parameters, on {escape(experiment.data.dataset)}: {done:,} of {steps:,} "
        f"{unit.get(experiment.stage, 'steps')}.</p>"
    )


def _rounds(run: epath.Path) -> str:
    """Figure 7 and the numbers of each round of rejection sampling."""
    folders = sorted(run.glob("round_*"), key=lambda folder: int(folder.name.split("_")[1]))
    complete = [folder for folder in folders if (folder / "round.json").exists()]
    if not complete:
        return ""
    keys = ("temperature", "prompts", "score", "winners_score", "truncated")
    read = {
        folder.name: [read_json(folder / f"{name}.json") for name in ("round", "best_of_n")]
        for folder in complete
    }
    head = ("round", "temperature", "prompts", "mean score", "winners' score", "truncated")
    rows = [(name.split("_")[1], *(found[k] for k in keys)) for name, (found, _) in read.items()]
    curves = {f"round {name.split('_')[1]}": best for name, (_, best) in read.items()}
    return best_of_n(curves) + table(head, rows)


def _last(metrics: Logged) -> str:
    """The numbers of the last evaluation."""
    found = next((m for m in reversed(metrics) if any(k.startswith("eval/") for k in m)), None)
    if found is None:
        return ""
    rows = [
        (key.removeprefix("eval/").replace("_", " "), float(value))
        for key, value in sorted(found.items())
        if key.startswith("eval/") and key != "eval/step"
    ]
    step = f"<h2>On held-out data, after {found['step']:,} steps</h2>"
    return step + table(("number", "value"), rows)


def _samples(run: epath.Path) -> str:
    """What the model said at the last evaluation, or in the last iteration."""
    said = "<h2>What it says</h2>"
    for place, ending in (("samples", "jsonl"), ("completions", "jsonl"), ("samples", "txt")):
        found = sorted((run / place).glob(f"*.{ending}"))
        if not found:
            continue
        text = read_bytes(found[-1]).decode()
        if ending == "txt":
            return f"{said}<p class=text>{escape(text)}</p>"
        rows = [_row(json.loads(line)) for line in text.splitlines()[:SHOWN]]
        return said + table(("asked", "answer", "score"), rows)
    return ""


def _row(answer: Mapping[str, Any]) -> tuple[str, str, float]:
    messages: Sequence[Mapping[str, str]] = answer["messages"]
    return messages[-2]["content"], messages[-1]["content"], float(answer["score"])


def _next(path: str, experiment: TrainConfig) -> list[tuple[str, str]]:
    program = own_command()
    if experiment.stage == "reward":
        return [
            (f"{program} rejection EXPERIMENT.py --helpfulness {path}", "best-of-n by its scores"),
            (f"{program} ppo EXPERIMENT.py --helpfulness {path}", "reinforcement learning"),
            (f"{program} eval A B --judge {path} --prompts FILE", "which of two models it prefers"),
        ]
    return [
        (f"{program} chat {path}", "talk to it here"),
        (f"{program} serve {path}", "a page to talk to it, and OpenAI's API"),
        (f"{program} eval {path} OTHER --judge rules --prompts tales:256", "compare two models"),
        (f"{program} convert {path} exported --to hf", "for Hugging Face transformers; or gguf"),
    ]
