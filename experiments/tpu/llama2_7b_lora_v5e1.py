"""Low-rank adapters of Llama 2 7B on one chip, Colab's: rows of 2048 tokens, one after another.

The base takes 12.7 GiB in bfloat16, which leaves no room for a step; kept in int8 it takes 6.7.

A bucket holds a converted model: `llama-jax convert Llama-2-7b-hf llama2-7b`, then
`gcloud storage cp --recursive llama2-7b gs://my-models/`.

Command   llama-jax sft experiments/tpu/llama2_7b_lora_v5e1.py \\
              --workdir gs://my-runs/llama2-7b-lora \\
              --init-from gs://my-models/llama2-7b --data.dataset gs://my-data/dialogues.jsonl
Hardware  v5e-1, which is one chip; not run on it yet
Predicted 9.7 of 15.8 GiB a chip and 6.26 s a step or more:
              llama-jax plan experiments/tpu/llama2_7b_lora_v5e1.py --stage sft --topology v5e-1
"""

from dataclasses import replace

from experiments.tpu import llama2_7b_lora_v5e8

PARENT = llama2_7b_lora_v5e8.CONFIG
CONFIG = replace(PARENT, accumulate=8, seq_len=2048, lora=replace(PARENT.lora, base="int8"))
