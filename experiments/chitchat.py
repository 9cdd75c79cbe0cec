"""Fine-tuning on real conversations: 7,168 chats between two strangers, on two CPU cores.

They are in the package chitchat-dataset (MIT licence; BYU Chit-Chat Challenge, 2018), which is read
and never run. The model to start from has read English, Python's documentation.

Command   pip install chitchat-dataset
          llama-jax train experiments/python_docs_cpu.py
          llama-jax data show chitchat --tokenizer runs/python_docs
          llama-jax sft experiments/chitchat.py
          llama-jax chat runs/chitchat
Hardware  two CPU cores, about ten minutes
"""

from experiments import python_docs_cpu
from llama_jax.config import CheckpointConfig, DataConfig, OptimizerConfig
from llama_jax.config_align import SftConfig

CONFIG = SftConfig(
    workdir="runs/chitchat",
    init_from="runs/python_docs",
    steps=800,
    batch_size=8,
    seq_len=512,
    eval_every=200,
    sample_prompts=("Hi! How are you today?", "What do you like to do on weekends?"),
    model=python_docs_cpu.CONFIG.model,
    optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=50),
    data=DataConfig(dataset="chitchat"),
    checkpoint=CheckpointConfig(every=200, keep=1),
)
"""Conversations of up to 512 tokens; of longer ones the end, from a user's turn on."""
