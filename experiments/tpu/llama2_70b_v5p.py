"""Pretrain Llama 2 70B on 64 chips of v5p, whose 95 GB hold what the others must recompute.

Differs from llama2_70b.py by the slice, and by what the backward pass finds kept: q, k, v and the
outputs of attention, so that it recomputes the MLP but never attention. Eight micro-batches of two
rows a chip: each one gathers all weights once more, so they are as few as memory allows.

Command   llama-jax train experiments/tpu/llama2_70b_v5p.py --workdir gs://my-runs/llama2-70b \\
              --data.dataset gs://my-text/ --data.tokenizer gs://my-text/tokenizer.model
Hardware  v5p-128, which is 64 chips; not run on it yet
Predicted 54.5 of 95.7 GiB a chip and 73.81 s a step or more:
              llama-jax plan experiments/tpu/llama2_70b_v5p.py --topology v5p-128
"""

from dataclasses import replace

from experiments.tpu import llama2_70b

PARENT = llama2_70b.CONFIG
CONFIG = replace(PARENT, accumulate=8, model=replace(PARENT.model, remat="qkvo"))
