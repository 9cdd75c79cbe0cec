"""Their side of compare_trl.py: TRL's collators, losses and training step, adapters of peft."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch  # pyrefly: ignore[missing-import]
from beside_trl import case  # pyrefly: ignore[missing-import]
from datasets import Dataset  # pyrefly: ignore[missing-import]
from transformers import (  # pyrefly: ignore[missing-import]
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaForSequenceClassification,
)
from trl import (  # pyrefly: ignore[missing-import]
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    RewardConfig,
    RewardTrainer,
    SFTConfig,
    SFTTrainer,
)


class AsTheyAre(DPOTrainer):
    """The rows are token ids already."""

    def _prepare_dataset(self, dataset, *args, **kwargs):
        return dataset


class AskedInIds(GRPOTrainer):
    """A prompt is its token ids, as JSON."""

    def _tokenize_prompts(self, prompts):
        return [json.loads(prompt) for prompt in prompts], None, {}


def steps(folder: Path, stage: str) -> Iterator[float]:
    """The loss of the first step (0 in GRPO), then seconds of one step after another."""
    trainer = prepared(folder, stage)
    loader = trainer.get_train_dataloader()
    trainer.create_optimizer()
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1

    def step() -> float:
        (batch,) = loader
        loss = trainer.training_step(trainer.model, batch, None)
        torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), 1.0)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()
        return float(loss)

    loss = step()
    yield 0.0 if stage == "grpo" else loss
    while True:
        begin = time.perf_counter()
        step()
        yield time.perf_counter() - begin


def length(completions: list[str], **_: Any) -> list[float]:
    """A reward: letters of each answer."""
    return [float(len(answer)) for answer in completions]


def prepared(folder: Path, stage: str) -> Any:
    """The trainer of a stage."""
    rows = json.loads((folder / "rows.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(folder / "policy.hf")
    tokenizer.pad_token_id = case.PAD
    plain = {
        "output_dir": str(folder / f"trl-{stage}"), "learning_rate": case.RATE,
        "max_grad_norm": 1.0, "lr_scheduler_type": "constant", "weight_decay": 0.0,
        "report_to": "none", "use_cpu": True, "bf16": False, "gradient_checkpointing": False,
        "max_length": case.CONTEXT, "dataloader_pin_memory": False, "optim": "adamw_torch_fused",
    }  # fmt: skip

    def model(name: str) -> Any:
        return AutoModelForCausalLM.from_pretrained(folder / f"{name}.hf", dtype=torch.float32)

    if stage in ("sft", "lora"):
        policy = model("policy")
        if stage == "lora":
            from peft import PeftModel  # pyrefly: ignore[missing-import]

            policy = PeftModel.from_pretrained(policy, folder / "adapters", is_trainable=True)
        config = SFTConfig(per_device_train_batch_size=case.ROWS, **plain)
        return SFTTrainer(
            policy, config, train_dataset=Dataset.from_list(rows["sft"]), processing_class=tokenizer
        )
    if stage == "grpo":
        asked = json.loads((folder / "prompts.json").read_text())
        config = GRPOConfig(
            per_device_train_batch_size=case.ASKED * case.GROUP, num_generations=case.GROUP,
            max_completion_length=case.ANSWER, beta=0.0, temperature=1.0, steps_per_generation=1,
            **{k: v for k, v in plain.items() if k != "max_length"},
        )  # fmt: skip
        return AskedInIds(
            model("policy"), [length], config, processing_class=tokenizer,
            train_dataset=Dataset.from_list([{"prompt": json.dumps(ids)} for ids in asked]),
        )  # fmt: skip
    if stage == "reward":
        whole = [
            {side: p["prompt_ids"] + p[side] for side in ("chosen_ids", "rejected_ids")}
            | {"margin": p["margin"]}
            for p in rows["pairs"]
        ]
        scorer = LlamaForSequenceClassification.from_pretrained(
            folder / "policy.hf", num_labels=1, dtype=torch.float32, pad_token_id=case.PAD
        )
        with torch.no_grad():
            scorer.score.weight.copy_(torch.from_numpy(np.load(folder / "score.npy"))[None])
        config = RewardConfig(per_device_train_batch_size=case.PAIRS, disable_dropout=True, **plain)
        return RewardTrainer(
            scorer, config, train_dataset=Dataset.from_list(whole), processing_class=tokenizer
        )
    config = DPOConfig(
        per_device_train_batch_size=case.PAIRS, beta=case.BETA, precompute_ref_log_probs=True,
        **plain,
    )  # fmt: skip
    pairs = [{k: v for k, v in p.items() if k != "margin"} for p in rows["pairs"]]
    return AsTheyAre(
        model("policy"), model("reference"), config, train_dataset=Dataset.from_list(pairs),
        processing_class=tokenizer,
    )  # fmt: skip
