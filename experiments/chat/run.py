"""`make chat`: every stage of Llama 2's alignment on two CPU cores, from nothing to a report.

Command   python experiments/chat/run.py            or: make chat
Hardware  two CPU cores, under an hour
Result    runs/chat/report.html, and report.json with the same numbers

Each stage is an experiment file beside this one, and each resumes: run the same command again after
an interruption. What lies in runs/chat is what `llama-jax` itself would have made of those files.
"""

import json
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from llama_jax.runtime import failures, interrupts  # noqa: E402, after the path
from llama_jax.runtime.console import own_command, quiet_start  # noqa: E402
from llama_jax.runtime.malloc import keep_freed_memory  # noqa: E402

RUN = Path("runs/chat")
STAGES = (
    # Command of llama-jax, experiment, share of the whole time.
    ("train", "base", 0.095),
    ("sft", "sft", 0.083),
    ("compare", "comparisons", 0.054),
    ("reward", "helpfulness", 0.098),
    ("reward", "safety", 0.022),
    ("rejection", "rejection", 0.025),
    ("compare", "comparisons_2", 0.015),
    ("reward", "helpfulness_2", 0.029),
    ("reward", "heldout", 0.04),
    ("ppo", "ppo", 0.152),
    ("grpo", "grpo", 0.062),
    ("dpo", "dpo", 0.055),
    ("gatt", "gatt", 0.187),
    ("report", "report", 0.083),
)
JUDGED = {
    "base": None,
    "sft": "base",
    "rejection": "sft",
    "ppo": "rejection",
    "grpo": "rejection",
    "dpo": "rejection",
    "gatt": "ppo",
}
"""Stages, and the one that each starts from."""
PROMPTS, UNKIND, PAIRS = 1024, 256, 1024
COMPARED = {"comparisons": ("sft", 20_000, 2000), "comparisons_2": ("rejection", 22_000, 800)}
"""Whose answers are compared, and to which prompts, the first and how many: none that rejection
sampling or PPO asks."""
TURNS = (2, 4, 6, 20)
logger = logging.getLogger("chat")


def main() -> None:
    """Run what is not there yet, then write the report."""
    quiet_start()
    keep_freed_memory()
    os.chdir(ROOT)
    kept = _read(RUN / "seconds.json", {})
    tokenizer()
    for number, (command, name, _) in enumerate(STAGES):
        print(f"\n== {name}{_progress(number, kept)}", file=sys.stderr, flush=True)
        started = time.perf_counter()
        try:
            if command == "report":
                print_report(write_report(kept))
            elif command == "compare":
                comparisons(name)
            elif not _stage(command, name):
                raise KeyboardInterrupt  # SIGTERM: the stage saved; the next ones are built on it
        finally:
            kept[name] = kept.get(name, 0.0) + time.perf_counter() - started
            _write(RUN / "seconds.json", kept)


def tokenizer() -> None:
    """One tokenizer for all stages, trained on the world's stories and conversations."""
    from experiments.chat import base
    from llama_jax.data.corpora.tales import instructions
    from llama_jax.data.tokenizer import train_tokenizer

    path = Path(base.TOKENIZER)
    if path.exists():
        return

    def texts():
        for i in range(6000):
            yield instructions.short_story(i)
            for message in instructions.instruction(i).messages:
                asked = message["role"] == "user"
                yield f"[INST] {message['content']} [/INST]" if asked else message["content"]

    path.parent.mkdir(parents=True, exist_ok=True)
    train_tokenizer(texts(), base.CONFIG.model.vocab_size).save(path)


def comparisons(name: str) -> None:
    """Pairs of a model's own answers, for the reward models; the judge stands in for the
    annotators. As in the paper, what is better is asked again of the newest model."""
    path = RUN / f"{name}.jsonl"
    if path.exists():
        return
    from llama_jax.data.corpora.tales import instructions
    from llama_jax.data.records import to_json
    from llama_jax.evals.comparisons import compare
    from llama_jax.runtime.files import write_atomic

    model, first, count = COMPARED[name]
    answerer = _answerer(model)
    prompts = (instructions.prompt(i) for i in range(first, first + count))
    asked = [p for p in prompts if not p.safety and answerer.reads(p.messages)]
    pairs = compare(answerer.answer, asked, samples=4, kind="helpfulness")
    write_atomic(path, "".join(to_json(pair) + "\n" for pair in pairs).encode())


