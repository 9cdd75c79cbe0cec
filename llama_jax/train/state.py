"""The training state: step, parameters, optimizer state; created already sharded."""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from llama_jax.config import ModelConfig
from llama_jax.model.llama import init_params
from llama_jax.model.weights import Weight, chosen, map_weights, model_weights, stays_fixed
from llama_jax.parallel.arrays import abstract_with, replicated
from llama_jax.parallel.rules import named_sharding
from llama_jax.train.objective import Objective
from llama_jax.train.optimizer import applied_updates


@flax.struct.dataclass
class TrainState:
    """The state of training, or its shapes; data order and randomness follow from `step`."""

    step: Any
    """int32: batches consumed."""
    params: Any
    opt_state: optax.OptState
    """Optimizer state of the trained parameters."""
    skipped: Any
    """int32: consecutive non-finite updates skipped."""


def select(tree: Any, objective: Objective) -> Any:
    """The trained parameters, or any tree in their shape: those that the objective trains, or the
    adapters among them."""

    def keep(name: str) -> bool:
        return objective.trains(name) and not stays_fixed(objective.model, name)

    return chosen(tree, keep)


def with_updates(params: dict, updated: dict) -> dict:
    """All parameters, with those of the selection `updated` replacing the old ones."""
    new = dict(params)
    for key, value in updated.items():
        new[key] = with_updates(params[key], value) if isinstance(value, dict) else value
    return new


def saved_part(
    state: TrainState, objective: Objective, *, weights_only: bool = False
) -> TrainState:
    """The contents of a checkpoint: the whole state; without the frozen base of adapters; or, for
    weights alone, the parameters in bfloat16 and the number of updates in place of the optimizer
    state."""
    if objective.model.lora is not None:
        return dataclasses.replace(state, params=select(state.params, objective))
    if not weights_only:
        return state

    def smaller(p):
        abstract = isinstance(p, jax.ShapeDtypeStruct)
        return p.update(dtype=jnp.bfloat16) if abstract else p.astype(jnp.bfloat16)

    return dataclasses.replace(
        state,
        params=jax.tree.map(smaller, state.params),
        opt_state={"updates": applied_updates(state.opt_state)},
    )


def with_saved(state: TrainState, saved: TrainState, *, weights_only: bool = False) -> TrainState:
    """A whole state from the contents of a checkpoint; `state`, a fresh one, supplies the base, or
    the moments and the dtypes of the parameters."""
    if not weights_only:
        return dataclasses.replace(saved, params=with_updates(state.params, saved.params))

    made: Any = saved.opt_state

    def counted(leaf):  # the counts of a fresh optimizer are 0, and its only integers
        whole = jnp.issubdtype(leaf.dtype, jnp.integer)
        return leaf + made["updates"] if whole else leaf

    return dataclasses.replace(
        saved,
        params=jax.tree.map(lambda p, like: p.astype(like.dtype), saved.params, state.params),
        opt_state=jax.tree.map(counted, state.opt_state),
    )


def trained_table(objective: Objective) -> dict[str, Any]:
    """The Weight rows of the trained parameters."""
    return select(model_weights(objective.model), objective)


def init_state(
    key: jax.Array, objective: Objective, tx: optax.GradientTransformation
) -> TrainState:
    """Fresh parameters, empty optimizer, step 0."""
    params = init_params(key, objective.model)
    zero = jnp.zeros((), jnp.int32)
    opt_state = tx.init(select(params, objective))
    return TrainState(step=zero, params=params, opt_state=opt_state, skipped=zero)


def abstract_state(
    objective: Objective, tx: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """The state as ShapeDtypeStructs with shardings, for initialisation and for restoring
    checkpoints.

    Moments are sharded like their parameters; the rest is small and replicated.

    Raises:
      InputError: a tensor is not divisible by the mesh; the message holds the values.
    """
    state = jax.eval_shape(lambda: init_state(jax.random.key(0), objective, tx))
    params = param_shardings(objective.model, mesh)
    whole = replicated(mesh)
    moments = optax.tree.map_params(
        tx.init,
        lambda _, s: s,
        state.opt_state,
        select(params, objective),
        transform_non_params=lambda _: whole,
    )
    return TrainState(
        step=abstract_with(state.step, whole),
        params=abstract_with(state.params, params),
        opt_state=abstract_with(state.opt_state, moments),
        skipped=abstract_with(state.skipped, whole),
    )


def param_shardings(model: ModelConfig, mesh: Mesh) -> dict[str, Any]:
    """The sharding of each parameter on the mesh; InputError where the rules cannot split it."""

    def sharding(w: Weight):
        return named_sharding(w.axes, mesh, w.shape, "weight")

    return map_weights(sharding, model)


def sharded_init(
    seed: int,
    objective: Objective,
    tx: optax.GradientTransformation,
    abstract: TrainState,
    params: dict[str, Any] | None = None,
) -> TrainState:
    """`init_state` with every tensor born where it belongs: no device ever holds the whole.

    params: some that are there already, and shapes of the others: those alone are made. The state
      holds the former, so a step that donates its state deletes them.
    """
    given = abstract.params if params is None else params
    there = tuple(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(given))
    places = shardings_of(_without(abstract, there))
    # One function for all calls: jax knows it again, and compiles the same state once.
    init = jax.jit(_init_rest, static_argnums=(1, 2, 3), out_shardings=places)
    state = init(jax.random.key(seed), objective, tx, there)
    whole = jax.tree.map(lambda g, a: g if a is None else a, given, state.params)
    return dataclasses.replace(state, params=whole)


def _init_rest(
    key: jax.Array, objective: Objective, tx: optax.GradientTransformation, there: tuple[bool, ...]
) -> TrainState:
    return _without(init_state(key, objective, tx), there)


def _without(state: TrainState, there: tuple[bool, ...]) -> TrainState:
    """The state with None for the parameters that are there already."""
    leaves, structure = jax.tree.flatten(state.params)
    left = [None if given else leaf for leaf, given in zip(leaves, there, strict=True)]
    return dataclasses.replace(state, params=jax.tree.unflatten(structure, left))


def shardings_of(abstract: Any) -> Any:
    """The sharding of each leaf of an abstract tree."""
    return jax.tree.map(lambda leaf: leaf.sharding, abstract)
