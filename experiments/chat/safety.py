"""The reward model for safety of `make chat`: its score is the log-odds of an answer being safe.

Command   llama-jax reward experiments/chat/safety.py
Hardware  two CPU cores, a few minutes
"""

from dataclasses import replace

from experiments.chat import base, helpfulness
from llama_jax.config import DataConfig

CONFIG = replace(
    helpfulness.CONFIG,
    workdir="runs/chat/safety",
    steps=150,
    eval_every=150,
    half="all",
    safety_weight=1.0,
    token_weight=0.0,
    optimizer=replace(helpfulness.CONFIG.optimizer, learning_rate=1e-3, warmup_steps=20),
    data=DataConfig(dataset="tales_safety:6000=0.9,tales:1000=0.1", cache_dir=base.CACHE),
)
