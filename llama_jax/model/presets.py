"""Every published Llama 1 and Llama 2, and small relatives that train on a laptop.

Shapes: Touvron et al. 2023a, table 2 (Llama 1); Touvron et al. 2023b, table 1 and the released
params.json (Llama 2; 34B as Code Llama 34B); TinyStories models as trained by llama2.c.
"""

from dataclasses import replace

from llama_jax.config import InputError, ModelConfig

LLAMA2_7B = ModelConfig(
    vocab_size=32_000,
    d_model=4096,
    num_layers=32,
    num_heads=32,
    num_kv_heads=32,
    head_dim=128,
    d_ff=11_008,
    max_seq_len=4096,
    norm_eps=1e-5,
)
LLAMA2_13B = replace(
    LLAMA2_7B, d_model=5120, num_layers=40, num_heads=40, num_kv_heads=40, d_ff=13_824
)
LLAMA2_34B = replace(
    LLAMA2_7B, d_model=8192, num_layers=48, num_heads=64, num_kv_heads=8, d_ff=22_016
)
LLAMA2_70B = replace(LLAMA2_34B, num_layers=80, d_ff=28_672)

LLAMA1_7B = replace(LLAMA2_7B, max_seq_len=2048, norm_eps=1e-6)
LLAMA1_13B = replace(LLAMA2_13B, max_seq_len=2048, norm_eps=1e-6)
LLAMA1_33B = replace(
    LLAMA1_7B, d_model=6656, num_layers=60, num_heads=52, num_kv_heads=52, d_ff=17_920
)
LLAMA1_65B = replace(
    LLAMA1_7B, d_model=8192, num_layers=80, num_heads=64, num_kv_heads=64, d_ff=22_016
)

STORIES_260K = ModelConfig(
    vocab_size=512,
    d_model=64,
    num_layers=5,
    num_heads=8,
    num_kv_heads=4,
    head_dim=8,
    d_ff=172,
    max_seq_len=512,
    norm_eps=1e-5,
    tie_embeddings=True,
    dtype="float32",
)
STORIES_15M = replace(
    STORIES_260K,
    vocab_size=32_000,
    d_model=288,
    num_layers=6,
    num_heads=6,
    num_kv_heads=6,
    head_dim=48,
    d_ff=768,
    max_seq_len=256,
)
STORIES_42M = replace(
    STORIES_15M,
    d_model=512,
    num_layers=8,
    num_heads=8,
    num_kv_heads=8,
    head_dim=64,
    d_ff=1376,
    max_seq_len=1024,
)
STORIES_110M = replace(
    STORIES_42M, d_model=768, num_layers=12, num_heads=12, num_kv_heads=12, d_ff=2048
)
TINY = replace(
    STORIES_260K,
    vocab_size=256,
    d_model=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    d_ff=64,
    max_seq_len=64,
    tie_embeddings=False,
)

PRESETS: dict[str, ModelConfig] = {
    "llama1-7b": LLAMA1_7B,
    "llama1-13b": LLAMA1_13B,
    "llama1-33b": LLAMA1_33B,
    "llama1-65b": LLAMA1_65B,
    "llama2-7b": LLAMA2_7B,
    "llama2-13b": LLAMA2_13B,
    "llama2-34b": LLAMA2_34B,
    "llama2-70b": LLAMA2_70B,
    "stories-260k": STORIES_260K,
    "stories-15m": STORIES_15M,
    "stories-42m": STORIES_42M,
    "stories-110m": STORIES_110M,
    "tiny": TINY,
}


def extend_context(config: ModelConfig, max_seq_len: int, scaling: str = "yarn") -> ModelConfig:
    """The same model with a longer context, for continued training at that length.

    The recipe from 4k to 32k is experiments/tpu/llama2_7b_32k.py: start from a trained model and
    train a few hundred steps on long documents at a small learning rate (Chen et al. 2023, section
    3; Peng et al. 2023, section 4.1).

    Raises:
      InputError: the new length is not longer, or the model is extended already.
    """
    if max_seq_len <= config.max_seq_len or config.rope_scaling != "none":
        raise InputError(
            f"cannot extend a context of {config.max_seq_len} (rope_scaling "
            f"{config.rope_scaling}) to {max_seq_len}: start from an unextended, shorter one"
        )
    return replace(
        config,
        max_seq_len=max_seq_len,
        rope_scaling=scaling,  # pyrefly: ignore[bad-argument-type]
        rope_factor=max_seq_len / config.max_seq_len,
    )
