"""A reward model of Llama 2 70B as the paper trains it, on 512 pairs of answers a step.

Touvron et al. 2023b, section 3.2.2: one epoch over the pairs, peak 5e-6, cosine to a tenth, 3 %
warm-up, a margin by rating. Two rows of 4096 tokens a pair, 4 micro-batches. `steps` is
one epoch of the paper's 1,418,091 pairs of its own.

Command   llama-jax reward experiments/tpu/llama2_70b_reward.py \\
              --workdir gs://my-runs/llama2-70b-reward --init-from gs://my-runs/llama2-70b-sft \\
              --data.dataset gs://my-data/pairs.jsonl
Hardware  v5p-256, which is 128 chips; not run on it yet
Predicted 23.4 of 95.7 GiB a chip and 38.14 s a step or more:
              llama-jax plan experiments/tpu/llama2_70b_reward.py --stage reward --topology v5p-256
"""

from dataclasses import replace

from experiments.tpu import llama2_7b_reward
from llama_jax.model.presets import LLAMA2_70B

PARENT = llama2_7b_reward.CONFIG
CONFIG = replace(
    PARENT,
    workdir="runs/llama2_70b_reward",
    init_from="runs/llama2_70b_sft",
    accumulate=4,
    model=replace(LLAMA2_70B, head="score", remat="full"),
    optimizer=replace(PARENT.optimizer, learning_rate=5e-6),
)
