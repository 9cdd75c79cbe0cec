"""One optimizer update as a pure function; jitted, sharded and donated by the caller.

Imports jax, flax and optax only, so that it runs where nothing else is installed.
"""

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float

from llama_jax.config import ModelConfig, TrainConfig, require
from llama_jax.model.llama import hidden
from llama_jax.model.precision import slots_of
from llama_jax.ops.loss import chunk_length, cross_entropy, next_token_targets
from llama_jax.ops.ring_attention import zigzag
from llama_jax.parallel.arrays import BATCH_AXES
from llama_jax.parallel.fsdp import by_positions, by_rows
from llama_jax.parallel.rules import constrain, named_sharding, num_shards
from llama_jax.parallel.torus import on_torus, stages_of
from llama_jax.train.optimizer import applied_updates
from llama_jax.train.state import TrainState, shardings_of

Batch = Mapping[str, Array]
"""tokens, segment_ids, positions: int32 [B,T]; loss_mask: uint8 [B,T]."""


BATCH_DTYPES = {
    "tokens": jnp.int32,
    "segment_ids": jnp.int32,
    "positions": jnp.int32,
    "loss_mask": jnp.uint8,
}


def abstract_batch(config: TrainConfig, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """The global batch of an experiment as ShapeDtypeStructs with shardings."""
    sharding = named_sharding(BATCH_AXES, mesh)
    shape = (config.batch_size, config.seq_len)
    return {k: jax.ShapeDtypeStruct(shape, d, sharding=sharding) for k, d in BATCH_DTYPES.items()}


class StepMetrics(NamedTuple):
    """What one update reports, all scalars."""

    loss: Array
    """float32: mean next-token loss in nats, the penalty of z_loss included."""
    grad_norm: Array
    """float32: global norm of the gradient, before clipping."""
    skipped: Array
    """int32: non-finite updates in a row, this one included."""
    updates: Array
    """int32: updates applied before this one; the learning rate follows it."""


def summed_loss(
    params: dict, batch: Batch, *, cfg: ModelConfig, z_loss: float, slots: dict | None = None
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Next-token loss summed over the batch's targets in nats, and their number.

    Where the mesh splits rows, their positions are dealt out so that every device has as much of
    the causal attention to do; the sum is over all of them, in whatever order.
    """
    targets, mask = batch_targets(batch)
    arrays = (batch["tokens"], batch["positions"], batch["segment_ids"], targets, mask)
    n = ring_size(cfg, targets.shape[1])
    if n > 1:
        arrays = [constrain(zigzag(a, n), BATCH_AXES) for a in arrays]
    tokens, positions, segment_ids, targets, mask = arrays
    x, head = hidden(
        params,
        tokens,
        config=cfg,
        positions=positions,
        segment_ids=segment_ids,
        zigzag=n > 1,
        slots=slots,
    )

    def loss(w, x, targets, mask):
        rows = -(-x.shape[0] // num_shards("batch"))
        chunk = chunk_length(rows, x.shape[1], cfg.vocab_size)
        found = cross_entropy(x, w["head"], targets, mask, z_loss=z_loss, chunk=chunk)
        return tuple(jnp.reshape(a, (1, 1)) for a in found)

    run = partial(by_positions, loss)
    found = by_rows(run, {"head": head}, {"head": ("embed", "vocab")}, x, targets, mask)
    return jnp.sum(found[0]), jnp.sum(found[1])


def ring_size(cfg: ModelConfig, T: int) -> int:
    """Devices that a row's keys travel around; 1 where rows are whole or XLA splits attention.

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
        f"mesh.sequence={n}, two parts a device",
    )
    return 1


def batch_targets(batch: Batch) -> tuple[Array, Array]:
    """`next_token_targets` of a batch."""
    return next_token_targets(
        batch["tokens"], batch["segment_ids"], batch["loss_mask"].astype(bool)
    )


def mean_loss_and_gradient(
    params: dict, batch: Batch, *, cfg: ModelConfig, accumulate: int, z_loss: float
) -> tuple[Float[Array, ""], dict]:
    """Mean loss over the targets of the whole batch, and its gradient in the parameters' types.

    The batch is taken in `accumulate` micro-batches; all of them are divided by the targets of the
    whole, however they fall.
    """
    count = jnp.maximum(jnp.sum(batch_targets(batch)[1], dtype=jnp.float32), 1)

    def share(slots, micro):
        return summed_loss(params, micro, cfg=cfg, z_loss=z_loss, slots=slots)[0] / count

    slots = slots_of(cfg)

    def add(carry, micro):
        found = jax.value_and_grad(share)(slots, micro)
        return jax.tree.map(lambda a, b: a + b.astype(a.dtype), carry, found), None

    if accumulate == 1:
        loss, gradient = jax.value_and_grad(share)(slots, batch)
    else:
        # In float32 whatever the parameters are: a sum of many terms in bfloat16 stands still.
        zeros = jax.tree.map(lambda p: jnp.zeros_like(p, jnp.float32), params)
        parts = micro_batches(batch, accumulate)
        loss, gradient = jax.lax.scan(add, (jnp.float32(0), zeros), parts)[0]
    return loss, jax.tree.map(lambda g, p: g.astype(p.dtype), gradient, params)


def micro_batches(batch: Batch, count: int) -> dict[str, Array]:
    """[B,T] as [count,B/count,T], rows interleaved, so that each device keeps the rows it has."""

    def interleave(a):
        return jnp.moveaxis(a.reshape(a.shape[0] // count, count, *a.shape[1:]), 1, 0)

    return jax.tree.map(interleave, dict(batch))


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    cfg: ModelConfig,
    tx: optax.GradientTransformation,
    accumulate: int,
    z_loss: float,
) -> tuple[TrainState, StepMetrics]:
    """One update from one global batch.

    A non-finite gradient leaves parameters and optimizer as they were and is counted.
    """
    loss, grads = mean_loss_and_gradient(
        state.params, batch, cfg=cfg, accumulate=accumulate, z_loss=z_loss
    )
    norm = optax.tree.norm(grads)
    finite = jnp.isfinite(norm)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)

    def keep(new, old):
        return jnp.where(finite, new, old)

    skipped = jnp.where(finite, 0, state.skipped + 1).astype(jnp.int32)
    new = TrainState(
        step=state.step + 1,
        params=jax.tree.map(keep, params, state.params),
        opt_state=jax.tree.map(keep, opt_state, state.opt_state),
        skipped=skipped,
    )
    return new, StepMetrics(loss, norm, skipped, applied_updates(state.opt_state))


def jit_train_step(config: TrainConfig, tx: optax.GradientTransformation, abstract: TrainState):
    """`train_step` of an experiment, jitted: the state keeps its layout and its memory."""
    stages = stages_of(abstract.step.sharding.mesh)
    static = {"accumulate": config.accumulate, "z_loss": config.z_loss}

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        with on_torus(stages):
            return train_step(state, batch, cfg=config.model, tx=tx, **static)

    return jax.jit(step, donate_argnums=0, out_shardings=(shardings_of(abstract), None))


def jit_eval_step(cfg: ModelConfig, accumulate: int = 1):
    """`summed_loss` without a penalty, jitted: (params, batch) -> loss in nats, targets.

    In as many micro-batches as the training step: what fits there fits here.
    """

    def step(params: dict, batch: Batch) -> tuple[Array, Array]:
        def add(sums, micro):
            found = summed_loss(params, micro, cfg=cfg, z_loss=0.0)
            return jax.tree.map(jnp.add, sums, found), None

        start = jnp.float32(0), jnp.float32(0)
        return jax.lax.scan(add, start, micro_batches(batch, accumulate))[0]

    return jax.jit(step)
