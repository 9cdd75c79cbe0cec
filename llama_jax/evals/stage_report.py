"""The report of an alignment run: how it learned, its scores, and what its model says.

All of it comes from what the run wrote; the model is not loaded.
"""

from collections.abc import Iterator, Mapping
from html import escape
from itertools import islice
from typing import Any

from etils import epath

from llama_jax.config import InputError, TrainConfig
from llama_jax.data.formats import rows
from llama_jax.evals.figures import Logged, best_of_n, learned, policies
from llama_jax.evals.folder_table import folder_table
from llama_jax.evals.page import commands, table
from llama_jax.model.weights import parameter_count
from llama_jax.models import finished_rounds
from llama_jax.runtime.console import own_command
from llama_jax.runtime.files import as_path, read_bytes, read_json

SHOWN = 12
"""Number of answers on the page."""
_UNITS = {"ppo": "iterations", "grpo": "iterations", "rejection": "rounds"}


def stage_parts(
    path: str, run: epath.Path, experiment: TrainConfig, metrics: Logged
) -> Iterator[str]:
    """The parts of the page of a run of any stage but pretraining.

    Raises InputError, with file and row, for answers or rounds that no run writes.
    """
    stage, rounds = experiment.stage, finished_rounds(run)
    yield _facts(experiment, len(rounds) or max((m["step"] for m in metrics), default=0))
    # A reward model's own loss has more terms in training than the ranking that is evaluated.
    loss = "train/ranking_loss" if stage == "reward" else "train/loss"
    curves = (
        learned(metrics, loss, "eval/loss", "loss", "The loss of training and of held-out data."),
        learned(metrics, "train/accuracy", "eval/accuracy", "accuracy", "Accuracy."),
        policies({stage: metrics}) if stage in ("ppo", "grpo") else "",
        _rounds(rounds) if rounds else "",
    )
    if any(curves):
        yield "<h2>How it learned</h2>"
        yield from curves
    yield _last(metrics)
    yield _says(run, rounds)
    yield "<h2>Where everything is</h2>"
    yield folder_table(run, len(rounds))
    if rounds or (run / "checkpoints").exists():
        yield "<h2>What to type next</h2>"
        yield commands(_next(path, experiment))


def _facts(experiment: TrainConfig, done: int) -> str:
    start = experiment.init_from
    begins = f" that starts from <code>{escape(start)}</code>" if start else ""
    steps = getattr(experiment, "rounds", experiment.steps)
    return (
        f"<p>A run of <code>llama-jax {experiment.stage}</code>{begins}, on "
        f"{escape(experiment.data.dataset)}: {done:,} of {steps:,} "
        f"{_UNITS.get(experiment.stage, 'steps')}. The model has "
        f"{parameter_count(experiment.model):,} parameters.</p>"
    )


def _rounds(rounds: list[epath.Path]) -> str:
    """Figure 7 and the numbers of each round of rejection sampling."""
    head = ("round", "temperature", "prompts", "mean score", "winners' score", "truncated")
    keys = ("temperature", "prompts", "score", "winners_score", "truncated")
    curves, numbers = {}, []
    for folder in rounds:
        name, found = folder.name.removeprefix("round_"), read_json(folder / "round.json")
        curves[f"round {name}"] = read_json(folder / "best_of_n.json")
        try:
            numbers.append((name, *(found[key] for key in keys)))
        except KeyError as error:
            raise InputError(f"{folder / 'round.json'} has no {error.args[0]}") from error
    return best_of_n(curves) + table(head, numbers)


def _last(metrics: Logged) -> str:
    """The numbers of the last evaluation."""
    for found in reversed(metrics):
        values = [
            (key.removeprefix("eval/").replace("_", " "), float(value))
            for key, value in sorted(found.items())
            if key.startswith("eval/") and key != "eval/step"
        ]
        if values:
            begin = f"<h2>The last evaluation, after {found['step']:,} steps</h2>"
            return begin + table(("number", "value"), values)
    return ""


def _says(run: epath.Path, rounds: list[epath.Path]) -> str:
    """What the model said at the last evaluation, in the last iteration or the last round."""
    said = "<h2>What it says</h2>"
    for text in sorted((run / "samples").glob("*.txt"))[-1:]:
        words = read_bytes(text).decode(errors="replace")
        return f"{said}<p class=text>{escape(words)}</p>"
    found = [sorted((run / name).glob("*.jsonl")) for name in ("samples", "completions")]
    found.append([folder / "winners.jsonl" for folder in rounds])
    file = next((files[-1] for files in found if files), None)
    if file is None:
        return ""
    answers = [
        _answer(row, f"{file}, row {number}")
        for number, row in islice(rows.read(as_path(file)), SHOWN)
    ]
    scored = all(len(answer) == 3 for answer in answers)
    head = ("asked", "answer", "score") if scored else ("asked", "answer")
    return said + table(head, [answer[: len(head)] for answer in answers])


def _answer(row: Mapping[str, Any], where: str) -> tuple[Any, ...]:
    """Question and answer, and the score where there is one."""
    try:
        *_, asked, said = row["messages"]
        shown = asked["content"], said["content"]
        return (*shown, float(row["score"])) if "score" in row else shown
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{where} is no answer that a run writes: {error}") from error


def _next(path: str, experiment: TrainConfig) -> list[tuple[str, str]]:
    program = own_command()
    if experiment.stage == "reward":
        judges = "safety" if getattr(experiment, "safety_weight", 0) else "helpfulness"
        return [
            (f"{program} rejection EXPERIMENT.py --{judges} {path}", "best-of-n by its scores"),
            (f"{program} ppo EXPERIMENT.py --{judges} {path}", "reinforcement learning"),
            (f"{program} eval A B --judge {path} --prompts FILE", "which of two models it prefers"),
        ]
    told = experiment.data.dataset.startswith("tales")
    judge = "rules --prompts tales:256" if told else "REWARD_MODEL --prompts FILE"
    return [
        (f"{program} chat {path}", "talk to it here"),
        (f"{program} serve {path}", "a page to talk to it, and OpenAI's API"),
        (f"{program} eval {path} OTHER --judge {judge}", "compare two models"),
        (f"{program} convert {path} exported --to hf", "for Hugging Face transformers; or gguf"),
    ]
