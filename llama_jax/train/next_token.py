"""The objective of pretraining and fine-tuning: next-token prediction under a loss mask."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from llama_jax.config import ModelConfig, require
from llama_jax.ops.loss import chunk_length, cross_entropy, next_token_targets
from llama_jax.ops.ring_attention import zigzag
from llama_jax.parallel.arrays import BATCH_AXES
from llama_jax.parallel.fsdp import by_positions, by_rows
from llama_jax.parallel.rules import constrain, num_shards
from llama_jax.train.objective import Batch, Forward, Mean

BATCH_DTYPES = {
    "tokens": jnp.int32,
    "segment_ids": jnp.int32,
    "positions": jnp.int32,
    "loss_mask": jnp.uint8,
}


@dataclass(frozen=True)
class NextToken:
    """Mean loss in nats over the targets of a batch: the tokens that `loss_mask` marks.

    A batch holds tokens, segment_ids, positions int32 and loss_mask uint8, each [B,T].
    """

    model: ModelConfig
    z_loss: float = 0.0
    """Weight of the squared log-partition."""

    def trains(self, name: str) -> bool:
        """All parameters are trained."""
        return True

    def abstract_batch(self, batch_size: int, seq_len: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Four arrays [B,T]."""
        shape = (batch_size, seq_len)
        return {k: jax.ShapeDtypeStruct(shape, d) for k, d in BATCH_DTYPES.items()}

    def weights(self, batch: Batch) -> Float[Array, ""]:
        """The number of targets."""
        return jnp.maximum(jnp.sum(batch_targets(batch)[1], dtype=jnp.float32), 1)

    def loss(
        self, forward: Forward, batch: Batch, weights: Float[Array, ""]
    ) -> tuple[Float[Array, ""], dict[str, Mean]]:
        """`summed_loss` divided by the number of targets, including the z_loss penalty."""
        return summed_loss(forward, batch, cfg=self.model, z_loss=self.z_loss)[0] / weights, {}

    def examine(self, forward: Forward, batch: Batch) -> dict[str, Mean]:
        """The loss without the z_loss penalty."""
        return {"loss": Mean(*summed_loss(forward, batch, cfg=self.model, z_loss=0.0))}


def summed_loss(
    forward: Forward, batch: Batch, *, cfg: ModelConfig, z_loss: float
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Next-token loss summed over the batch's targets in nats, and their number.

    Where the mesh splits rows, positions are reordered so that every device has an equal share of
    the causal attention; the sum is over all of them, so the order does not matter.
    """
    targets, mask = batch_targets(batch)
    arrays = (batch["tokens"], batch["positions"], batch["segment_ids"], targets, mask)
    n = ring_size(cfg, targets.shape[1])
    if n > 1:
        arrays = [constrain(zigzag(a, n), BATCH_AXES) for a in arrays]
    tokens, positions, segment_ids, targets, mask = arrays
    x, head = forward(tokens, positions, segment_ids, zigzag=n > 1)

    def loss(w, x, targets, mask):
        rows = -(-x.shape[0] // num_shards("batch"))
        chunk = chunk_length(rows, x.shape[1], cfg.vocab_size)
        found = cross_entropy(x, w["head"], targets, mask, z_loss=z_loss, chunk=chunk)
        return tuple(jnp.reshape(a, (1, 1)) for a in found)

    run = partial(by_positions, loss)
    found = by_rows(run, {"head": head}, {"head": ("embed", "vocab")}, x, targets, mask)
    return jnp.sum(found[0]), jnp.sum(found[1])


def ring_size(cfg: ModelConfig, T: int) -> int:
    """Number of devices in the ring that a row's keys travel; 1 if rows are whole or XLA splits
    attention.

    Raises:
      InputError: Pallas attention was asked for and T has no two equal parts for each device.
    """
    n = num_shards("seq")
    if n == 1 or cfg.attention in ("xla", "cudnn"):
        return 1
    if T % (2 * n) == 0:
        return n
    require(
        cfg.attention == "auto",
        f"seq_len={T} must be a multiple of {2 * n} for model.attention={cfg.attention} on "
        f"mesh.sequence={n}, two parts per device",
    )
    return 1


def batch_targets(batch: Batch) -> tuple[Array, Array]:
    """`next_token_targets` of a batch."""
    return next_token_targets(
        batch["tokens"], batch["segment_ids"], batch["loss_mask"].astype(bool)
    )
