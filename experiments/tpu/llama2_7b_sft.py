"""Supervised fine-tuning of Llama 2 7B as the paper does, on 64 rows of 4096 tokens.

Touvron et al. 2023b, section 3.1: two epochs, answers alone in the loss, peak 2e-5, cosine, decay
0.1. Whole dialogues share a row. `steps` is two epochs of 27,540 dialogues, about eight to a row.

A bucket holds a converted model: `llama-jax convert Llama-2-7b-hf llama2-7b`, then
`gcloud storage cp --recursive llama2-7b gs://my-models/`.

Command   llama-jax sft experiments/tpu/llama2_7b_sft.py --workdir gs://my-runs/llama2-7b-sft \\
              --init-from gs://my-models/llama2-7b --data.dataset gs://my-data/dialogues.jsonl
Hardware  v5e-64, which is 64 chips; not run on it yet
Predicted 3.4 of 15.8 GiB a chip and 1.13 s a step or more:
              llama-jax plan experiments/tpu/llama2_7b_sft.py --stage sft --topology v5e-64
"""

from dataclasses import replace

from llama_jax.config import CheckpointConfig, DataConfig, MeshConfig, OptimizerConfig
from llama_jax.config_align import SftConfig
from llama_jax.model.presets import LLAMA2_7B

CONFIG = SftConfig(
    workdir="runs/llama2_7b_sft",
    init_from="models/Llama-2-7b-hf",
    steps=108,
    batch_size=64,
    seq_len=4096,
    eval_every=50,
    model=replace(LLAMA2_7B, remat="full"),
    optimizer=OptimizerConfig(learning_rate=2e-5, warmup_steps=3),
    data=DataConfig(dataset="dialogues.jsonl"),
    mesh=MeshConfig(fsdp=-1),
    checkpoint=CheckpointConfig(every=50, keep=1),
)
