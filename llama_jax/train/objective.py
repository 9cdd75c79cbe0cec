"""The training objective as a value: the one thing that differs between stages.

The step (`step.py`) and the loop (`loop.py`) know no loss. An objective says what a batch is, what
its loss is and what the loss is divided by; next-token prediction, fine-tuning on answers and
reward modelling are three of them.

It imports jax only, like everything that a step needs.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from llama_jax.config import ModelConfig

Batch = Mapping[str, Array]
"""Arrays with rows B as their first axis; those with an entry per token end with T."""
Forward = Callable[..., tuple[Array, Any]]
"""(tokens, positions, segment_ids, *, zigzag=False) -> normed residual stream [B,T,D] and head:
`model.llama.hidden` with the trained weights."""


class Mean(NamedTuple):
    """An average over a whole batch, as a sum and a count that add up over parts: float32
    scalars."""

    total: Array
    count: Array

    @staticmethod
    def over(values: Array, where: Bool[Array, "*shape"]) -> "Mean":
        """Over the values where the mask is true; other values have no influence."""
        total = jnp.sum(jnp.where(where, values, 0), dtype=jnp.float32)
        return Mean(total, jnp.sum(where, dtype=jnp.float32))


@runtime_checkable
class Objective(Protocol):
    """A loss over batches of one model. Frozen and hashable: compiled steps are cached by it."""

    @property
    def model(self) -> ModelConfig:
        """The model whose parameters are trained."""
        ...

    def trains(self, name: str) -> bool:
        """Whether the parameter of this name ("embed", "layers/q", ...) is trained; frozen ones
        have no gradient and no optimizer state."""
        ...

    def abstract_batch(self, batch_size: int, seq_len: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and types of a global batch of this many rows of this many tokens."""
        ...

    def weights(self, batch: Batch) -> Any:
        """The denominators of the averages over a whole global batch, such as its number of
        targets."""
        ...

    def loss(
        self, forward: Forward, batch: Batch, weights: Any
    ) -> tuple[Float[Array, ""], dict[str, Mean]]:
        """The share of the mean loss that a part of a batch contributes, and further averages to
        report.

        weights: those of the whole batch, so that parts add up to it however it is split.
        """
        ...

    def examine(self, forward: Forward, batch: Batch) -> dict[str, Mean]:
        """The averages of an evaluation, "loss" among them."""
        ...
