"""Adapters of rank 16 in place of `make chat`'s full fine-tuning, for as many steps on the same
dialogues.

A is drawn as wide as a weight and B begins at 0, so adapters take a larger learning rate.

Command   llama-jax sft experiments/chat/lora.py    the adapters alone, with any option
          python -m experiments.chat.lora           and how much of sft's helpfulness they reach
Hardware  two CPU cores; after `make chat`, or its first two stages
Expected  4 minutes more than sft; 0.77 of its helpfulness (0.541 against 0.700): see LOG.md
"""

from dataclasses import replace

from experiments.chat import sft
from llama_jax.config import LoraConfig

CONFIG = replace(
    sft.CONFIG,
    workdir="runs/chat/lora",
    optimizer=replace(sft.CONFIG.optimizer, learning_rate=1e-2),
    lora=LoraConfig(rank=16, alpha=32.0),
)


def main() -> None:
    """Train, or resume; then judge both on the report's prompts."""
    from experiments.chat.run import judge_stage, judged_prompts
    from llama_jax.align.sft import sft as train
    from llama_jax.runtime.console import quiet_start
    from llama_jax.runtime.malloc import keep_freed_memory

    quiet_start()
    keep_freed_memory()
    for line in train(CONFIG).lines():
        print(line)
    prompts, found = judged_prompts(), {}
    for name in ("sft", "lora"):
        found[name] = judge_stage(name, prompts)
        low, high = found[name].interval
        print(f"{name:<8}{found[name].helpfulness.mean():>8.3f}{low:>10.3f} -{high:>6.3f}")
    full, adapted = (found[name].helpfulness.mean() for name in ("sft", "lora"))
    print(f"{'ratio':<8}{adapted / full:>8.3f}")


if __name__ == "__main__":
    main()
