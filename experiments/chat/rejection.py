"""Rejection sampling of `make chat`: the best of eight answers.

Command   llama-jax rejection experiments/chat/rejection.py
Hardware  two CPU cores, a few minutes
"""

from experiments.chat import base
from llama_jax.config import CheckpointConfig, DataConfig, OptimizerConfig
from llama_jax.config_align import RejectionConfig

CONFIG = RejectionConfig(
    workdir="runs/chat/rejection",
    init_from="runs/chat/sft",
    helpfulness="runs/chat/helpfulness",
    safety="runs/chat/safety",
    rounds=1,
    samples=8,
    prompts=192,
    temperatures=(0.8, 1.0, 1.2),
    temperature_prompts=32,
    max_new_tokens=104,
    wave_rows=64,
    steps=16,
    batch_size=16,
    seq_len=208,
    log_every=20,
    model=base.CONFIG.model,
    optimizer=OptimizerConfig(learning_rate=7e-4, warmup_steps=5, eps=1e-8),
    data=DataConfig(dataset="tales:4000=0.8,tales_safety:2000=0.2", cache_dir=base.CACHE),
    checkpoint=CheckpointConfig(every=1000, keep=1),
)
