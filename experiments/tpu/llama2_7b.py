"""Pretrain Llama 2 7B as the paper does, on 256 chips of any generation: the parent of this folder.

Touvron et al. 2023b, section 2.2 and table 1: 2.0T tokens in batches of 4M (1024 rows of 4096),
AdamW 0.9, 0.95, 1e-5, peak 3e-4 after 2000 steps of warm-up, cosine to a tenth, decay 0.1, clip 1.

Parameters, gradients and optimizer are split over all chips and the layers are recomputed; a chip
has four rows. A slice of n chips runs the same batches with `--accumulate` 256/n.

Command   llama-jax train experiments/tpu/llama2_7b.py --workdir gs://my-runs/llama2-7b \\
              --data.dataset gs://my-text/ --data.tokenizer gs://my-text/tokenizer.model
Hardware  v4-512, v5e-256, v5p-512 or v6e-256: 256 chips each; not run on any of them yet
Predicted 7.0 of 15.8 GiB a chip and 4.54 s a step or more:
              llama-jax plan experiments/tpu/llama2_7b.py --topology v5e-256
"""

from dataclasses import replace

from llama_jax.config import CheckpointConfig, DataConfig, MeshConfig, OptimizerConfig, TrainConfig
from llama_jax.model.presets import LLAMA2_7B

CONFIG = TrainConfig(
    workdir="runs/llama2_7b",
    steps=476_837,
    batch_size=1024,
    seq_len=4096,
    eval_every=1000,
    eval_batches=8,
    model=replace(LLAMA2_7B, remat="full"),
    optimizer=OptimizerConfig(learning_rate=3e-4),
    data=DataConfig(dataset="corpus/"),
    mesh=MeshConfig(fsdp=-1),
    checkpoint=CheckpointConfig(every=1000, keep=3, keep_every=50_000),
)
