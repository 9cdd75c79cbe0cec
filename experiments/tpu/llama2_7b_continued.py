"""Continued pretraining of Llama 2 7B on your own text, on 16 chips of v5e.

The published folder is taken as it is: float16 weights are cast to float32 parameters, its
tokenizer reads the text, and its settings are compared with these before any data is read. Batches
of 262,144 tokens (64 rows of 4096), AdamW at 3e-5 after 50 steps of warm-up, cosine to a tenth.

Command   llama-jax train experiments/tpu/llama2_7b_continued.py --init-from Llama-2-7b-hf \\
              --data.dataset my.jsonl --workdir gs://my-runs/llama2-7b-continued
Hardware  v5e-16: 16 chips; not run there yet
Predicted 12.55 of 15.75 GiB a chip and 4.54 s a step or more:
              llama-jax plan experiments/tpu/llama2_7b_continued.py --topology v5e-16
"""

from dataclasses import replace

from experiments.tpu import llama2_7b
from llama_jax.config import CheckpointConfig, DataConfig, OptimizerConfig

CONFIG = replace(
    llama2_7b.CONFIG,
    workdir="runs/llama2_7b_continued",
    init_from="Llama-2-7b-hf",
    steps=1000,
    batch_size=64,
    eval_every=100,
    optimizer=OptimizerConfig(learning_rate=3e-5, warmup_steps=50),
    data=DataConfig(dataset="my.jsonl"),
    checkpoint=CheckpointConfig(every=100, keep=2),
)
