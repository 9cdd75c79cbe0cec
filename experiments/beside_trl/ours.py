"""Our side of compare_trl.py: the objectives, the optimizer and the step of `llama-jax`."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from beside_trl import case  # pyrefly: ignore[missing-import]

from llama_jax.align.dpo import Preferences
from llama_jax.align.logprobs import answer_logprobs
from llama_jax.align.reward import Pairwise
from llama_jax.align.sft import Answers
from llama_jax.config import DataConfig, MeshConfig, OptimizerConfig, TrainConfig
from llama_jax.convert import peft
from llama_jax.model.llama import init_params
from llama_jax.models import load, on_base
from llama_jax.parallel.arrays import shard_batch
from llama_jax.parallel.mesh import make_mesh
from llama_jax.train.optimizer import make_optimizer
from llama_jax.train.state import TrainState, abstract_state, select, trained_table
from llama_jax.train.step import forward_of, jit_train_step


def steps(folder: Path, stage: str) -> Iterator[float]:
    """The loss of the first step, then seconds of one step after another."""
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
    flat = padded(case.answered(rows, stage))
    if stage == "sft":
        return Answers(case.model_config()), params, flat
    if stage == "lora":
        adapted = case.adapted_config()
        _, factors = peft.read(folder / "adapters", case.model_config())
        own = {"layers": jax.tree.map(jnp.asarray, factors)}
        return Answers(adapted), on_base(params, own, adapted), flat
    batch: dict[str, Any] = {k: a.reshape(case.PAIRS, 2, -1) for k, a in flat.items()}
    batch |= {
        "rating": np.full((case.PAIRS, 1), -1, np.int32),
        "margin": np.array([[p["margin"]] for p in rows["pairs"]], np.float32),
        "safe": np.full((case.PAIRS, 1, 2), -1, np.int8),
    }
    if stage == "reward":
        objective = Pairwise(case.model_config("score"), "none")
        wanted = jax.eval_shape(lambda: init_params(jax.random.key(0), objective.model))
        score = jnp.asarray(np.load(folder / "score.npy"))
        own = {
            "score": score.reshape(wanted["score"].shape),
            "score_bias": jnp.zeros(wanted["score_bias"].shape),
        }
        return objective, {k: v for k, v in params.items() if k in wanted} | own, batch
    preferences = Preferences(case.model_config(), case.BETA)
    forward = forward_of(preferences, load(str(folder / "reference")).params)
    logp = answer_logprobs(forward, jax.tree.map(jnp.asarray, flat), cfg=preferences.model)
    batch["reference"] = np.asarray(logp, np.float32).reshape(case.PAIRS, 1, 2)
    return preferences, params, batch


def padded(rows: list[case.Row]) -> dict[str, np.ndarray]:
    """Arrays [B,T] as objectives read them; T is that of the longest row, as theirs are padded."""
    shape = (len(rows), max(len(prompt) + len(answer) for prompt, answer in rows))
    tokens, segments = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    mask = np.zeros(shape, np.uint8)
    for b, (prompt, answer) in enumerate(rows):
        whole = prompt + answer
        tokens[b, : len(whole)], segments[b, : len(whole)] = whole, 1
        mask[b, len(prompt) : len(whole)] = 1
    positions = np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape).copy()
    return {"tokens": tokens, "segment_ids": segments, "positions": positions, "loss_mask": mask}
