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
    steps=250,
    batch_size=32,
    seq_len=144,
    log_every=25,
    eval_every=125,
    eval_batches=24,
    half="first",
    model=replace(base.CONFIG.model, head="score"),
    optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=10, eps=1e-8),
    data=DataConfig(dataset="tales:16000", cache_dir=base.CACHE),
    checkpoint=CheckpointConfig(every=125, keep=1),
)
