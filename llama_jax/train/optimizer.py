"""AdamW as the paper trains: warm-up, cosine, clipping, norms not decayed (Llama 2, 2.2)."""

from typing import Any

import jax.numpy as jnp
import optax

from llama_jax.config import OptimizerConfig
from llama_jax.model.weights import Table, map_table


def learning_rate(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Linear from 0 over warmup_steps, then a cosine to final_ratio of the peak, or constant.

    A run shorter than its warm-up follows the same line and never reaches the peak.
    """
    peak, warmup = config.learning_rate, config.warmup_steps
    rise = optax.schedules.linear_schedule(0.0, peak, max(warmup, 1))
    if config.schedule == "constant":
        after = optax.schedules.constant_schedule(peak)
    else:
        after = optax.schedules.cosine_decay_schedule(
            peak, max(steps - warmup, 1), config.final_ratio
        )
    # The first update has count 0: it gets 1/warmup of the peak rather than nothing.
    joined = optax.schedules.join_schedules([rise, after], [warmup])
    return lambda count: joined(count + 1)


def make_optimizer(
    config: OptimizerConfig, table: Table, steps: int
) -> optax.GradientTransformation:
    """Clip by global norm, then AdamW with the schedule: the transformation of one update.

    table: the Weight rows of the parameters that are trained, see `state.trained_table`.
    """
    decayed = map_table(lambda w: w.is_matrix, table)
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.scale_by_adam(
            config.b1, config.b2, config.eps, mu_dtype=jnp.dtype(config.moment_dtype)
        ),
        optax.add_decayed_weights(config.weight_decay, decayed),
        optax.scale_by_learning_rate(learning_rate(config, steps)),
    )


def applied_updates(opt_state: Any) -> Any:
    """Number of updates in a state of `make_optimizer`, or in its shapes: int32 scalar."""
    return optax.tree.get(opt_state, "count", filtering=_is_adam)


def _is_adam(path, _) -> bool:
    return any("ScaleByAdamState" in str(getattr(key, "tuple_name", "")) for key in path)
