"""Policy and value of PPO: their states, their updates, and what a checkpoint holds of them."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from llama_jax.align.losses import ScoreScale
from llama_jax.align.ppo_objectives import Policy, Value
from llama_jax.align.scores import SMALLEST_SPREAD
from llama_jax.align.scoring import Scorer, place_rows
from llama_jax.config import ModelConfig
from llama_jax.config_align import PpoConfig
from llama_jax.model.heads import HEAD, rescale_head
from llama_jax.models import Opened
from llama_jax.train.initial import source_params
from llama_jax.train.objective import Objective
from llama_jax.train.optimizer import make_optimizer
from llama_jax.train.state import TrainState, abstract_state, sharded_init, trained_table
from llama_jax.train.step import jit_train_step


def objectives(
    config: PpoConfig, value: ModelConfig
) -> tuple[dict[str, Objective], dict[str, optax.GradientTransformation]]:
    """What `policy` and `value` learn, and their optimizers over all updates of the run."""
    found: dict[str, Objective] = {
        "policy": Policy(config.model, config.clip, config.temperature),
        "value": Value(value, config.value_clip),
    }
    settings = {"policy": config.optimizer, "value": config.value_optimizer}
    updates = config.steps * (config.batch_size // config.minibatch)
    tx = {k: make_optimizer(settings[k], trained_table(found[k]), updates) for k in found}
    return found, tx


class Trainer:
    """Policy and value with their optimizers, and the scale of the scores."""

    def __init__(self, config: PpoConfig, reward_model: ModelConfig, mesh: Mesh):
        """`reward_model`: of the helpfulness model, which the value starts from."""
        self.config = config
        like = config.model
        value = dataclasses.replace(
            reward_model, dtype=like.dtype, param_dtype=like.param_dtype, remat=like.remat,
            attention=like.attention,
        )  # fmt: skip
        self.objectives, self.tx = objectives(config, value)
        self.states: dict[str, TrainState] = {
            name: abstract_state(objective, self.tx[name], mesh)
            for name, objective in self.objectives.items()
        }
        scalar: Any = jax.ShapeDtypeStruct((), np.float32)
        self.scale = ScoreScale(scalar, scalar, scalar)
        self.abstract = self.tree()
        """Shapes and shardings of `tree`, for a checkpoint to be read into."""
        self._steps = {
            name: jit_train_step(config, objective, self.tx[name], self.states[name])
            for name, objective in self.objectives.items()
        }

    def tree(self) -> dict[str, Any]:
        """What a checkpoint holds: the policy's parameters where any model has its own."""
        policy = self.states["policy"]
        return {
            "params": policy.params,
            "opt_state": policy.opt_state,
            "step": policy.step,
            "skipped": policy.skipped,
            "value": self.states["value"],
            "scale": self.scale,
        }

    def take(self, tree: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        policy = {name: tree[name] for name in ("step", "params", "opt_state", "skipped")}
        self.states = {"policy": TrainState(**policy), "value": tree["value"]}
        self.scale = tree["scale"]

    def reference(self, source: Opened) -> Any:
        """The parameters that the policy starts from, laid out as its own."""
        return source_params(source, self._fresh("policy").params, self.config.model)

    def begin(self, policy: Any, reward_model: Any) -> None:
        """The first state: the reference's parameters, and those of the helpfulness model."""
        for name, params in (("policy", policy), ("value", reward_model)):
            fresh = self._fresh(name)

            def placed(p: jax.Array, like: jax.Array) -> jax.Array:
                # A copy in any case: the step gives the memory of its state to the next one.
                return jnp.copy(jax.device_put(p.astype(like.dtype), like.sharding))

            params = jax.tree.map(placed, params, fresh.params)
            self.states[name] = dataclasses.replace(fresh, params=params)
        nothing: Any = np.zeros((), np.float32)  # on the host, as scores are
        self.scale = ScoreScale(nothing, nothing, nothing)

    def _fresh(self, name: str) -> TrainState:
        objective, tx, abstract = self.objectives[name], self.tx[name], self.states[name]
        return sharded_init(self.config.seed, objective, tx, abstract)

    def scorer(self, name: str) -> Scorer:
        """A state as a model to read, in blocks of what a step reads at once."""
        block = self.config.minibatch // self.config.accumulate
        return Scorer(self.objectives[name].model, self.states[name].params, block)

    def rescale_value(self, scale: ScoreScale) -> None:
        """Let the value start on the scale of whitened scores, not of raw ones."""
        state, sigma = self.states["value"], float(np.sqrt(scale.variance))
        # Scores without spread are whitened to 0; their head is only centred.
        sigma = sigma if sigma > SMALLEST_SPREAD else 1.0
        head = rescale_head({k: state.params[k] for k in HEAD}, float(scale.mean), sigma)
        self.states["value"] = dataclasses.replace(state, params=state.params | head)

    def update(self, name: str, rows: dict[str, np.ndarray]) -> dict[str, float]:
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
