"""Batches of preference pairs, for reward models and direct preference optimisation.

A batch holds tokens, segment_ids, positions int32 and loss_mask uint8 [B,2,T], the chosen answers
first: segment k of both rows is a pair, of which there are up to K. Its annotations are rating
int32 [B,K] (-1 unrated), margin float32 [B,K] (NaN if none is given) and safe int8 [B,K,2]
(-1 unlabelled). Losses see P = B*K places for pairs, some of them empty.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from llama_jax.align.segments import spans
from llama_jax.data.records import RATINGS
from llama_jax.train.objective import Batch, Mean


class Pairs(NamedTuple):
    """The labels of the pairs of a batch."""

    there: Bool[Array, " P"]
    """False for empty places, and for rows that only fill up the last batch of an evaluation."""
    rating: Int[Array, " P"]
    margin: Float[Array, " P"]
    safe: Int[Array, "P 2"]

    @property
    def labelled(self) -> Bool[Array, "P 2"]:
        """Answers that have a safety label."""
        return (self.safe >= 0) & self.there[:, None]


def pairs_of(batch: Batch) -> Pairs:
    """The pairs of a batch, in order."""
    _, lengths = spans(batch["segment_ids"][:, 0], per_row(batch))
    return Pairs(
        (lengths > 0).reshape(-1),
        batch["rating"].reshape(-1),
        batch["margin"].reshape(-1),
        batch["safe"].reshape(-1, 2),
    )


def per_row(batch: Batch) -> int:
    """K."""
    return batch["rating"].shape[1]


def by_pair(found: Any) -> Any:
    """Per-answer values, an array [2B,K] of jax or NumPy, as [P,2]."""
    K = found.shape[1]
    return found.reshape(-1, 2, K).swapaxes(1, 2).reshape(-1, 2)


def abstract_pairs(
    batch_size: int, seq_len: int, per_row: int = 1
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and types of a batch."""
    shapes = {
        **dict.fromkeys(("tokens", "segment_ids", "positions"), ((2, seq_len), jnp.int32)),
        "loss_mask": ((2, seq_len), jnp.uint8),
        "rating": ((per_row,), jnp.int32),
        "margin": ((per_row,), jnp.float32),
        "safe": ((per_row, 2), jnp.int8),
    }
    return {k: jax.ShapeDtypeStruct((batch_size, *s), d) for k, (s, d) in shapes.items()}


def answer_rows(batch: Mapping[str, Any]) -> dict[str, Any]:
    """The arrays of tokens, of jax or NumPy, as [2B,T]: rows alternate between chosen and rejected
    answers."""
    names = ("tokens", "segment_ids", "positions", "loss_mask")
    return {name: batch[name].reshape(-1, batch[name].shape[-1]) for name in names}


def accuracy_by_rating(better: Bool[Array, " P"], pairs: Pairs) -> dict[str, Mean]:
    """`accuracy_significantly`, ...: the share of pairs in which the chosen answer scored
    higher."""
    return {
        f"accuracy_{name}": Mean.over(better, pairs.there & (pairs.rating == rating))
        for rating, name in enumerate(RATINGS)
    }
