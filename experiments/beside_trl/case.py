"""What both sides of compare_trl.py get: models, adapters, and rows of token ids, in a folder."""

import json
from pathlib import Path
from typing import Any

STAGES = ("sft", "lora", "reward", "dpo", "grpo")
BETA, RATE = 0.1, 1e-4
RANK, ALPHA = 16, 32.0
ROWS, PAIRS = 16, 8
ASKED, GROUP, ANSWER = 8, 8, 64
"""Prompts of an iteration of GRPO, answers to each of them, and tokens of an answer at most."""
VOCAB, CONTEXT = 1024, 256
PAD = 0
Row = tuple[list[int], list[int]]
"""Token ids of a prompt and of its answer."""


def model_config(head: str = "language"):
    """About 6M parameters."""
    from llama_jax.config import ModelConfig

    return ModelConfig(
        vocab_size=VOCAB, d_model=256, num_layers=6, num_heads=8, num_kv_heads=8, head_dim=32,
        d_ff=688, max_seq_len=CONTEXT, norm_eps=1e-5, dtype="float32",
        head="score" if head == "score" else "language",
    )  # fmt: skip


def adapted_config():
    """The same with adapters of all seven matrices."""
    from llama_jax.config import AdaptedModel, LoraConfig

    return AdaptedModel.of(model_config(), LoraConfig(rank=RANK, alpha=ALPHA))


def write_case(folder: Path) -> None:
    """Two models for both sides, adapters of one, a score head, and rows of token ids."""
    import jax
    import numpy as np

    from llama_jax.checkpoint import save_model
    from llama_jax.config_file import model_json
    from llama_jax.convert.api import convert
    from llama_jax.data.chat import encode_prompt
    from llama_jax.data.corpora.tales import instructions
    from llama_jax.data.tokenizer import train_tokenizer
    from llama_jax.model.llama import init_params

    texts = [m["content"] for i in range(800) for m in instructions.instruction(i).messages]
    tokenizer = train_tokenizer(texts, VOCAB)
    for seed, name in enumerate(("policy", "reference")):
        # Wide, so that the losses are not those of a uniform distribution.
        params = jax.tree.map(lambda p: 2 * p, init_params(jax.random.key(seed), model_config()))
        save_model(folder / name, params, model_json(model_config()), tokenizer.model_bytes, {})
        convert(str(folder / name), str(folder / f"{name}.hf"), to="hf")
    write_adapters(folder / "adapters", str(folder / "policy.hf"))
    score = np.random.default_rng(0).normal(size=256).astype(np.float32) / 16
    np.save(folder / "score.npy", score)
    (folder / "rows.json").write_text(json.dumps(rows_of(tokenizer)))
    asked = [instructions.instruction(i, kind="story").messages[0] for i in range(ASKED)]
    lines = [json.dumps({"messages": [message]}) + "\n" for message in asked]
    (folder / "prompts.jsonl").write_text("".join(lines))
    prompts = [[*encode_prompt(tokenizer, [message])] for message in asked]
    (folder / "prompts.json").write_text(json.dumps(prompts))


def write_adapters(folder: Path, base: str) -> None:
    """A PEFT folder. B is not 0, as it is at the beginning of a training, so that the loss of the
    first step depends on both factors."""
    import numpy as np

    from llama_jax.convert import peft
    from llama_jax.model.weights import A, B, abstract_params

    adapted, rng = adapted_config(), np.random.default_rng(1)
    factors = {
        name: rng.normal(size=w.shape).astype(np.float32) / 16
        for name, w in abstract_params(adapted)["layers"].items()
        if name.endswith((A, B))
    }
    folder.mkdir()
    peft.write(folder, adapted.lora, factors, model_config(), base)


def rows_of(tokenizer: Any) -> dict[str, Any]:
    """16 dialogues with labels for SFT, and 8 pairs, of the tales: short and long ones, as people
    have them."""
    from llama_jax.data.chat import encode_answer, encode_prompt
    from llama_jax.data.corpora.tales import instructions, preferences

    def ids(messages: Any, answer: str) -> Row:
        return [*encode_prompt(tokenizer, messages)], [*encode_answer(tokenizer, answer)]

    dialogues: list[dict[str, list[int]]] = []
    number = 0
    while len(dialogues) < ROWS:
        *asked, answer = instructions.instruction(number).messages
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
    return {"sft": dialogues, "pairs": pairs}


def dialogues_of(rows: dict[str, Any]) -> list[Row]:
    """What a step of SFT reads."""
    split = [(r["input_ids"], r["labels"].count(-100)) for r in rows["sft"]]
    return [(ids[:n], ids[n:]) for ids, n in split]


def pairs_of(rows: dict[str, Any]) -> list[tuple[Row, Row]]:
    """What a step of the other stages reads: the prompt with its chosen and its rejected answer."""
    return [
        ((p["prompt_ids"], p["chosen_ids"]), (p["prompt_ids"], p["rejected_ids"]))
        for p in rows["pairs"]
    ]


def tokens_of(folder: Path, stage: str) -> int:
    """Tokens that a step reads, without padding; in GRPO with those that it writes, if no answer
    ends early."""
    if stage == "grpo":
        prompts = json.loads((folder / "prompts.json").read_text())
        return GROUP * sum(len(prompt) + ANSWER for prompt in prompts)
    rows = json.loads((folder / "rows.json").read_text())
    plain = stage in ("sft", "lora")
    read = dialogues_of(rows) if plain else [row for pair in pairs_of(rows) for row in pair]
    return sum(len(prompt) + len(answer) for prompt, answer in read)
