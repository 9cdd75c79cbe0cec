"""A small Llama 2 that learns to tell stories: what `make quickstart` runs.

Command   llama-jax train experiments/quickstart.py --workdir runs/quickstart
Hardware  two CPU cores, under five minutes with everything
Expected  training loss below 0.5 nats per token, stories that read as English
"""

from dataclasses import replace

from llama_jax.config import CheckpointConfig, DataConfig, OptimizerConfig, TrainConfig
from llama_jax.model.presets import STORIES_260K

CONFIG = TrainConfig(
    workdir="runs/quickstart",
    steps=1600,
    batch_size=8,
    seq_len=256,
    log_every=25,
    eval_every=800,
    eval_batches=64,
    sample_prompts=("Once upon a time", "One day, a little dog"),
    model=replace(
        STORIES_260K,
        vocab_size=1024,
        d_model=128,
        num_layers=4,
        num_heads=4,
        num_kv_heads=2,
        head_dim=32,
        d_ff=352,
    ),
    optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=50),
    data=DataConfig(dataset="tales:20000"),
    checkpoint=CheckpointConfig(every=400, keep=2),
)