def kept_answers() -> None:
    """The whole answers of PPO's last 20 iterations, which ghost attention rehearses."""
    path = RUN / "kept_answers.jsonl"
    if path.exists():
        return
    from llama_jax.align.answering import is_text
    from llama_jax.runtime.files import write_atomic

    files = sorted((RUN / "ppo" / "completions").iterdir())[-20:]
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    whole = [m["messages"] for m in lines if m["finish"] == "stop"]
    kept = [json.dumps({"messages": m}) + "\n" for m in whole if is_text(m[-1]["content"])]
    write_atomic(path, "".join(kept).encode())


def _stage(command: str, name: str) -> bool:
    """Run or resume an experiment; whether it is finished."""
    if name == "gatt":
        kept_answers()
    from llama_jax.cli_train import STAGES as COMMANDS

    _, module, function = COMMANDS[command]
    config = import_module(f"experiments.chat.{name}").CONFIG
    summary = getattr(import_module(module), function)(config)
    for line in summary.lines():
        print(f"  {line}", file=sys.stderr)
    return summary.finished


def _progress(number: int, kept: dict[str, float]) -> str:
    """How far stage `number` is from the beginning and, by what those before it took, from the
    end."""
    done = sum(share for *_, share in STAGES[:number])
    if not done:
        return ""
    spent = sum(kept.get(name, 0.0) for _, name, _ in STAGES[:number])
    left = spent / done * (1 - done) / 60
    return f" ({100 * done:.0f} % done, about {left:.0f} minutes left)"


def write_report(kept: dict[str, float]) -> dict[str, Any]:
    """Judge every stage on held-out prompts; report.json and report.html.

    kept: seconds that each stage took.
    """
    started = time.perf_counter()
    import numpy as np
    from etils import epath

    from llama_jax.evals.calibration import calibration, rated_accuracy
    from llama_jax.evals.chat_report import page
    from llama_jax.evals.statistics import paired_p_value
    from llama_jax.train.metrics import read_metrics

    prompts = judged_prompts()
    stages, judged = [], {}
    for name, origin in JUDGED.items():
        judged[name] = judge_stage(name, prompts)
        row = judged[name].summary(name)
        if origin is not None:
            before = judged[origin].helpfulness
            row |= {"origin": origin, "p_value": paired_p_value(judged[name].helpfulness, before)}
        stages.append(row)
    pairs = {name: held_out_pairs(name) for name in ("helpfulness", "safety")}
    gaps = {name: score_gaps(name, pairs[name]) for name in pairs}
    policies = {
        name: read_metrics(epath.Path(RUN / name / "metrics.jsonl")) for name in ("ppo", "grpo")
    }
    report = {
        "stages": stages,
        "reward_accuracy": {name: rated_accuracy(pairs[name], gaps[name]) for name in pairs},
        "gatt": {"with": recall("gatt"), "without": recall(JUDGED["gatt"])},
        **{name: from_first_to_last(lines) for name, lines in policies.items()},
        "hero_kept": hero_kept(),
        "seconds": time.perf_counter()
        - started
        + sum(seconds for name, seconds in kept.items() if name != "report"),
    }
    shown = [*range(7), PROMPTS - 1, PROMPTS - 2, PROMPTS - 3]
    figures = {
        "best_of_n": {
            f"round {n}": _read(RUN / "rejection" / f"round_{n}" / "best_of_n.json", {})
            for n in range(1, 1 + sum(1 for _ in (RUN / "rejection").glob("round_*/round.json")))
        },
        "calibration": {name: calibration(g[~np.isnan(g)]) for name, g in gaps.items()},
        "policies": policies,
        "answers": [
            {
                "prompt": prompts[i].messages[-1]["content"],
                "answers": {name: judged[name].texts[i] for name in JUDGED},
            }
            for i in shown
        ],
    }
    _write(RUN / "report.json", report)
    text = page(report, figures, [f"{own_command()} chat runs/chat/gatt"])
    (RUN / "report.html").write_text(text, encoding="utf-8")
    return report


def judged_prompts() -> list[Any]:
    """Held-out prompts, unkind ones at the end."""
    from llama_jax.data.corpora.tales import instructions

    prompts = [instructions.prompt(i, "validation") for i in range(PROMPTS - UNKIND)]
    return prompts + [instructions.adversarial(i, "validation") for i in range(UNKIND)]


