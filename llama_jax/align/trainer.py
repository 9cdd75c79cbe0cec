"""The models that reinforcement learning trains: their states, update steps and checkpoints."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from llama_jax.align.packed import packing
from llama_jax.align.scoring import Base, Scorer, place_rows
from llama_jax.config import plain
from llama_jax.config_align import PolicyConfig
from llama_jax.model.weights import abstract_params
from llama_jax.models import Opened, on_base
from llama_jax.parallel.arrays import abstract_with
from llama_jax.parallel.rules import num_shards
from llama_jax.train.initial import source_params
from llama_jax.train.objective import Objective
from llama_jax.train.state import (
    TrainState,
    abstract_state,
    init_state,
    param_shardings,
    saved_part,
    shardings_of,
)
from llama_jax.train.step import jit_adapter_step, jit_train_step


def read_source(config: PolicyConfig, source: Opened, mesh: Mesh) -> Base:
    """Reads the model that a policy starts from, in the policy's dtypes and sharding."""
    model = plain(config.model)
    places = abstract_with(abstract_params(model), param_shardings(model, mesh))
    return Base(source, model, source_params(source, places, model))


class Trainer:
    """Training states by name, `policy` among them, each with its own objective and optimizer."""

    def __init__(
        self,
        config: PolicyConfig,
        objectives: Mapping[str, Objective],
        tx: Mapping[str, optax.GradientTransformation],
        mesh: Mesh,
        base: Base,
    ):
        """base: what the policy starts from; where adapters are trained, they stand on it."""
        self.config, self.objectives, self.tx, self.base = config, objectives, tx, base
        self.states: dict[str, TrainState] = {
            name: saved_part(abstract_state(objective, tx[name], mesh), objective)
            for name, objective in objectives.items()
        }
        """What is trained: everything, or adapters without their base."""
        self.extra: dict[str, Any] = {}
        """What else a checkpoint holds."""
        make_step = jit_adapter_step if config.lora.rank else jit_train_step
        self._steps = {
            name: make_step(config, objective, tx[name], self.states[name])
            for name, objective in objectives.items()
        }
        block = config.minibatch // config.accumulate
        self.reference = Scorer(config.model, base.params, block)
        """The model that the policy starts from. Where that is adapters, which change nothing yet,
        it is computed with them: by the same program, so that their KL is exactly 0."""
        if config.lora.rank:
            own = self._fresh("policy").params
            self.reference = self.reference._replace(params=on_base(base.params, own, config.model))

    def tree(self) -> dict[str, Any]:
        """The contents of a checkpoint: the policy's state at the root, as in any run, the others
        by name.

        Before there are states, the shapes and shardings that a checkpoint is read into.
        """
        policy = self.states["policy"]
        return {
            "params": policy.params,
            "opt_state": policy.opt_state,
            "step": policy.step,
            "skipped": policy.skipped,
            **{name: state for name, state in self.states.items() if name != "policy"},
            **self.extra,
        }

    def take(self, tree: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        policy = {name: tree[name] for name in ("step", "params", "opt_state", "skipped")}
        self.states = {
            name: TrainState(**policy) if name == "policy" else tree[name] for name in self.states
        }
        self.extra = {name: tree[name] for name in self.extra}

    def begin(self, **params: Any) -> None:
        """Make the first states, from the parameters of existing models where some are given."""
        for name in self.states:
            state = self._fresh(name)

            def placed(p: jax.Array, like: jax.Array) -> jax.Array:
                # A copy in any case: the step gives the memory of its state to the next one.
                return jnp.copy(jax.device_put(p.astype(like.dtype), like.sharding))

            if name in params:
                begun = jax.tree.map(placed, params[name], state.params)
                state = dataclasses.replace(state, params=begun)
            self.states[name] = state

    def _fresh(self, name: str) -> TrainState:
        objective, tx = self.objectives[name], self.tx[name]

        def init(key: jax.Array) -> TrainState:
            return saved_part(init_state(key, objective, tx), objective)

        place = jax.jit(init, out_shardings=shardings_of(self.states[name]))
        return place(jax.random.key(self.config.seed))

    def scorer(self, name: str) -> Scorer:
        """A state's model for evaluation, in blocks of the rows of one step."""
        model, params = self.objectives[name].model, self.states[name].params
        if model.lora is not None:
            params = on_base(self.base.params, params, model)
        return Scorer(model, params, self.reference.block)

    def update(self, name: str, rows: Mapping[str, np.ndarray]) -> dict[str, float]:
        """One step on a minibatch, packed, and its metrics."""
        names = self.objectives[name].abstract_batch(self.config.minibatch, self.config.seq_len)
        multiple = num_shards("batch") * self.config.accumulate
        fewer = packing(rows["segment_ids"], multiple)
        batch = place_rows(fewer.pack({k: rows[k] for k in names}))
        base = (self._base(name),) if self.config.lora.rank else ()
        self.states[name], metrics = self._steps[name](self.states[name], *base, batch)
        found = jax.device_get(metrics)
        return {
            f"{name}/loss": float(found.loss),
            f"{name}/grad_norm": float(found.grad_norm),
            f"{name}/skipped": float(found.skipped),
            **{f"{name}/{k}": float(v) for k, v in found.means.items()},
        }

    def _base(self, name: str) -> dict[str, Any]:
        """Without a head that the model lacks."""
        wanted = abstract_params(self.objectives[name].model)
        return {k: w for k, w in self.base.params.items() if k in wanted}
