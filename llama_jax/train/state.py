"""Everything a run must remember between two steps, abstract first, then sharded into being."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from llama_jax.config import ModelConfig
from llama_jax.model.llama import init_params
from llama_jax.model.weights import map_weights
from llama_jax.parallel.arrays import abstract_with, replicated
from llama_jax.parallel.rules import named_sharding


@flax.struct.dataclass
class TrainState:
    """The state of training, or its shapes; data order and randomness follow from `step`."""

    step: Any
    """int32: batches consumed."""
    params: Any
    opt_state: optax.OptState
    skipped: Any
    """int32: non-finite updates skipped, in a row."""


def init_state(key: jax.Array, cfg: ModelConfig, tx: optax.GradientTransformation) -> TrainState:
    """Fresh parameters, empty optimizer, step 0."""
    params = init_params(key, cfg)
    zero = jnp.zeros((), jnp.int32)
    return TrainState(step=zero, params=params, opt_state=tx.init(params), skipped=zero)


def abstract_state(cfg: ModelConfig, tx: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """The state as ShapeDtypeStructs with shardings: what init makes and checkpoints restore.

    Moments are laid out as their parameters; the rest is small and replicated.

    Raises:
      InputError: a tensor is not divisible by the mesh; the message holds the values.
    """
    state = jax.eval_shape(lambda: init_state(jax.random.key(0), cfg, tx))
    params = map_weights(lambda w: named_sharding(w.axes, mesh, w.shape, "weight"), cfg)
    whole = replicated(mesh)
    moments = optax.tree.map_params(
        tx.init, lambda _, s: s, state.opt_state, params, transform_non_params=lambda _: whole
    )
    return TrainState(
        step=abstract_with(state.step, whole),
        params=abstract_with(state.params, params),
        opt_state=abstract_with(state.opt_state, moments),
        skipped=abstract_with(state.skipped, whole),
    )


def sharded_init(
    seed: int, cfg: ModelConfig, tx: optax.GradientTransformation, abstract: TrainState
) -> TrainState:
    """`init_state` with every tensor born where it belongs: no device ever holds the whole."""
    init = jax.jit(init_state, static_argnums=(1, 2), out_shardings=shardings_of(abstract))
    return init(jax.random.key(seed), cfg, tx)


def shardings_of(abstract: Any) -> Any:
    """The sharding of each leaf of an abstract tree."""
    return jax.tree.map(lambda leaf: leaf.sharding, abstract)