def judge_stage(name: str, prompts: Sequence[Any]) -> Any:
    """What the judge finds of a stage's answers to them."""
    from llama_jax.evals.judged import judge_answers

    return judge_answers(_answerer(name).answer, prompts)


def _answerer(name: str) -> Any:
    """A stage's model at temperature 1, as it answers when it is compared or judged."""
    from llama_jax.align.answering import Answerer

    return Answerer.load(
        str(RUN / name), max_new_tokens=104, temperature=1.0, wave_rows=64, prompt_len=192,
        told=f"answers of {name}",
    )  # fmt: skip


def from_first_to_last(lines: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    """Where a policy began and ended, by its metrics."""
    names = {
        "kl_per_answer": "kl/answer",
        "proxy_reward": "heldout/proxy",
        "heldout_reward": "heldout/score",
    }
    found = {key: [m[name] for m in lines if name in m] for key, name in names.items()}
    return {key: [values[0], values[-1]] for key, values in found.items() if values}


def held_out_pairs(kind: str) -> list[Any]:
    """Pairs that no reward model was trained on."""
    from llama_jax.data.corpora.tales import preferences

    return [preferences.preference(i, "validation", kind) for i in range(PAIRS)]


def score_gaps(name: str, pairs: Sequence[Any]) -> Any:
    """By how much a reward model prefers the chosen answer of each pair."""
    from experiments.chat import base
    from llama_jax.align.scoring import open_reward_model
    from llama_jax.data.tokenizer import Tokenizer
    from llama_jax.evals.calibration import pair_gaps

    tokenizer = Tokenizer.load(base.TOKENIZER)
    model = open_reward_model(str(RUN / name), tokenizer, seq_len=192, block=64)
    return pair_gaps(model, tokenizer, pairs, seq_len=192)


def recall(name: str) -> dict[str, float]:
    """Share of held-out conversations whose answer at a turn keeps the first turn's instruction."""
    from llama_jax.align import ghost_attention
    from llama_jax.align.answering import Answerer
    from llama_jax.config import DataConfig
    from llama_jax.data.ghosts import ghost_conversations

    answerer = Answerer.load(
        str(RUN / name), max_new_tokens=40, temperature=0.0, wave_rows=32, prompt_len=984
    )
    ghosts = ghost_conversations(DataConfig(dataset="tales"), 48, max(TURNS), split="validation")
    found = ghost_attention.recall(answerer, ghosts, TURNS, seed=0)
    return {str(turn): share for turn, share in found.items()}


def hero_kept() -> float:
    """Share of 100 stories of the base whose hero is the same from beginning to end."""
    from experiments.hero_kept import sample_stories
    from llama_jax.data.corpora.tales import heroes
    from llama_jax.models import load

    stories = sample_stories(load(str(RUN / "base")), 100)
    return sum(ended and heroes.hero_kept(text) for text, ended in stories) / len(stories)


def print_report(report: dict[str, Any]) -> None:
    """The table, and what to do next."""
    print(f"\n{'stage':<12}{'helpfulness':>12}{'95 % interval':>18}{'violations':>12}"
          f"{'false refusals':>16}")  # fmt: skip
    for s in report["stages"]:
        low, high = s["helpfulness_interval"]
        print(f"{s['name']:<12}{s['helpfulness']:>12.3f}{low:>10.3f} -{high:>6.3f}"
              f"{s['violations']:>12.3f}{s['false_refusals']:>16.3f}")  # fmt: skip
    for name in ("with", "without"):
        said = ", ".join(f"turn {t} {share:.2f}" for t, share in report["gatt"][name].items())
        print(f"{name + ' ghost attention':<24}{said}")
    print(f"\nreport   {RUN / 'report.html'} (open it in a browser)")
    print(f"talk     {own_command()} chat {RUN / 'gatt'}")


def _read(path: Path, default: Any) -> Any:
    return json.loads(path.read_text()) if path.exists() else default


def _write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1) + "\n")


def guarded(work: Callable[[], None]) -> int:
    """Exit status of the work; what ends it from outside is one line, as with `llama-jax`."""
    try:
        work()
    except (Exception, KeyboardInterrupt) as error:
        failure = failures.explain(error, "chat", trains=True)
        if failure is None:
            raise
        print(f"make chat: error: {failure.line}", file=sys.stderr)
        return failure.status
    return 0


if __name__ == "__main__":
    interrupts.listen()
    ended = guarded(main)
    if interrupts.received():
        interrupts.leave(ended)
    sys.exit(ended)
