"""Pretrain Llama 2 70B on two slices, joined by the data-centre network.

Differs from llama2_70b.py by the mesh: each slice holds the whole model, split over its own chips,
and only gradients cross the slower network, once a micro-batch. Two micro-batches of one row a
chip on twice the chips make the same batch. For n slices: `--mesh.slice n --accumulate 4/n`.

Command   llama-jax train experiments/tpu/llama2_70b_multislice.py --workdir /mnt/share/70b \\
              --data.dataset corpus/ --data.tokenizer llama2/tokenizer.model
Hardware  two v5e-256, or two slices of 256 chips of another generation; not run on them yet
Predicted llama-jax plan experiments/tpu/llama2_70b_multislice.py --topology v5e-256x2
"""

from dataclasses import replace

from experiments.tpu import llama2_70b
from llama_jax.config import MeshConfig

CONFIG = replace(
    llama2_70b.CONFIG,
    workdir="runs/llama2_70b_multislice",
    accumulate=2,
    mesh=MeshConfig(slice=2, fsdp=-1),
)
