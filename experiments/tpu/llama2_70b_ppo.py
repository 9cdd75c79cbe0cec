"""PPO of Llama 2 70B as the paper does, with two reward models, on 512 answers an iteration.

Touvron et al. 2023b, section 3.2.3: minibatches of 64, one update each, clip 0.2, KL weight 0.005,
constant 1e-6, decay 0.1, 200 to 400 iterations. Policy, value, reference and two reward models
share the mesh; `tensor` splits what is whole on every chip to draw answers.

Command   llama-jax ppo experiments/tpu/llama2_70b_ppo.py \\
              --workdir gs://my-runs/llama2-70b-ppo \\
              --init-from gs://my-runs/llama2-70b-sft \\
              --helpfulness gs://my-runs/llama2-70b-helpfulness \\
              --safety gs://my-runs/llama2-70b-safety --data.dataset gs://my-data/prompts.jsonl
Hardware  v5p-256, which is 128 chips; not run on it yet
Predicted 39.1 of 95.7 GiB a chip and 75.57 s an iteration or more:
              llama-jax plan experiments/tpu/llama2_70b_ppo.py --stage ppo --topology v5p-256
"""

from dataclasses import replace

from experiments.tpu import llama2_7b_ppo
from llama_jax.config import MeshConfig
from llama_jax.model.presets import LLAMA2_70B

PARENT = llama2_7b_ppo.CONFIG
CONFIG = replace(
    PARENT,
    workdir="runs/llama2_70b_ppo",
    init_from="runs/llama2_70b_sft",
    helpfulness="runs/llama2_70b_helpfulness",
    safety="runs/llama2_70b_safety",
    wave_rows=512,
    beta=0.005,
    model=replace(LLAMA2_70B, remat="full"),
    mesh=MeshConfig(fsdp=-1, tensor=8),
)
