"""PPO of Llama 2 7B as the paper does, with two reward models, on 512 answers an iteration.

Touvron et al. 2023b, section 3.2.3: minibatches of 64, one update each, clip 0.2, KL weight 0.01,
constant 1e-6, decay 0.1, 200 to 400 iterations. Policy, value, reference and two reward models
share the mesh; `tensor` splits what is whole on every chip to draw answers.

Command   llama-jax ppo experiments/tpu/llama2_7b_ppo.py \\
              --workdir gs://my-runs/llama2-7b-ppo \\
              --init-from gs://my-runs/llama2-7b-sft \\
              --helpfulness gs://my-runs/llama2-7b-helpfulness \\
              --safety gs://my-runs/llama2-7b-safety --data.dataset gs://my-data/prompts.jsonl
Hardware  v5e-64, which is 64 chips; not run on it yet
Predicted 15.6 of 15.8 GiB a chip and 61.15 s an iteration or more:
              llama-jax plan experiments/tpu/llama2_7b_ppo.py --stage ppo --topology v5e-64
"""

from dataclasses import replace

from llama_jax.config import CheckpointConfig, DataConfig, MeshConfig, OptimizerConfig
from llama_jax.config_align import PpoConfig
from llama_jax.model.presets import LLAMA2_7B

CONSTANT = OptimizerConfig(learning_rate=1e-6, schedule="constant", warmup_steps=0)
CONFIG = PpoConfig(
    workdir="runs/llama2_7b_ppo",
    init_from="runs/llama2_7b_sft",
    helpfulness="runs/llama2_7b_helpfulness",
    safety="runs/llama2_7b_safety",
    steps=400,
    batch_size=512,
    minibatch=64,
    seq_len=4096,
    max_new_tokens=1024,
    wave_rows=256,
    beta=0.01,
    model=replace(LLAMA2_7B, remat="full"),
    optimizer=CONSTANT,
    value_optimizer=CONSTANT,
    data=DataConfig(dataset="prompts.jsonl"),
    mesh=MeshConfig(fsdp=-1, tensor=4),
    checkpoint=CheckpointConfig(every=10, keep=1),
)
