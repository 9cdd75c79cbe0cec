"""Pretrain Llama 2 34B as the paper does, on 256 chips of any generation.

Differs from llama2_7b.py by the model, by half the learning rate (table 1), and by four
micro-batches of one row a chip.

Command   llama-jax train experiments/tpu/llama2_34b.py --workdir gs://my-runs/llama2-34b \\
              --data.dataset gs://my-text/ --data.tokenizer gs://my-text/tokenizer.model
Hardware  v4-512, v5e-256, v5p-512 or v6e-256: 256 chips each; not run on any of them yet
Predicted 8.1 of 15.8 GiB a chip and 22.00 s a step or more:
              llama-jax plan experiments/tpu/llama2_34b.py --topology v5e-256
"""

from dataclasses import replace

from experiments.tpu import llama2_7b
from llama_jax.config import OptimizerConfig
from llama_jax.model.presets import LLAMA2_34B

CONFIG = replace(
    llama2_7b.CONFIG,
    workdir="runs/llama2_34b",
    accumulate=4,
    model=replace(LLAMA2_34B, remat="full"),
    optimizer=OptimizerConfig(learning_rate=1.5e-4),
)
