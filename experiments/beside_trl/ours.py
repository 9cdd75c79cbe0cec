"""Our side of compare_trl.py: the objectives, the optimizer and the step of `llama-jax`."""

import json
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from beside_trl import case  # pyrefly: ignore[missing-import]

from llama_jax.align.dpo import Preferences
from llama_jax.align.grpo import Grpo
from llama_jax.align.iterations import iteration
from llama_jax.align.logprobs import answer_logprobs
from llama_jax.align.opening import opened_run
from llama_jax.align.pairs import answer_rows, by_pair
from llama_jax.align.progress import Progress
from llama_jax.align.reward import Pairwise
from llama_jax.align.rollouts import Rollouts
from llama_jax.align.sft import Answers
from llama_jax.config import DataConfig, MeshConfig, OptimizerConfig, TrainConfig
from llama_jax.config_align import GrpoConfig
from llama_jax.convert import peft
from llama_jax.data.conversations import prepare_prompts
from llama_jax.data.packing import best_fit, row_of
from llama_jax.model.llama import init_params
from llama_jax.models import load, on_base
from llama_jax.parallel.arrays import shard_batch
from llama_jax.parallel.mesh import make_mesh
from llama_jax.train.metrics import Clock
from llama_jax.train.optimizer import make_optimizer
from llama_jax.train.state import TrainState, abstract_state, select, trained_table
from llama_jax.train.step import forward_of, jit_train_step

PER_ROW = 4
"""Pairs that may share two rows."""


def steps(folder: Path, stage: str) -> Iterator[float]:
    """The loss of the first step (0 in GRPO), then seconds of one step after another."""
    if stage == "grpo":
        yield from group_steps(folder)
        return
    rows = json.loads((folder / "rows.json").read_text())
    objective, params, batch = prepared(folder, stage, rows)
    B, T = batch["tokens"].shape[0], batch["tokens"].shape[-1]
    optimizer = OptimizerConfig(
        learning_rate=case.RATE, warmup_steps=0, schedule="constant", weight_decay=0.0
    )
    config = TrainConfig(
        workdir="unused", steps=1, batch_size=B, seq_len=T, model=objective.model,
        optimizer=optimizer, data=DataConfig(dataset="unused"),
    )  # fmt: skip
    mesh = make_mesh(MeshConfig())
    with jax.set_mesh(mesh):
        tx = make_optimizer(optimizer, trained_table(objective), 1)
        state = TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=tx.init(select(params, objective)),
            skipped=jnp.zeros((), jnp.int32),
        )
        step = jit_train_step(config, objective, tx, abstract_state(objective, tx, mesh))
        on_device = shard_batch(batch, mesh)
        state, metrics = step(state, on_device)
        yield float(metrics.loss)
        while True:
            begin = time.perf_counter()
            state, metrics = step(state, on_device)
            jax.block_until_ready(state)
            yield time.perf_counter() - begin


def prepared(
    folder: Path, stage: str, rows: dict[str, Any]
) -> tuple[Any, dict[str, Any], dict[str, np.ndarray]]:
    """The objective of a stage, the parameters that it begins with, and the batch."""
    params = load(str(folder / "policy")).params
    if stage in ("sft", "lora"):
        texts = [marked(row) for row in case.dialogues_of(rows)]
        bins = best_fit([len(ids) for ids, _ in texts], case.CONTEXT)
        batch = stacked([row_of([texts[i] for i in b], case.CONTEXT) for b in bins])
        if stage == "sft":
            return Answers(case.model_config()), params, batch
        adapted = case.adapted_config()
        _, factors = peft.read(folder / "adapters", case.model_config())
        own = {"layers": jax.tree.map(jnp.asarray, factors)}
        return Answers(adapted), on_base(params, own, adapted), batch
    batch = packed_pairs(case.pairs_of(rows), [p["margin"] for p in rows["pairs"]])
    if stage == "reward":
        objective = Pairwise(case.model_config("score"), "none", per_row=PER_ROW)
        wanted = jax.eval_shape(lambda: init_params(jax.random.key(0), objective.model))
        score = jnp.asarray(np.load(folder / "score.npy"))
        own = {
            "score": score.reshape(wanted["score"].shape),
            "score_bias": jnp.zeros(wanted["score_bias"].shape),
        }
        return objective, {k: v for k, v in params.items() if k in wanted} | own, batch
    preferences = Preferences(case.model_config(), case.BETA, per_row=PER_ROW)
    forward = forward_of(preferences, load(str(folder / "reference")).params)
    answers = jax.tree.map(jnp.asarray, answer_rows(batch))
    logp = answer_logprobs(forward, answers, cfg=preferences.model, per_row=PER_ROW)
    batch["reference"] = by_pair(np.asarray(logp)).reshape(-1, PER_ROW, 2)
    return preferences, params, batch


