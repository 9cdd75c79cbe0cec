"""Experiments of every alignment stage that run in seconds, on a world of yes and no."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from llama_jax.checkpoint import save_model
from llama_jax.config import CheckpointConfig, DataConfig, OptimizerConfig, TrainConfig
from llama_jax.config_align import (
    DistillConfig,
    DpoConfig,
    GattConfig,
    GrpoConfig,
    PpoConfig,
    RejectionConfig,
    RewardConfig,
    SftConfig,
)
from llama_jax.config_file import model_json
from llama_jax.data.tokenizer import Tokenizer, train_tokenizer
from llama_jax.model.llama import init_params
from llama_jax.model.presets import TINY

MODEL = replace(TINY, vocab_size=400, max_seq_len=64)
T = 64
ANIMALS = [
    "cat", "dog", "bear", "bee", "crow", "duck", "deer", "fox", "frog", "hen", "horse", "mole",
]  # fmt: skip
FOODS = ["apples", "bread", "beans", "corn", "dates", "eggs", "fish", "figs", "hay", "honey"]
CONSTANT = {"warmup_steps": 0, "schedule": "constant"}


def questions() -> list[tuple[str, bool, bool]]:
    """Every question, whether the answer is yes, and whether it is an unkind one."""
    return [
        (f"{'Can a' if kind else 'Dare the'} {a} eat {f}?", a[0] == f[0], not kind)
        for a in ANIMALS
        for f in FOODS
        for kind in (True, False)
    ]


def answers(yes: bool, unkind: bool) -> tuple[str, str]:
    """A good answer and a bad one."""
    good, bad = ("Yes.", "No.") if yes else ("No.", "Yes.")
    return ("Be kind.", "Do it.") if unkind else (good, bad)


def asked(question: str) -> list[dict[str, str]]:
    """A conversation that waits for an answer."""
    return [{"role": "user", "content": question}]


def likeness(prompts: Sequence[Any], answers: Sequence[Any]) -> list[float]:
    """A reward: the share of the letters of its record's answer that stand in an answer."""
    return [
        sum(letter in a.text for letter in p.answer) / len(p.answer)
        for p, a in zip(prompts, answers, strict=True)
    ]


