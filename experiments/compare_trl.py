"""SFT, reward modelling and DPO: ours and TRL's (torch, eager, on a CPU), on the same rows in turn.

Command   python experiments/compare_trl.py --torch-python OTHER/bin/python
Hardware  a quiet machine; both use all its cores
Expected  ten minutes on two CPU cores; LOG.md has figures

Both begin with the same weights, and every step takes the same batch: 16 dialogues, or 8 pairs, of
the tales. The losses of the first step are printed beside each other, and the medians of the steps
that follow, A B A B ...; a ratio above 1 means that ours is faster. Dropout is none, AdamW fused,
gradients clipped to 1. In DPO both compute what the reference says once, before the first step.

`--torch-python` names an interpreter that has torch, transformers, datasets and trl; by default the
running one is tried.
"""

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from turns import Worker, serve, take_turns  # pyrefly: ignore[missing-import]

STAGES = ("sft", "reward", "dpo")
BETA, RATE = 0.1, 1e-4
ROWS, PAIRS = 16, 8
VOCAB, CONTEXT = 1024, 256
PAD = 0


def model_config(head: str = "language"):
    """About 6M parameters."""
    from llama_jax.config import ModelConfig

    return ModelConfig(
        vocab_size=VOCAB, d_model=256, num_layers=6, num_heads=8, num_kv_heads=8, head_dim=32,
        d_ff=688, max_seq_len=CONTEXT, norm_eps=1e-5, dtype="float32",
        head="score" if head == "score" else "language",
    )  # fmt: skip


def write_case(folder: Path) -> None:
    """Two models for both sides, a score head, and rows of token ids."""
    import jax
    import numpy as np

    from llama_jax.checkpoint import save_model
    from llama_jax.config_file import model_json
    from llama_jax.convert.api import convert
    from llama_jax.data.chat import encode_answer, encode_prompt
    from llama_jax.data.corpora.tales import instructions, preferences
    from llama_jax.data.tokenizer import Tokenizer, train_tokenizer
    from llama_jax.model.llama import init_params

    texts = [m["content"] for i in range(800) for m in instructions.instruction(i).messages]
    tokenizer: Tokenizer = train_tokenizer(texts, VOCAB)
    for seed, name in enumerate(("policy", "reference")):
        # Wide, so that the losses are not those of a uniform distribution.
        params = jax.tree.map(lambda p: 2 * p, init_params(jax.random.key(seed), model_config()))
        save_model(folder / name, params, model_json(model_config()), tokenizer.model_bytes, {})
        convert(str(folder / name), str(folder / f"{name}.hf"), to="hf")
    rng = np.random.default_rng(0)
    np.save(folder / "score.npy", rng.normal(size=256).astype(np.float32) / 16)

    def ids(messages: Any, answer: str) -> tuple[list[int], list[int]]:
        return [*encode_prompt(tokenizer, messages)], [*encode_answer(tokenizer, answer)]

    dialogues = []
    number = 0
    while len(dialogues) < ROWS:
        *asked, answer = instructions.instruction(number, kind="story").messages
        prompt, told = ids(asked, answer["content"])
        number += 1
        if len(prompt) + len(told) <= CONTEXT:
            labels = [-100] * len(prompt) + told
            dialogues.append({"input_ids": prompt + told, "labels": labels})
    pairs = []
    for number in range(PAIRS):
        pair = preferences.preference(number)
        prompt, chosen = ids(pair.messages, pair.chosen)
        _, rejected = ids(pair.messages, pair.rejected)
        assert pair.rating is not None, "tales rate their pairs"
        pairs.append(
            {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected,
             "margin": pair.rating / 3}
        )  # fmt: skip
    (folder / "rows.json").write_text(json.dumps({"sft": dialogues, "pairs": pairs}))


def padded(rows: list[tuple[list[int], list[int]]], T: int) -> dict[str, Any]:
    """Arrays [B,T] of (prompt, answer) rows, as objectives read them."""
    import numpy as np

    shape = (len(rows), T)
    tokens, segments = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    mask = np.zeros(shape, np.uint8)
    for b, (prompt, answer) in enumerate(rows):
        whole = prompt + answer
        tokens[b, : len(whole)], segments[b, : len(whole)] = whole, 1
        mask[b, len(prompt) : len(whole)] = 1
    positions = np.broadcast_to(np.arange(T, dtype=np.int32), shape).copy()
    return {"tokens": tokens, "segment_ids": segments, "positions": positions, "loss_mask": mask}


