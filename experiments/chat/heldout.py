"""A second model for helpfulness, on the other half: what a policy never met, to judge it by.

Command   llama-jax reward experiments/chat/heldout.py
Hardware  two CPU cores, a few minutes
"""

from dataclasses import replace

from experiments.chat import helpfulness

CONFIG = replace(
    helpfulness.CONFIG,
    workdir="runs/chat/heldout",
    half="second",
    seed=1,
    steps=400,
    eval_every=400,
)
