"""A small Llama 2 that learns to tell stories: what `make quickstart` runs.

Command   llama-jax train experiments/quickstart.py --workdir runs/quickstart
Hardware  two CPU cores
Expected  TODO
"""

from dataclasses import replace

from llama_jax.config import CheckpointConfig, DataConfig, OptimizerConfig, TrainConfig
from llama_jax.model.presets import STORIES_260K

CONFIG = TrainConfig(
    workdir="runs/quickstart",
    steps=800,
    batch_size=32,
    seq_len=256,
    log_every=10,
    eval_every=400,
    eval_batches=8,
    sample_prompts=("Once upon a time", "One day, a little dog"),
    model=replace(STORIES_260K, vocab_size=1024, d_model=128, num_layers=4, head_dim=16, d_ff=352),
    optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=50),
    data=DataConfig(dataset="tales"),
    checkpoint=CheckpointConfig(every=200, keep=2),
)
