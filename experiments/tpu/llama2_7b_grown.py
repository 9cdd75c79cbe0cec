"""Teach Llama 2 7B another language: a vocabulary grown by 16,000 pieces, then 10B tokens.

Differs from llama2_7b.py by: starts from a trained model whose tables were grown (each new row is
the mean of the rows that spelled its piece before: `data.grow.grow` makes the tokenizer,
`model.weights.grow_vocabulary` the rows), V=48000, and the rate at which pretraining ended, held
constant after 200 steps of warm-up. Mix in a third of the old language, or it is forgotten.

Command   llama-jax train experiments/tpu/llama2_7b_grown.py --init-from models/llama2-7b-grown \\
              --data.dataset new.jsonl=0.67,old.jsonl=0.33 --workdir gs://my-runs/llama2-7b-grown
Hardware  v4-512, v5e-256, v5p-512 or v6e-256: 256 chips each; not run on any of them yet
Predicted 7.1 of 15.8 GiB a chip and 4.57 s a step or more:
              llama-jax plan experiments/tpu/llama2_7b_grown.py --topology v5e-256
"""

from dataclasses import replace

from experiments.tpu import llama2_7b
from llama_jax.config import DataConfig, OptimizerConfig

PARENT = llama2_7b.CONFIG
CONFIG = replace(
    PARENT,
    workdir="runs/llama2_7b_grown",
    steps=2400,
    model=replace(PARENT.model, vocab_size=48_000),
    optimizer=OptimizerConfig(learning_rate=3e-5, warmup_steps=200, schedule="constant"),
    data=DataConfig(dataset="new.jsonl=0.67,old.jsonl=0.33"),
)
