"""Low-rank adapters of Llama 2 7B on four chips; differs from v5e8 by two micro-batches a step.

A bucket holds a converted model: `llama-jax convert Llama-2-7b-hf llama2-7b`, then
`gcloud storage cp --recursive llama2-7b gs://my-models/`.

Command   llama-jax sft experiments/tpu/llama2_7b_lora_v5e4.py \\
              --workdir gs://my-runs/llama2-7b-lora \\
              --init-from gs://my-models/llama2-7b --data.dataset gs://my-data/dialogues.jsonl
Hardware  v5e-4, which is 4 chips; not run on it yet
Predicted 6.8 of 15.8 GiB a chip and 1.72 s a step or more:
              llama-jax plan experiments/tpu/llama2_7b_lora_v5e4.py --stage sft --topology v5e-4
"""

from dataclasses import replace

from experiments.tpu import llama2_7b_lora_v5e8

CONFIG = replace(llama2_7b_lora_v5e8.CONFIG, accumulate=2)
