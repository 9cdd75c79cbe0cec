"""The models that reinforcement learning updates: their states, steps, and what is saved."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from llama_jax.align.scoring import Scorer, place_rows
from llama_jax.config_align import PolicyConfig
from llama_jax.models import Opened
from llama_jax.train.initial import source_params
from llama_jax.train.objective import Objective
from llama_jax.train.state import TrainState, abstract_state, sharded_init
from llama_jax.train.step import jit_train_step


class Trainer:
    """States by name, `policy` among them, each with an objective and an optimizer of its own."""

    def __init__(
        self,
        config: PolicyConfig,
        objectives: Mapping[str, Objective],
        tx: Mapping[str, optax.GradientTransformation],
        mesh: Mesh,
    ):
        self.config, self.objectives, self.tx = config, objectives, tx
        self.states: dict[str, TrainState] = {
            name: abstract_state(objective, tx[name], mesh)
            for name, objective in objectives.items()
        }
        self.extra: dict[str, Any] = {}
        """What else a checkpoint holds."""
        self._steps = {
            name: jit_train_step(config, objective, tx[name], self.states[name])
            for name, objective in objectives.items()
        }

    def tree(self) -> dict[str, Any]:
        """What a checkpoint holds: the policy's parameters where any model has its own.

        Before there are states, the shapes and shardings for a checkpoint to be read into.
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
        """Go on from a checkpoint."""
        policy = {name: tree[name] for name in ("step", "params", "opt_state", "skipped")}
        self.states = {
            name: TrainState(**policy) if name == "policy" else tree[name] for name in self.states
        }
        self.extra = {name: tree[name] for name in self.extra}

    def reference(self, source: Opened) -> Any:
        """The parameters that the policy starts from, laid out as its own."""
        return source_params(source, self._fresh("policy").params, self.config.model)

    def begin(self, **params: Any) -> None:
        """The first states, from the parameters of models that exist."""
        for name in self.states:
            fresh = self._fresh(name)

            def placed(p: jax.Array, like: jax.Array) -> jax.Array:
                # A copy in any case: the step gives the memory of its state to the next one.
                return jnp.copy(jax.device_put(p.astype(like.dtype), like.sharding))

            begun = jax.tree.map(placed, params[name], fresh.params)
            self.states[name] = dataclasses.replace(fresh, params=begun)

    def _fresh(self, name: str) -> TrainState:
        objective, tx, abstract = self.objectives[name], self.tx[name], self.states[name]
        return sharded_init(self.config.seed, objective, tx, abstract)

    def scorer(self, name: str) -> Scorer:
        """A state as a model to read, in blocks of what a step reads at once."""
        block = self.config.minibatch // self.config.accumulate
        return Scorer(self.objectives[name].model, self.states[name].params, block)

    def update(self, name: str, rows: Mapping[str, np.ndarray]) -> dict[str, float]:
        """One step on a minibatch, and its metrics."""
        names = self.objectives[name].abstract_batch(self.config.minibatch, self.config.seq_len)
        batch = place_rows({k: rows[k] for k in names})
        self.states[name], metrics = self._steps[name](self.states[name], batch)
        found = jax.device_get(metrics)
        return {
            f"{name}/loss": float(found.loss),
            f"{name}/grad_norm": float(found.grad_norm),
            f"{name}/skipped": float(found.skipped),
            **{f"{name}/{k}": float(v) for k, v in found.means.items()},
        }
