"""Ghost attention of `make chat`, on the model that PPO made, whose own answers are mixed in:
without them it forgets to refuse. The conversations are answered by the SFT model, which follows
such instructions better, because no reward model has pulled it elsewhere.

Command   llama-jax gatt experiments/chat/gatt.py
Hardware  two CPU cores, a few minutes
"""

from experiments.chat import base
from llama_jax.config import CheckpointConfig, DataConfig, OptimizerConfig
from llama_jax.config_align import GattConfig

CONFIG = GattConfig(
    workdir="runs/chat/gatt",
    init_from="runs/chat/ppo",
    answers_from="runs/chat/sft",
    dialogues=768,
    samples=4,
    turns=20,
    context_turns=2,
    replay="runs/chat/kept_answers.jsonl=0.5",
    max_new_tokens=40,
    temperature=0.7,
    steps=480,
    batch_size=4,
    seq_len=1024,
    log_every=20,
    eval_every=0,
    model=base.CONFIG.model,
    optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=10, eps=1e-8),
    data=DataConfig(dataset="tales", cache_dir=base.CACHE),
    checkpoint=CheckpointConfig(every=160, keep=1),
)
