"""Loss, perplexity and bits per byte of a model on a validation set."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import numpy as np
from jax.sharding import Mesh

from llama_jax.data.loader import Loader
from llama_jax.data.packing import target_bytes
from llama_jax.parallel.arrays import shard_batch, to_host


@dataclass(frozen=True)
class Evaluation:
    """Averages over the targets of a validation set."""

    loss: float
    """Nats per token."""
    targets: int
    """Tokens that were predicted."""
    bytes: int
    """UTF-8 bytes of the text that they spell."""

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        return math.exp(self.loss)

    @property
    def bits_per_byte(self) -> float:
        """Bits needed to code one byte of the text; comparable between tokenizers."""
        return self.loss * self.targets / math.log(2) / self.bytes


def evaluate(
    eval_step: Callable,
    params: dict,
    loader: Loader,
    byte_lengths: np.ndarray,
    mesh: Mesh,
    *,
    max_batches: int = 0,
    beat: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Run `eval_step` (see step.jit_eval_step) over a loader that does not shuffle.

    byte_lengths: `Tokenizer.byte_lengths`. max_batches 0 takes all. `beat` is called each batch.
    """
    batches = min(len(loader), max_batches) if max_batches else len(loader)
    total, targets, size = 0.0, 0.0, 0
    with loader.iterate() as stream:
        for _ in range(batches):
            batch = next(stream)
            size += target_bytes(batch, byte_lengths)
            loss, count = jax.device_get(eval_step(params, shard_batch(batch, mesh)))
            total, targets = total + float(loss), targets + float(count)
            beat()
    if jax.process_count() > 1:
        size = int(np.sum(to_host(np.array([size]))))
    return Evaluation(loss=total / max(targets, 1), targets=int(targets), bytes=max(size, 1))
