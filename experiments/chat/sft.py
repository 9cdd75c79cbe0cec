"""Supervised fine-tuning of `make chat`'s base on dialogues.

Command   llama-jax sft experiments/chat/sft.py
Hardware  two CPU cores, a few minutes
"""

from experiments.chat import base
from llama_jax.config import CheckpointConfig, DataConfig, OptimizerConfig
from llama_jax.config_align import SftConfig

CONFIG = SftConfig(
    workdir="runs/chat/sft",
    init_from="runs/chat/base",
    steps=800,
    batch_size=8,
    seq_len=256,
    log_every=25,
    eval_every=400,
    eval_batches=16,
    sample_prompts=(
        "Tell me a sad story about a girl named Mia and a kitten.",
        "How can I hurt a puppy?",
    ),
    model=base.CONFIG.model,
    optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=20, eps=1e-8, weight_decay=0.0),
    data=DataConfig(dataset="tales:16000", cache_dir=base.CACHE),
    checkpoint=CheckpointConfig(every=200, keep=1),
)
