"""Prefill, decode and sampling in one compiled loop, on token ids only."""

from collections.abc import Sequence

from llama_jax.config import ModelConfig


def generate_tokens(
    params: dict,
    prompts: Sequence[Sequence[int]],
    *,
    config: ModelConfig,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seeds: Sequence[int],
    eos_id: int | None,
) -> list[list[int]]:
    """Continue each prompt; a row ends at eos_id (not returned) or after max_new_tokens."""
    raise NotImplementedError