class TinyChat:
    """The experiments of one folder, and the files that they read."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.tokenizer_file = folder / "tokenizer.model"

    def prepare(self) -> "TinyChat":
        """Write the files."""
        self._write_data()
        # With the template's own words, so that conversations are short.
        texts = [f"[INST] {q} [/INST] {' '.join(answers(*r))}" for q, *r in questions()]
        train_tokenizer(texts, MODEL.vocab_size).save(self.tokenizer_file)
        return self

    @property
    def tokenizer(self) -> Tokenizer:
        """That of all stages."""
        return Tokenizer.load(self.tokenizer_file)

    def _write_data(self) -> None:
        dialogues, pairs, unsafe, prompts = [], [], [], []
        for number, (question, yes, unkind) in enumerate(questions()):
            good, bad = answers(yes, unkind)
            final = {"role": "assistant", "content": good}
            dialogues.append({"messages": [*asked(question), final]})
            pair = {"messages": asked(question), "chosen": good, "rejected": bad}
            pairs.append(pair | {"rating": number % 4})
            if unkind:
                unsafe.append(pair | {"rating": 3, "safe_chosen": True, "safe_rejected": False})
            prompts.append({"messages": asked(question), "safety": unkind, "answer": good})
        ghosts = [
            {"instruction": "Be kind.", "turns": [q for q, *_ in questions()[n : n + 3]]}
            for n in range(40)
        ]
        self.write("stories.jsonl", ({"text": f"{q} {answers(*r)[0]}"} for q, *r in questions()))
        self.write("dialogues.jsonl", dialogues)
        self.write("pairs.jsonl", pairs)
        self.write("unsafe_pairs.jsonl", unsafe)
        self.write("prompts.jsonl", prompts)
        self.write("ghosts.jsonl", ghosts)

    def write(self, name: str, rows: Iterable[Mapping[str, Any]]) -> str:
        """A file of JSON lines; its path."""
        path = self.folder / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    def common(self, name: str, dataset: str, **changes: Any) -> dict[str, Any]:
        """What all experiments share; changes go over it."""
        data = DataConfig(
            dataset=str(self.folder / dataset),
            tokenizer=str(self.tokenizer_file),
            cache_dir=str(self.folder / "cache"),
            workers=1,
        )
        values = {
            "workdir": str(self.folder / name),
            "steps": 2,
            "batch_size": 8,
            "seq_len": T,
            "log_every": 1,
            "eval_every": 0,
            "model": MODEL,
            "optimizer": OptimizerConfig(learning_rate=1e-3, **CONSTANT),
            "data": data,
            "checkpoint": CheckpointConfig(every=1),
            "compilation_cache": os.environ["JAX_COMPILATION_CACHE_DIR"],  # all tests share it
        }
        return values | changes

    def base(self, **changes: Any) -> TrainConfig:
        """Pretraining."""
        return TrainConfig(**self.common("base", "stories.jsonl", **changes))

    def sft(self, **changes: Any) -> SftConfig:
        """Fine-tuning of the base: most answers end, and are not all the same yet."""
        changes = {
            "init_from": str(self.folder / "base"),
            "steps": 6,
            "optimizer": OptimizerConfig(learning_rate=1e-2, **CONSTANT),
            "checkpoint": CheckpointConfig(every=2),
            **changes,
        }
        return SftConfig(**self.common("sft", "dialogues.jsonl", **changes))

    def reward(self, kind: str = "helpfulness", **changes: Any) -> RewardConfig:
        """A reward model on the fine-tuned model: helpfulness, safety, or one held out."""
        changes = {
            "init_from": str(self.folder / "sft"),
            "model": replace(MODEL, head="score"),
            "safety_weight": 1.0 if kind == "safety" else 0.0,
            "half": "second" if kind == "heldout" else "all",
            **changes,
        }
        dataset = "unsafe_pairs.jsonl" if kind == "safety" else "pairs.jsonl"
        return RewardConfig(**self.common(kind, dataset, **changes))

    def dpo(self, **changes: Any) -> DpoConfig:
        """Direct preference optimisation of the fine-tuned model."""
        changes = {"init_from": str(self.folder / "sft"), **changes}
        return DpoConfig(**self.common("dpo", "pairs.jsonl", **changes))

    def untrained(self, name: str, seed: int = 0, **changes: Any) -> str:
        """A model folder of random weights, for what does not hang on them; its path."""
        config = replace(MODEL, **changes)
        params = init_params(jax.random.key(seed), config)
        path = self.folder / name
        save_model(path, params, model_json(config), self.tokenizer_file.read_bytes(), {})
        return str(path)

    def rollouts(self, **changes: Any) -> dict[str, Any]:
        """What rejection sampling and PPO share."""
        return {
            "init_from": str(self.folder / "sft"),
            "helpfulness": str(self.folder / "helpfulness"),
            "safety": str(self.folder / "safety"),
            "max_new_tokens": 12,
            "wave_rows": 8,
            **changes,
        }

    def rejection(self, **changes: Any) -> RejectionConfig:
        """Two rounds."""
        changes = self.rollouts(rounds=2, samples=3, prompts=6, steps=1) | changes
        return RejectionConfig(**self.common("rejection", "prompts.jsonl", **changes))

    def ppo(self, **changes: Any) -> PpoConfig:
        """Three iterations of two minibatches."""
        own = {
            "steps": 3,
            "batch_size": 16,
            "minibatch": 8,
            "value_optimizer": OptimizerConfig(learning_rate=1e-3, **CONSTANT),
            "heldout": str(self.folder / "heldout"),
            "heldout_prompts": 8,
            "patience": 20,
            "max_truncated": 0.0,
            "eval_every": 1,
        }
        changes = self.rollouts(**own) | changes
        return PpoConfig(**self.common("ppo", "prompts.jsonl", **changes))

    def grpo(self, **changes: Any) -> GrpoConfig:
        """Three iterations of two minibatches; four answers to a prompt, scored by `likeness`."""
        own = {
            "init_from": str(self.folder / "sft"),
            "reward": "tests.align.tiny_chat:likeness",
            "max_new_tokens": 12,
            "wave_rows": 8,
            "steps": 3,
            "batch_size": 16,
            "minibatch": 8,
            "group": 4,
            "heldout_prompts": 8,
            "patience": 20,
            "max_truncated": 0.0,
            "eval_every": 1,
        }
        return GrpoConfig(**self.common("grpo", "prompts.jsonl", **(own | changes)))

    def answering(self, **changes: Any) -> dict[str, Any]:
        """What the stages that train on their own answers share."""
        return {
            "init_from": str(self.folder / "sft"),
            "max_new_tokens": 12,
            "wave_rows": 8,
            **changes,
        }

    def gatt(self, **changes: Any) -> GattConfig:
        """Conversations of up to three turns, whose instruction nobody can check."""
        changes = self.answering(dialogues=40, turns=3) | changes
        return GattConfig(**self.common("gatt", "ghosts.jsonl", **changes))

    def distill(self, **changes: Any) -> DistillConfig:
        """A preprompt of few words."""
        own = {"safety": str(self.folder / "safety"), "preprompts": ("Be kind.",)}
        changes = self.answering(**own) | changes
        return DistillConfig(**self.common("distill", "prompts.jsonl", **changes))
