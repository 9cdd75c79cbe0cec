"""Pretrain Llama 2 70B on two slices, joined by the data-centre network.

Differs from llama2_70b.py by the mesh: each slice holds the whole model, split over its own chips,
and only gradients cross the slower network, once a micro-batch. Two micro-batches of one row a
chip on twice the chips make the same batch. For n slices: `--mesh.slice n --accumulate 4/n`.

Command   llama-jax train experiments/tpu/llama2_70b_multislice.py --workdir gs://my-runs/70b \\
              --data.dataset gs://my-text/ --data.tokenizer gs://my-text/tokenizer.model
Hardware  two v5e-256, or two slices of 256 chips of another generation; not run on them yet
Predicted 13.0 of 15.8 GiB a chip and 22.28 s a step or more:
              llama-jax plan experiments/tpu/llama2_70b_multislice.py --topology v5e-256x2
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
