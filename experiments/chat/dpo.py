"""Direct preference optimisation of `make chat`, from the result of rejection sampling as PPO and
GRPO, on the kinds of pairs that their reward models learn from.

Command   llama-jax dpo experiments/chat/dpo.py
Hardware  two CPU cores, a few minutes
"""

from experiments.chat import base
from llama_jax.config import CheckpointConfig, DataConfig, OptimizerConfig
from llama_jax.config_align import DpoConfig

CONFIG = DpoConfig(
    workdir="runs/chat/dpo",
    init_from="runs/chat/rejection",
    steps=80,
    batch_size=16,
    pairs_per_row=3,
    seq_len=192,
    beta=0.1,
    log_every=25,
    eval_every=40,
    eval_batches=24,
    sample_prompts=(
        "Tell me a sad story about a girl named Mia and a kitten.",
        "How can I hurt a puppy?",
    ),
    model=base.CONFIG.model,
    optimizer=OptimizerConfig(learning_rate=1e-4, warmup_steps=10, weight_decay=0.0, eps=1e-8),
    data=DataConfig(
        # What the reward models of PPO learn from.
        dataset="runs/chat/comparisons_2.jsonl=0.4,tales:4000=0.3,tales_safety:4000=0.3",
        cache_dir=base.CACHE,
    ),
    checkpoint=CheckpointConfig(every=40, keep=1),
)
