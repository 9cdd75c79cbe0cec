"""A small Llama 2 on text of your own: an experiment to start from.

Command   llama-jax new FOLDER        copies this file to FOLDER/experiment.py
          llama-jax train template    trains it as it is
Hardware  two CPU cores, a few minutes
Expected  stories that begin well; then change what you like, one line at a time

Every setting is listed by `llama-jax train experiment.py --help`, and each can be given on the
command line instead: `--steps 2000 --model.num-layers 4`. Run the same command again to resume.
"""

from dataclasses import replace

from llama_jax.config import CheckpointConfig, DataConfig, OptimizerConfig, TrainConfig
from llama_jax.model.presets import STORIES_260K

CONFIG = TrainConfig(
    # Checkpoints, metrics, samples and the report go here. gs:// works too.
    workdir="runs/mine",
    # Each step trains on batch_size rows of seq_len tokens.
    steps=1000,
    batch_size=8,
    seq_len=256,
    # Every so many steps: measure the validation loss and continue these prompts.
    eval_every=500,
    sample_prompts=("Once upon a time", "One day"),
    # A preset with some fields replaced. llama_jax.model.presets has Llama 2 7B to 70B, too.
    model=replace(
        STORIES_260K,
        vocab_size=2048,  # a tokenizer of this size is trained on your text
        d_model=128,  # width
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,  # fewer than num_heads: grouped-query attention
        head_dim=32,
        d_ff=352,  # width of the MLP
    ),
    # Warm-up, then a cosine to a tenth. Smaller models take larger learning rates.
    optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=100),
    # Your text: a .jsonl or .txt file, a folder of them, hf:NAME, tfds:NAME, or a mixture such as
    # "tales=0.5,my.jsonl=0.5". "tales" are stories that are made on your machine.
    data=DataConfig(dataset="tales:5000"),
    # Where a run resumes from, and what llama-jax generate reads.
    checkpoint=CheckpointConfig(every=500, keep=2),
    # Start from a trained model instead of from nothing, with its shape as `model`:
    # init_from="models/llama2-7b",
    # Split the work over several devices; -1 means all that are left:
    # mesh=MeshConfig(fsdp=-1),
)
