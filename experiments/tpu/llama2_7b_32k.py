"""Llama 2 7B from a context of 4k to 32k with YaRN, on documents as long as that.

Differs from llama2_7b.py by: starts from a trained model (`--init-from`), YaRN frequencies,
T=32768, a constant small learning rate for 400 steps of 2M tokens (Peng et al. 2023, section 4.1),
and rows whose positions are split over four chips, around which keys and values travel (ring
attention), since the batch has 64 rows for 256 chips. What attention reads and gives is kept, which
at this length is worth its memory. The same recipe takes any model of `presets`
from its context to a longer one.

Command   llama-jax train experiments/tpu/llama2_7b_32k.py --init-from models/llama2-7b \\
              --data.dataset long_documents/ --workdir gs://my-runs/llama2-7b-32k
Hardware  v4-512, v5e-256, v5p-512 or v6e-256: 256 chips each; not run on any of them yet
Predicted 13.2 of 15.8 GiB a chip and 3.18 s a step or more:
              llama-jax plan experiments/tpu/llama2_7b_32k.py --topology v5e-256
"""

from dataclasses import replace

from experiments.tpu import llama2_7b
from llama_jax.config import DataConfig, MeshConfig, OptimizerConfig
from llama_jax.model.presets import LLAMA2_7B, extend_context

CONFIG = replace(
    llama2_7b.CONFIG,
    workdir="runs/llama2_7b_32k",
    steps=400,
    batch_size=64,
    seq_len=32_768,
    eval_every=100,
    model=replace(extend_context(LLAMA2_7B, 32_768, scaling="yarn"), remat="qkvo"),
    optimizer=OptimizerConfig(learning_rate=2e-5, warmup_steps=20, schedule="constant"),
    data=DataConfig(dataset="long_documents/"),
    mesh=MeshConfig(fsdp=-1, sequence=4),
)
