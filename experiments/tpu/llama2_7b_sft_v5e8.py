"""Supervised fine-tuning of all of Llama 2 7B on eight chips, those of Kaggle's v5e-8.

Differs from llama2_7b_sft.py by a batch of eight rows, one to a chip, which is what parameters and
moments in float32 leave room for; the peak is the paper's over the root of eight, as Adam's noise
goes. Checkpoints hold the weights alone, in bfloat16: 13 GB where the whole state takes 81.

A bucket holds a converted model: `llama-jax convert Llama-2-7b-hf llama2-7b`, then
`gcloud storage cp --recursive llama2-7b gs://my-models/`.

Command   llama-jax sft experiments/tpu/llama2_7b_sft_v5e8.py \\
              --workdir gs://my-runs/llama2-7b-sft \\
              --init-from gs://my-models/llama2-7b --data.dataset gs://my-data/dialogues.jsonl
Hardware  v5e-8, which is 8 chips; not run on it yet
Predicted 13.9 of 15.8 GiB a chip and 1.13 s a step or more:
              llama-jax plan experiments/tpu/llama2_7b_sft_v5e8.py --stage sft --topology v5e-8
"""

from dataclasses import replace

from experiments.tpu import llama2_7b_sft
from llama_jax.config import CheckpointConfig

PARENT = llama2_7b_sft.CONFIG
CONFIG = replace(
    PARENT,
    workdir="runs/llama2_7b_sft_v5e8",
    steps=860,
    batch_size=8,
    optimizer=replace(PARENT.optimizer, learning_rate=7e-6, warmup_steps=26),
    checkpoint=CheckpointConfig(every=430, keep=1, weights_only=True),
)
