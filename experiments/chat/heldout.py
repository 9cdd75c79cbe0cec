"""A second model for helpfulness, on the other half: what a policy never met, to judge it by.

Command   llama-jax reward experiments/chat/heldout.py
Hardware  two CPU cores, a few minutes
"""

from dataclasses import replace

from experiments.chat import helpfulness, helpfulness_2

CONFIG = replace(
    helpfulness.CONFIG,
    workdir="runs/chat/heldout",
    half="second",
    data=replace(
        helpfulness_2.CONFIG.data,
        dataset="runs/chat/comparisons.jsonl=0.3,runs/chat/comparisons_2.jsonl=0.4,tales:20000=0.3",
    ),
    seed=1,
    steps=300,
    eval_every=300,
)
