"""PPO of `make chat`, from the result of rejection sampling.

Command   llama-jax ppo experiments/chat/ppo.py
Hardware  two CPU cores, several minutes
"""

from experiments.chat import base
from llama_jax.config import CheckpointConfig, DataConfig, OptimizerConfig
from llama_jax.config_align import PpoConfig

CONFIG = PpoConfig(
    workdir="runs/chat/ppo",
    init_from="runs/chat/rejection",
    helpfulness="runs/chat/helpfulness_2",
    safety="runs/chat/safety",
    heldout="runs/chat/heldout",
    steps=60,
    batch_size=128,
    minibatch=32,
    seq_len=224,
    max_new_tokens=104,
    wave_rows=64,
    beta=0.1,
    value_warmup=4,
    eval_every=12,
    heldout_prompts=128,
    patience=3,
    model=base.CONFIG.model,
    optimizer=OptimizerConfig(
        learning_rate=3e-4, warmup_steps=0, schedule="constant", weight_decay=0.0, eps=1e-8
    ),
    value_optimizer=OptimizerConfig(
        learning_rate=5e-4, warmup_steps=0, schedule="constant", weight_decay=0.0, eps=1e-8
    ),
    data=DataConfig(
        dataset="tales:8000=0.55,tales_safety:2000=0.3,tales_harmless:2000=0.15",
        cache_dir=base.CACHE,
    ),
    checkpoint=CheckpointConfig(every=12, keep=1),
)
