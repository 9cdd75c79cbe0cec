"""GRPO of `make chat`, from the result of rejection sampling: prompts, reward models and number of
answers are those of PPO.

Command   llama-jax grpo experiments/chat/grpo.py
Hardware  two CPU cores, several minutes
"""

from dataclasses import replace

from experiments.chat import base, ppo
from llama_jax.config_align import GrpoConfig

CONFIG = GrpoConfig(
    workdir="runs/chat/grpo",
    init_from=ppo.CONFIG.init_from,
    helpfulness=ppo.CONFIG.helpfulness,
    safety=ppo.CONFIG.safety,
    heldout=ppo.CONFIG.heldout,
    steps=24,
    batch_size=ppo.CONFIG.batch_size,
    group=8,
    minibatch=ppo.CONFIG.minibatch,
    seq_len=ppo.CONFIG.seq_len,
    max_new_tokens=ppo.CONFIG.max_new_tokens,
    wave_rows=ppo.CONFIG.wave_rows,
    beta=0.02,
    eval_every=8,
    heldout_prompts=ppo.CONFIG.heldout_prompts,
    patience=ppo.CONFIG.patience,
    model=base.CONFIG.model,
    optimizer=replace(ppo.CONFIG.optimizer, learning_rate=1e-4),
    data=ppo.CONFIG.data,
    checkpoint=ppo.CONFIG.checkpoint,
)