def marked(row: case.Row) -> tuple[np.ndarray, np.ndarray]:
    """Ids of a prompt with its answer, and a mask that marks the answer."""
    prompt, answer = row
    marks = [0] * len(prompt) + [1] * len(answer)
    return np.array(prompt + answer, np.int32), np.array(marks, np.uint8)


def stacked(records: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Records as the arrays of a batch."""
    return {name: np.stack([r[name] for r in records]) for name in records[0]}


def packed_pairs(pairs: list[tuple[case.Row, case.Row]], margins: list[float]) -> dict[str, Any]:
    """Pairs as the commands pack them: several share a row for their chosen and one for their
    rejected answers."""
    lengths = [max(len(prompt) + len(answer) for prompt, answer in pair) for pair in pairs]
    bins = best_fit(lengths, case.CONTEXT, most=PER_ROW)
    sides = [
        stacked([row_of([marked(pairs[i][side]) for i in b], case.CONTEXT) for b in bins])
        for side in (0, 1)
    ]
    margin = np.full((len(bins), PER_ROW), np.nan, np.float32)
    for row, numbers in zip(margin, bins, strict=True):
        row[: len(numbers)] = [margins[i] for i in numbers]
    return {name: np.stack([side[name] for side in sides], 1) for name in sides[0]} | {
        "rating": np.full(margin.shape, -1, np.int32),
        "margin": margin,
        "safe": np.full((*margin.shape, 2), -1, np.int8),
    }


def group_steps(folder: Path) -> Iterator[float]:
    """The same of GRPO: prompts, answers, rewards, and an update."""
    optimizer = OptimizerConfig(
        learning_rate=case.RATE, warmup_steps=0, schedule="constant", weight_decay=0.0
    )
    rows = case.ASKED * case.GROUP
    config = GrpoConfig(
        workdir=str(folder / "grpo"), steps=1000, batch_size=rows, minibatch=rows, wave_rows=rows,
        seq_len=case.CONTEXT, max_new_tokens=case.ANSWER, group=case.GROUP, beta=0.0,
        init_from=str(folder / "policy"), model=case.model_config(), optimizer=optimizer,
        data=DataConfig(dataset=str(folder / "prompts.jsonl")), reward=f"{__file__}:length",
    )  # fmt: skip
    with opened_run(config, rows) as (config, workdir, source, mesh):
        tokenizer, limit = source.tokenizer, case.CONTEXT - case.ANSWER
        assert tokenizer is not None, "the case has one"
        splits = prepare_prompts(config.data, tokenizer, max_tokens=limit)
        prompts = [prompt for split in splits.values() for prompt in split]
        learner = Grpo(config, tokenizer, source, mesh)
        learner.begin()
        rollouts = Rollouts(config, workdir, tokenizer, prompt_len=limit)
        with Progress(config, workdir, Clock(), 0, "iteration") as progress:
            iteration(0, prompts, learner, rollouts, progress)
            yield 0.0
            for number in count(1):
                begin = time.perf_counter()
                iteration(number, prompts, learner, rollouts, progress)
                yield time.perf_counter() - begin


def length(prompts: Any, answers: Any) -> list[float]:
    """A reward: letters of each answer."""
    return [float(len(answer.text)) for answer in answers]
