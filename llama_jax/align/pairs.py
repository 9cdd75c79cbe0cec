"""Batches of preference pairs: what reward models and direct preference optimisation read.

A batch of B pairs holds tokens, segment_ids, positions int32 and loss_mask uint8 [B,2,T], the
chosen answer first; rating int32 [B] (-1 unrated), margin float32 [B] (NaN if none is given), safe
int8 [B,2] (-1 where nobody said).
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from llama_jax.data.records import RATINGS
from llama_jax.train.objective import Batch, Mean


def abstract_pairs(batch_size: int, seq_len: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and types of a batch."""
    shapes = {
        **dict.fromkeys(("tokens", "segment_ids", "positions"), ((2, seq_len), jnp.int32)),
        "loss_mask": ((2, seq_len), jnp.uint8),
        "rating": ((), jnp.int32),
        "margin": ((), jnp.float32),
        "safe": ((2,), jnp.int8),
    }
    return {k: jax.ShapeDtypeStruct((batch_size, *s), d) for k, (s, d) in shapes.items()}


def answer_rows(batch: Mapping[str, Any]) -> dict[str, Any]:
    """The arrays of tokens, of jax or NumPy, as [2B,T]: of a pair first the chosen answer."""
    names = ("tokens", "segment_ids", "positions", "loss_mask")
    return {name: batch[name].reshape(-1, batch[name].shape[-1]) for name in names}


def is_pair(batch: Batch) -> Bool[Array, " B"]:
    """False for rows that only fill the last batch of an evaluation."""
    return batch["segment_ids"][:, 0, 0] > 0


def accuracy_by_rating(
    better: Bool[Array, " B"], pairs: Bool[Array, " B"], batch: Batch
) -> dict[str, Mean]:
    """`accuracy_significantly`, ...: how often the chosen answer was found to be the better one."""
    return {
        f"accuracy_{name}": Mean.over(better, pairs & (batch["rating"] == rating))
        for rating, name in enumerate(RATINGS)
    }
