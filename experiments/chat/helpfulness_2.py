"""The reward model for helpfulness of `make chat`, once it has seen the newest model's answers too.

What rejection sampling made of the model is beyond what the first one can tell apart; the paper's
annotators compare answers of the newest model every week (Llama 2, section 3.2.1).

Command   llama-jax reward experiments/chat/helpfulness_2.py
Hardware  two CPU cores, a minute
"""

from dataclasses import replace

from experiments.chat import helpfulness

CONFIG = replace(
    helpfulness.CONFIG,
    workdir="runs/chat/helpfulness_2",
    init_from="runs/chat/helpfulness",
    steps=240,
    eval_every=240,
    optimizer=replace(helpfulness.CONFIG.optimizer, learning_rate=4e-4, warmup_steps=20),
    data=replace(
        helpfulness.CONFIG.data,
        dataset="runs/chat/comparisons_2.jsonl=0.5,runs/chat/comparisons.jsonl=0.2,tales:20000=0.3",
    ),
)