def ours(folder: Path, stage: str) -> Iterator[float]:
    """The loss of the first step, then seconds of one step after another."""
    from llama_jax.runtime.malloc import keep_freed_memory

    keep_freed_memory()
    import jax
    import jax.numpy as jnp
    import numpy as np

    from llama_jax.align.dpo import Preferences
    from llama_jax.align.logprobs import answer_logprobs
    from llama_jax.align.reward import Pairwise
    from llama_jax.align.sft import Answers
    from llama_jax.config import DataConfig, MeshConfig, OptimizerConfig, TrainConfig
    from llama_jax.models import load
    from llama_jax.parallel.arrays import shard_batch
    from llama_jax.parallel.mesh import make_mesh
    from llama_jax.train.optimizer import make_optimizer
    from llama_jax.train.state import TrainState, abstract_state, select, trained_table
    from llama_jax.train.step import forward_of, jit_train_step

    rows = json.loads((folder / "rows.json").read_text())
    params = load(str(folder / "policy")).params
    if stage == "sft":
        objective: Any = Answers(model_config())
        split = [r["labels"].count(-100) for r in rows["sft"]]
        answered = [
            (r["input_ids"][:n], r["input_ids"][n:])
            for r, n in zip(rows["sft"], split, strict=True)
        ]
        batch = padded(answered, longest(answered))
    else:
        sides = [
            (p["prompt_ids"], p[side])
            for p in rows["pairs"]
            for side in ("chosen_ids", "rejected_ids")
        ]
        flat = padded(sides, longest(sides))
        batch = {k: a.reshape(PAIRS, 2, -1) for k, a in flat.items()}
        batch |= {
            "rating": np.full(PAIRS, -1, np.int32),
            "margin": np.array([p["margin"] for p in rows["pairs"]], np.float32),
            "safe": np.full((PAIRS, 2), -1, np.int8),
        }
        if stage == "reward":
            objective = Pairwise(model_config("score"), "none")
            score = jnp.asarray(np.load(folder / "score.npy"))
            wanted = jax.eval_shape(lambda: forward_params(objective))
            own = {"score": score.reshape(wanted["score"].shape)}
            own["score_bias"] = jnp.zeros(wanted["score_bias"].shape)
            params = {k: v for k, v in params.items() if k in wanted} | own
        else:
            objective = Preferences(model_config(), BETA)
            reference = load(str(folder / "reference")).params
            forward = forward_of(objective, reference)
            logp = answer_logprobs(forward, jax.tree.map(jnp.asarray, flat), cfg=objective.model)
            batch["reference"] = np.asarray(logp, np.float32).reshape(PAIRS, 2)
    B, T = batch["tokens"].shape[0], batch["tokens"].shape[-1]
    optimizer = OptimizerConfig(
        learning_rate=RATE, warmup_steps=0, schedule="constant", weight_decay=0.0
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


def forward_params(objective: Any) -> Any:
    """Fresh parameters of the objective's model."""
    import jax

    from llama_jax.model.llama import init_params

    return init_params(jax.random.key(0), objective.model)


def longest(rows: list[tuple[list[int], list[int]]]) -> int:
    """Tokens of the longest row, as theirs are padded to."""
    return max(len(prompt) + len(answer) for prompt, answer in rows)


def theirs(folder: Path, stage: str) -> Iterator[float]:
    """The same by TRL: its collators, its losses, its training step and optimizer."""
    import numpy as np
    import torch  # pyrefly: ignore[missing-import]
    from datasets import Dataset  # pyrefly: ignore[missing-import]
    from transformers import (  # pyrefly: ignore[missing-import]
        AutoModelForCausalLM,
        AutoTokenizer,
        LlamaForSequenceClassification,
    )
    from trl import (  # pyrefly: ignore[missing-import]
        DPOConfig,
        DPOTrainer,
        RewardConfig,
        RewardTrainer,
        SFTConfig,
        SFTTrainer,
    )

    rows = json.loads((folder / "rows.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(folder / "policy.hf")
    tokenizer.pad_token_id = PAD
    plain = {
        "output_dir": str(folder / f"trl-{stage}"), "learning_rate": RATE, "max_grad_norm": 1.0,
        "lr_scheduler_type": "constant", "weight_decay": 0.0, "report_to": "none", "use_cpu": True,
        "bf16": False, "gradient_checkpointing": False, "max_length": CONTEXT,
        "dataloader_pin_memory": False, "optim": "adamw_torch_fused",
    }  # fmt: skip

    class AsTheyAre(DPOTrainer):
        """The rows are token ids already."""

        def _prepare_dataset(self, dataset, *args, **kwargs):
            return dataset

    def model(name: str):
        return AutoModelForCausalLM.from_pretrained(folder / f"{name}.hf", dtype=torch.float32)

    if stage == "sft":
        config = SFTConfig(per_device_train_batch_size=ROWS, **plain)
        trainer = SFTTrainer(
            model("policy"), config, train_dataset=Dataset.from_list(rows["sft"]),
            processing_class=tokenizer,
        )  # fmt: skip
    elif stage == "reward":
        whole = [
            {side: p["prompt_ids"] + p[side] for side in ("chosen_ids", "rejected_ids")}
            | {"margin": p["margin"]}
            for p in rows["pairs"]
        ]
        scorer = LlamaForSequenceClassification.from_pretrained(
            folder / "policy.hf", num_labels=1, dtype=torch.float32, pad_token_id=PAD
        )
        with torch.no_grad():
            scorer.score.weight.copy_(torch.from_numpy(np.load(folder / "score.npy"))[None])
        config = RewardConfig(per_device_train_batch_size=PAIRS, disable_dropout=True, **plain)
        trainer = RewardTrainer(
            scorer, config, train_dataset=Dataset.from_list(whole), processing_class=tokenizer
        )
    else:
        config = DPOConfig(
            per_device_train_batch_size=PAIRS, beta=BETA, precompute_ref_log_probs=True, **plain
        )
        pairs = [{k: v for k, v in p.items() if k != "margin"} for p in rows["pairs"]]
        trainer = AsTheyAre(
            model("policy"), model("reference"), config,
            train_dataset=Dataset.from_list(pairs), processing_class=tokenizer,
        )  # fmt: skip
    loader = trainer.get_train_dataloader()
    trainer.create_optimizer()
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1

    def step() -> float:
        (batch,) = loader
        loss = trainer.training_step(trainer.model, batch)
        torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), 1.0)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()
        return float(loss)

    yield step()
    while True:
        begin = time.perf_counter()
        step()
        yield time.perf_counter() - begin


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--torch-python", default=sys.executable, metavar="PYTHON")
    parser.add_argument("--stages", nargs="*", default=STAGES, choices=STAGES)
    parser.add_argument("--steps", type=int, default=9)
    parser.add_argument("--side", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.side:
        side, stage, folder = args.side
        serve({"ours": ours, "theirs": theirs}[side](Path(folder), stage))
        return
    with tempfile.TemporaryDirectory(prefix="compare-trl-") as place:
        write_case(Path(place))
        print("stage       loss, ours      theirs    ms, ours    theirs   ratio")
        for stage in args.stages:
            workers = {
                side: Worker(python, __file__, "--side", side, stage, place)
                for side, python in (("ours", sys.executable), ("theirs", args.torch_python))
            }
            taken = take_turns(workers, warmup=0, turns=args.steps + 2)
            loss = {side: values[0] for side, values in taken.items()}
            median = {side: statistics.median(values[2:]) for side, values in taken.items()}
            same = math.isclose(loss["ours"], loss["theirs"], abs_tol=1e-4)
            print(
                f"{stage:<10}{loss['ours']:>12.5f}{loss['theirs']:>12.5f}"
                f"{1e3 * median['ours']:>12.1f}{1e3 * median['theirs']:>10.1f}"
                f"{median['theirs'] / median['ours']:>8.2f}" + ("" if same else "  losses differ")
            )  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1:])
