"""The reward model for helpfulness of `make chat`, on one half of the conversations.

Command   llama-jax reward experiments/chat/helpfulness.py
Hardware  two CPU cores, a few minutes
"""

from dataclasses import replace

from experiments.chat import base
from llama_jax.config import CheckpointConfig, DataConfig, OptimizerConfig
from llama_jax.config_align import RewardConfig

CONFIG = RewardConfig(
    workdir="runs/chat/helpfulness",
    init_from="runs/chat/sft",
    steps=800,
    batch_size=8,
    pairs_per_row=3,
    seq_len=192,
    log_every=50,
    eval_every=800,
    eval_batches=32,
    token_weight=1.0,
    half="first",
    model=replace(base.CONFIG.model, head="score"),
    optimizer=OptimizerConfig(learning_rate=6e-4, warmup_steps=40, eps=1e-8),
    data=DataConfig(
        dataset="runs/chat/comparisons.jsonl=0.5,tales:20000=0.5", cache_dir=base.CACHE
    ),
    checkpoint=CheckpointConfig(every=400, keep=1),
)
