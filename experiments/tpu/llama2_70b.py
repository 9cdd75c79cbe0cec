"""Pretrain Llama 2 70B as the paper does, on 256 chips of any generation.

Differs from llama2_34b.py by the model alone.

Command   llama-jax train experiments/tpu/llama2_70b.py --workdir gs://my-runs/llama2-70b \\
              --data.dataset gs://my-text/ --data.tokenizer gs://my-text/tokenizer.model
Hardware  v4-512, v5e-256, v5p-512 or v6e-256: 256 chips each; not run on any of them yet
Predicted 13.1 of 15.8 GiB a chip and 44.56 s a step or more:
              llama-jax plan experiments/tpu/llama2_70b.py --topology v5e-256
"""

from dataclasses import replace

from experiments.tpu import llama2_34b
from llama_jax.model.presets import LLAMA2_70B

CONFIG = replace(
    llama2_34b.CONFIG,
    workdir="runs/llama2_70b",
    model=replace(LLAMA2_70B, remat="full"),
)
