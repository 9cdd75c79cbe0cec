"""Real English on a CPU: a small Llama 2 on Python's own documentation.

Command   llama-jax train experiments/python_docs_cpu.py --workdir runs/python_docs
Hardware  two CPU cores, about ten minutes
Expected  at most 1.66 bits per byte on the validation split (the text varies with the Python)
"""

from dataclasses import replace

from llama_jax.config import CheckpointConfig, DataConfig, OptimizerConfig, TrainConfig
from llama_jax.model.presets import STORIES_260K

CONFIG = TrainConfig(
    workdir="runs/python_docs",
    steps=1500,
    batch_size=8,
    seq_len=256,
    eval_every=500,
    sample_prompts=("The", "Return the"),
    model=replace(
        STORIES_260K,
        vocab_size=2048,
        d_model=192,
        num_layers=4,
        num_heads=6,
        num_kv_heads=2,
        head_dim=32,
        d_ff=512,
    ),
    optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=100),
    data=DataConfig(dataset="python_docs"),
    checkpoint=CheckpointConfig(every=500, keep=2),
)
