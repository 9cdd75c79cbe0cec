"""Checkpoints and model folders: any tree of arrays saved, verified and restored."""

from llama_jax.checkpoint.manager import (
    Checkpointer,
    Report,
    Restored,
    load_params,
    newest_sound,
    save_model,
    saved_steps,
    verify,
)
from llama_jax.checkpoint.storage import CheckpointError

__all__ = [
    "CheckpointError",
    "Checkpointer",
    "Report",
    "Restored",
    "load_params",
    "newest_sound",
    "save_model",
    "saved_steps",
    "verify",
]
