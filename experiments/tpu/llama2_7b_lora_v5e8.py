"""Low-rank adapters of Llama 2 7B on conversations, on the eight chips of Kaggle's v5e-8.

The base is kept in bfloat16 and split over the chips; adapters of rank 16 beside all seven matrices
of a layer are float32, and they alone are trained and saved: 0.5 GB with their optimizer. The
learning rate is ten times that of full fine-tuning.

A bucket holds a converted model: `llama-jax convert Llama-2-7b-hf llama2-7b`, then
`gcloud storage cp --recursive llama2-7b gs://my-models/`.

Command   llama-jax sft experiments/tpu/llama2_7b_lora_v5e8.py \\
              --workdir gs://my-runs/llama2-7b-lora \\
              --init-from gs://my-models/llama2-7b --data.dataset gs://my-data/dialogues.jsonl
Hardware  v5e-8, which is 8 chips; not run on it yet
Predicted 4.5 of 15.8 GiB a chip and 0.86 s a step or more:
              llama-jax plan experiments/tpu/llama2_7b_lora_v5e8.py --stage sft --topology v5e-8
"""

from dataclasses import replace

from experiments.tpu import llama2_7b_sft
from llama_jax.config import LoraConfig, MeshConfig, OptimizerConfig

CONFIG = replace(
    llama2_7b_sft.CONFIG,
    workdir="runs/llama2_7b_lora",
    steps=860,
    batch_size=8,
    model=replace(llama2_7b_sft.CONFIG.model, param_dtype="bfloat16"),
    optimizer=OptimizerConfig(learning_rate=2e-4, warmup_steps=26, weight_decay=0.0),
    mesh=MeshConfig(fsdp=-1),
    lora=LoraConfig(rank=16),
)
