"""Supervised fine-tuning of Llama 2 70B as the paper does, on 64 rows of 4096 tokens.

Touvron et al. 2023b, section 3.1: two epochs, answers alone in the loss, peak 2e-5, cosine, decay
0.1. Whole dialogues share a row. `steps` is two epochs of 27,540 dialogues, about eight to a row.

A bucket holds a converted model: `llama-jax convert Llama-2-70b-hf llama2-70b`, then
`gcloud storage cp --recursive llama2-70b gs://my-models/`.

Command   llama-jax sft experiments/tpu/llama2_70b_sft.py --workdir gs://my-runs/llama2-70b-sft \\
              --init-from gs://my-models/llama2-70b --data.dataset gs://my-data/dialogues.jsonl
Hardware  v5p-256, which is 128 chips; not run on it yet
Predicted 11.4 of 95.7 GiB a chip and 2.39 s a step or more:
              llama-jax plan experiments/tpu/llama2_70b_sft.py --stage sft --topology v5p-256
"""

from dataclasses import replace

from experiments.tpu import llama2_7b_sft
from llama_jax.config import MeshConfig
from llama_jax.model.presets import LLAMA2_70B

PARENT = llama2_7b_sft.CONFIG
CONFIG = replace(
    PARENT,
    workdir="runs/llama2_70b_sft",
    init_from="models/Llama-2-70b-hf",
    model=replace(LLAMA2_70B, remat="full"),
    mesh=MeshConfig(fsdp=-1, tensor=2),
)
