"""Pretrain Llama 2 13B as the paper does, on 256 chips of any generation.

Differs from llama2_7b.py by the model, and by two micro-batches of two rows a chip.

Command   llama-jax train experiments/tpu/llama2_13b.py --workdir gs://my-runs/llama2-13b \\
              --data.dataset gs://my-text/ --data.tokenizer gs://my-text/tokenizer.model
Hardware  v4-512, v5e-256, v5p-512 or v6e-256: 256 chips each; not run on any of them yet
Predicted 6.3 of 15.8 GiB a chip and 8.68 s a step or more:
              llama-jax plan experiments/tpu/llama2_13b.py --topology v5e-256
"""

from dataclasses import replace

from experiments.tpu import llama2_7b
from llama_jax.model.presets import LLAMA2_13B

CONFIG = replace(
    llama2_7b.CONFIG,
    workdir="runs/llama2_13b",
    accumulate=2,
    model=replace(LLAMA2_13B, remat="full"),
)
