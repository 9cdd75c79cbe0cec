"""One optimizer update of any objective as a pure function; jitted, sharded and donated.

Imports jax, flax and optax only, so that it runs where nothing else is installed.
"""

from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float

from llama_jax.config import TrainConfig
from llama_jax.model.llama import hidden
from llama_jax.model.precision import gradient_slots
from llama_jax.parallel.arrays import abstract_with, batch_sharding
from llama_jax.parallel.torus import on_torus, stages_of
from llama_jax.train.objective import Batch, Forward, Mean, Objective
from llama_jax.train.optimizer import applied_updates
from llama_jax.train.state import (
    TrainState,
    saved_part,
    select,
    shardings_of,
    trained_table,
    with_updates,
)


class StepMetrics(NamedTuple):
    """The results of one update, all scalars."""

    loss: Array
    """float32: mean loss of the whole batch, penalties included."""
    grad_norm: Array
    """float32: global norm of the gradient, before clipping."""
    skipped: Array
    """int32: consecutive non-finite updates, this one included."""
    updates: Array
    """int32: updates applied before this one, by which the learning rate is chosen."""
    means: dict[str, Array]
    """float32: the objective's further averages."""


def abstract_batch(
    config: TrainConfig, objective: Objective, mesh: Mesh
) -> dict[str, jax.ShapeDtypeStruct]:
    """The global batch of an experiment as ShapeDtypeStructs with shardings."""
    batch = objective.abstract_batch(config.batch_size, config.seq_len)
    T = batch["tokens"].shape[-1]
    return abstract_with(batch, {k: batch_sharding(mesh, a.shape, T) for k, a in batch.items()})


def forward_of(objective: Objective, params: Any, slots: Any = None) -> Forward:
    """The objective's model as a function of a batch's tokens."""

    def forward(tokens, positions, segment_ids, *, zigzag=False):
        return hidden(
            params,
            tokens,
            config=objective.model,
            positions=positions,
            segment_ids=segment_ids,
            zigzag=zigzag,
            slots=slots,
        )

    return forward


def mean_loss_and_gradient(
    params: dict, batch: Batch, *, objective: Objective, accumulate: int
) -> tuple[tuple[Float[Array, ""], dict[str, Mean]], Any]:
    """Mean loss over the whole batch, further averages, and the gradient of the trained parameters.

    The batch is processed in `accumulate` micro-batches, each divided by the weights of the whole
    batch, so the split does not matter. The gradient has the parameters' dtypes.
    """
    weights = objective.weights(batch)
    table = trained_table(objective)

    def share(slots, micro):
        return objective.loss(forward_of(objective, params, slots), micro, weights)

    def value_and_gradient(micro):
        return jax.value_and_grad(share, has_aux=True)(gradient_slots(table, cfg), micro)

    cfg = objective.model
    trained = select(params, objective)
    if accumulate == 1:
        found, gradient = value_and_gradient(batch)
    else:
        # In float32 whatever the parameters are: a sum of many terms in bfloat16 stands still.
        parts = micro_batches(batch, accumulate)
        shapes = jax.eval_shape(value_and_gradient, jax.tree.map(lambda a: a[0], parts))[0]
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        start = (zeros, jax.tree.map(lambda p: jnp.zeros_like(p, jnp.float32), trained))

        def add(carry, micro):
            new = value_and_gradient(micro)
            return jax.tree.map(lambda a, b: a + b.astype(a.dtype), carry, new), None

        found, gradient = jax.lax.scan(add, start, parts)[0]
    return found, jax.tree.map(lambda g, p: g.astype(p.dtype), gradient, trained)


def micro_batches(batch: Batch, count: int) -> dict[str, Array]:
    """[B,...] as [count,B/count,...], rows interleaved, so that each device keeps its rows."""

    def interleave(a):
        return jnp.moveaxis(a.reshape(a.shape[0] // count, count, *a.shape[1:]), 1, 0)

    return jax.tree.map(interleave, dict(batch))


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    objective: Objective,
    tx: optax.GradientTransformation,
    accumulate: int,
) -> tuple[TrainState, StepMetrics]:
    """One update from one global batch.

    If the gradient is not finite, parameters and optimizer state stay as they are and `skipped`
    counts.
    """
    (loss, means), grads = mean_loss_and_gradient(
        state.params, batch, objective=objective, accumulate=accumulate
    )
    norm = optax.tree.norm(grads)
    finite = jnp.isfinite(norm)
    trained = select(state.params, objective)
    updates, opt_state = tx.update(grads, state.opt_state, trained)
    params = optax.apply_updates(trained, updates)

    def keep(new, old):
        return jnp.where(finite, new, old)

    skipped = jnp.where(finite, 0, state.skipped + 1).astype(jnp.int32)
    new = TrainState(
        step=state.step + 1,
        params=with_updates(state.params, jax.tree.map(keep, params, trained)),
        opt_state=jax.tree.map(keep, opt_state, state.opt_state),
        skipped=skipped,
    )
    averages = {k: m.total / jnp.maximum(m.count, 1) for k, m in means.items()}
    return new, StepMetrics(loss, norm, skipped, applied_updates(state.opt_state), averages)


def jit_train_step(
    config: TrainConfig,
    objective: Objective,
    tx: optax.GradientTransformation,
    abstract: TrainState,
):
    """`train_step` of an experiment, jitted; the state keeps its sharding and its memory is
    donated."""
    stages = stages_of(abstract.step.sharding.mesh)
    update = partial(train_step, objective=objective, tx=tx, accumulate=config.accumulate)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        with on_torus(stages):
            return update(state, batch)

    return jax.jit(step, donate_argnums=0, out_shardings=(shardings_of(abstract), None))


def jit_adapter_step(
    config: TrainConfig,
    objective: Objective,
    tx: optax.GradientTransformation,
    abstract: TrainState,
):
    """`jit_train_step` for several states of adapters on one base: (state, base, batch).

    `abstract` and the state hold the trained parameters; the base, which is not donated, all
    others.
    """
    stages = stages_of(abstract.step.sharding.mesh)
    update = partial(train_step, objective=objective, tx=tx, accumulate=config.accumulate)

    def step(state: TrainState, base: Any, batch: Batch) -> tuple[TrainState, StepMetrics]:
        with on_torus(stages):
            whole = replace(state, params=with_updates(base, state.params))
            new, metrics = update(whole, batch)
            return saved_part(new, objective), metrics

    return jax.jit(step, donate_argnums=0, out_shardings=(shardings_of(abstract), None))


def jit_eval_step(objective: Objective, accumulate: int = 1):
    """`objective.examine`, jitted: (params, batch) -> Means by name.

    It uses as many micro-batches as the training step, so it fits in memory wherever that fits.
    """

    def step(params: dict, batch: Batch) -> dict[str, Mean]:
        def examine(micro):
            return objective.examine(forward_of(objective, params), micro)

        def add(means, micro):
            return jax.tree.map(jnp.add, means, examine(micro)), None

        parts = micro_batches(batch, accumulate)
        shapes = jax.eval_shape(examine, jax.tree.map(lambda a: a[0], parts))
        start = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        return jax.lax.scan(add, start, parts)[0]

    return jax.jit(step)
