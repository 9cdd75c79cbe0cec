"""Context distillation of `make chat`: what a safe preprompt makes better is learned without it.

Starts from the result of rejection sampling, as PPO, GRPO and DPO do. Unkind requests are answered
with one of the preprompts of the tales and without; what the safety model scores higher is learned.

Command   llama-jax distill-context experiments/chat/distill.py
Hardware  two CPU cores, after `make chat`
"""

from experiments.chat import base
from llama_jax.config import CheckpointConfig, DataConfig, OptimizerConfig
from llama_jax.config_align import DistillConfig
from llama_jax.data.corpora.tales.tasks import PREPROMPTS

CONFIG = DistillConfig(
    workdir="runs/chat/distill",
    init_from="runs/chat/rejection",
    safety="runs/chat/safety",
    preprompts=PREPROMPTS,
    max_new_tokens=104,
    steps=48,
    batch_size=8,
    seq_len=208,
    log_every=12,
    eval_every=0,
    model=base.CONFIG.model,
    optimizer=OptimizerConfig(learning_rate=3e-4, warmup_steps=4, eps=1e-8),
    data=DataConfig(dataset="tales_safety:2000", cache_dir=base.CACHE),
    checkpoint=CheckpointConfig(every=24, keep=1),
)
