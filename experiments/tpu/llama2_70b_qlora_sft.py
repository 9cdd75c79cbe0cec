"""Adapters of Llama 2 70B on 16 chips of v5e: QLoRA, the base in 4 bits (Dettmers et al. 2023).

Differs from llama2_7b_sft.py by its model and by `lora`: the 70B's matrices are kept in nf4 and
made dense layer by layer, so 16 chips hold what takes 128 in llama2_70b_sft.py. Checkpoints hold
the adapters alone. Micro-batches of a row a chip leave room for the residual stream of 80 layers.

A bucket holds a converted model: `llama-jax convert Llama-2-70b-hf llama2-70b`, then
`gcloud storage cp --recursive llama2-70b gs://my-models/`.

Command   llama-jax sft experiments/tpu/llama2_70b_qlora_sft.py --workdir gs://my-runs/qlora \\
              --init-from gs://my-models/llama2-70b --data.dataset gs://my-data/dialogues.jsonl
Hardware  v5e-16, which is 16 chips; not run on it yet
Predicted 13.6 of 15.8 GiB a chip and 33.13 s a step or more:
              llama-jax plan experiments/tpu/llama2_70b_qlora_sft.py --stage sft --topology v5e-16
"""

from dataclasses import replace

from experiments.tpu import llama2_7b_sft
from llama_jax.config import LoraConfig
from llama_jax.model.presets import LLAMA2_70B

PARENT = llama2_7b_sft.CONFIG
CONFIG = replace(
    PARENT,
    workdir="runs/llama2_70b_qlora_sft",
    init_from="models/Llama-2-70b-hf",
    accumulate=4,
    model=replace(LLAMA2_70B, param_dtype="bfloat16", remat="full"),
    lora=LoraConfig(rank=16, base="nf4"),
    optimizer=replace(PARENT.optimizer, learning_rate=2e-4),
)
