"""Reinforcement learning from a result that a program can check: word problems, as in GSM8K.

A small model first imitates solutions of which a third hold a slip, and slips as often. GRPO then
draws eight answers to each problem and rewards those whose last number is right; nobody shows it a
solution.

Command   llama-jax grpo experiments/arithmetic.py  the second half alone, with any option
          python experiments/arithmetic.py          all of it, and the share of right answers
Hardware  two CPU cores
Expected  seven minutes; of 1,024 problems that no training saw, GRPO lifts the right answers from
          0.27 to 0.38 at temperature 1, and from 0.49 to 0.51 of greedy ones
"""

import json
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from llama_jax.config import CheckpointConfig, DataConfig, OptimizerConfig
from llama_jax.config_align import GrpoConfig, SftConfig
from llama_jax.model.presets import STORIES_260K

RUN = Path("runs/arithmetic")
PROBLEMS, SLIPS = 6000, 0.35
MODEL = replace(
    STORIES_260K,
    vocab_size=384,
    d_model=128,
    num_layers=3,
    num_heads=4,
    num_kv_heads=4,
    head_dim=32,
    d_ff=352,
    max_seq_len=128,
    tie_embeddings=False,
)
SFT = SftConfig(
    workdir=str(RUN / "sft"),
    steps=500,
    batch_size=16,
    seq_len=128,
    log_every=50,
    eval_every=250,
    model=MODEL,
    optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=50, eps=1e-8),
    data=DataConfig(dataset=str(RUN / "slips.jsonl"), tokenizer=str(RUN / "tokenizer.model")),
    checkpoint=CheckpointConfig(every=250, keep=1),
)
CONFIG = GrpoConfig(
    workdir=str(RUN / "grpo"),
    init_from=str(RUN / "sft"),
    reward="experiments/arithmetic.py:reward",
    steps=100,
    batch_size=256,
    group=8,
    minibatch=128,
    seq_len=88,
    max_new_tokens=32,
    wave_rows=128,
    beta=0.01,
    eval_every=50,
    heldout_prompts=128,
    model=MODEL,
    optimizer=OptimizerConfig(
        learning_rate=1e-4, warmup_steps=0, schedule="constant", weight_decay=0.0, eps=1e-8
    ),
    data=DataConfig(dataset=str(RUN / "problems.jsonl")),
    checkpoint=CheckpointConfig(every=10, keep=1),
)
NAMES = ("Mia", "Tom", "Ben", "Lily", "Sam", "Anna", "Max", "Zoe")
THINGS = ("apples", "books", "coins", "cards", "shells", "stamps", "pears", "balls")
GAINS = ("{} buys {} more.", "{} finds {} more.", "{} gets {} more.")
LOSSES = ("{} gives away {}.", "{} loses {}.", "{} sells {}.")


def reward(prompts: Sequence[Any], answers: Sequence[Any]) -> list[float]:
    """1 for an answer that ends with the number of its problem's solution, else 0."""
    return [
        float(a.ended and result(a.text) is not None and result(a.text) == result(p.answer))
        for p, a in zip(prompts, answers, strict=True)
    ]


def result(solution: str) -> int | None:
    """The number behind the last ####, as in GSM8K; None where there is none."""
    found = re.search(r"#### *(-?\d+)\s*$", solution)
    return int(found[1]) if found else None


def problem(index: int, slips: float = 0.0) -> dict[str, Any]:
    """A problem of two steps and its solution, each step of which goes wrong with the probability
    that one of both does in a share `slips` of the solutions. What is asked does not depend on it.
    """
    dice, luck = random.Random(index), random.Random(f"slips {index}")
    name, things = dice.choice(NAMES), dice.choice(THINGS)
    have = dice.randint(3, 12)
    said, steps = [f"{name} has {have} {things}."], []
    right = have
    for _ in range(2):
        gain = right < 4 or dice.random() < 0.5
        change = dice.randint(1, 9 if gain else min(9, right - 1))
        said.append(dice.choice(GAINS if gain else LOSSES).format(name, change))
        right += change if gain else -change
        after = have + change if gain else have - change
        if luck.random() < 1 - (1 - slips) ** 0.5:
            after += luck.choice((-2, -1, 1, 2))
        steps.append(f"{have} {'+' if gain else '-'} {change} = {after}.")
        have = after
    asked = f"{' '.join(said)} How many {things} does {name} have?"
    solution = f"{' '.join(steps)} #### {have}"
    return {
        "messages": [
            {"role": "user", "content": asked},
            {"role": "assistant", "content": solution},
        ]
    }


def write_files() -> None:
    """Solutions with slips to imitate, problems with right ones to be checked by, a tokenizer."""
    from llama_jax.data.tokenizer import train_tokenizer

    RUN.mkdir(parents=True, exist_ok=True)
    for name, slips in (("slips", SLIPS), ("problems", 0.0)):
        rows = (json.dumps(problem(i, slips)) + "\n" for i in range(PROBLEMS))
        (RUN / f"{name}.jsonl").write_text("".join(rows))
    path = RUN / "tokenizer.model"
    if not path.exists():
        train_tokenizer(texts(), MODEL.vocab_size).save(path)


def texts() -> Iterator[str]:
    """What the tokenizer is trained on."""
    for i in range(PROBLEMS):
        asked, solution = problem(i)["messages"]
        yield f"[INST] {asked['content']} [/INST] {solution['content']}"


def accuracy(run: str, temperature: float, count: int = 1024) -> float:
    """Share of right answers to problems that no training saw."""
    from llama_jax.align.answering import Answerer

    answerer = Answerer.load(
        run, max_new_tokens=CONFIG.max_new_tokens, temperature=temperature, wave_rows=128,
        prompt_len=CONFIG.seq_len - CONFIG.max_new_tokens,
    )  # fmt: skip
    rows = [problem(i)["messages"] for i in range(PROBLEMS, PROBLEMS + count)]
    answers = answerer.answer([m[:1] for m in rows], [(0, i) for i in range(count)])
    asked = zip(rows, answers, strict=True)
    return sum(a.ended and result(a.text) == result(m[1]["content"]) for m, a in asked) / count


def main() -> None:
    """Fine-tune, learn from results, and tell what it brought; run again, it resumes."""
    from llama_jax.align.grpo import grpo
    from llama_jax.align.sft import sft
    from llama_jax.runtime.console import quiet_start
    from llama_jax.runtime.malloc import keep_freed_memory

    quiet_start()
    keep_freed_memory()
    write_files()
    print(f"{'':<12}{'sampled':>10}{'greedy':>10}")
    for name, train in (("fine-tuned", lambda: sft(SFT)), ("GRPO", lambda: grpo(CONFIG))):
        run = train().workdir
        print(f"{name:<12}{accuracy(run, 1.0):>10.3f}{accuracy(run, 0.0):>10.3f}", flush=True)


if __name__ == "__main__":
    main()
