"""Llama 2 7B from a context of 4k to 32k with YaRN, on documents as long as that.

Differs from pretraining by: starts from a trained model (`--init-from`), YaRN frequencies, T=32768,
a constant small learning rate for 400 steps of 2M tokens (Peng et al. 2023, section 4.1), full
rematerialisation. The same recipe takes any model of `presets` from its context to a longer one.

Command   llama-jax train experiments/llama2_7b_32k.py --init-from models/llama2-7b \\
              --data.dataset long_documents/ --workdir gs://bucket/llama2-7b-32k
Hardware  a TPU pod; not run on one yet
Expected  no figure yet
"""

from dataclasses import replace

from llama_jax.config import DataConfig, OptimizerConfig, TrainConfig
from llama_jax.model.presets import LLAMA2_7B, extend_context

CONFIG = TrainConfig(
    workdir="runs/llama2_7b_32k",
    steps=400,
    batch_size=64,
    seq_len=32_768,
    model=replace(extend_context(LLAMA2_7B, 32_768, scaling="yarn"), remat="full"),
    optimizer=OptimizerConfig(learning_rate=2e-5, warmup_steps=20, schedule="constant"),
    data=DataConfig(dataset="long_documents/"),
)
