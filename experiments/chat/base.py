"""The base model of `make chat`: it learns to tell short stories, and to keep their hero.

Command   llama-jax train experiments/chat/base.py          (make chat runs all the stages)
Hardware  two CPU cores, a few minutes
"""

from dataclasses import replace

from llama_jax.config import CheckpointConfig, DataConfig, OptimizerConfig, TrainConfig
from llama_jax.model.presets import STORIES_260K

CACHE = "~/.cache/llama_jax"
TOKENIZER = "runs/chat/tokenizer.model"
CONFIG = TrainConfig(
    workdir="runs/chat/base",
    steps=1000,
    batch_size=8,
    seq_len=256,
    log_every=25,
    eval_every=500,
    eval_batches=16,
    sample_prompts=("Once upon a time", "Mia was a little girl who", "There once was a boy"),
    model=replace(
        STORIES_260K,
        vocab_size=1536,
        d_model=192,
        num_layers=3,
        num_heads=6,
        num_kv_heads=6,
        head_dim=32,
        d_ff=512,
        max_seq_len=1024,
        tie_embeddings=False,
    ),
    optimizer=OptimizerConfig(learning_rate=5e-3, warmup_steps=60, eps=1e-8, weight_decay=0.0),
    data=DataConfig(
        dataset="short_tales:30000=0.7,tales:8000=0.3",
        tokenizer=TOKENIZER,
        cache_dir=CACHE,
    ),
    checkpoint=CheckpointConfig(every=250, keep=1),
)
