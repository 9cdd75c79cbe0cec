"""Early stopping of reinforcement learning, and errors for numbers that cannot be right."""

import math
from collections.abc import Mapping, Sequence

from llama_jax.align.gauges import reward_hacking
from llama_jax.config_align import PolicyConfig, PpoConfig
from llama_jax.train.report import TrainingError

LEAST_EXPLAINED = -1.0
"""Explained variance below which a value model is worse than any constant."""


def why_stop(config: PolicyConfig, lines: Sequence[Mapping[str, int | float]]) -> str | None:
    """The reason to stop a run, from the metrics of its iterations; None if it goes on.

    lines: the metrics of all iterations so far, in order.
    """
    name = "heldout/score" if config.heldout else "heldout/proxy"
    found = [m[name] for m in lines if name in m]
    if config.patience and len(found) > config.patience:
        since = len(found) - 1 - max(range(len(found)), key=found.__getitem__)
        if since >= config.patience:
            proxy = [m["heldout/proxy"] for m in lines if name in m]
            hacked = reward_hacking(proxy, found, patience=config.patience)
            why = " while the score that it learns from rose" if hacked else ""
            return f"{name} had its best, {max(found):.3f}, {since} evaluations ago{why}"
    if config.max_kl and lines and lines[-1]["kl/answer"] > config.max_kl:
        return f"KL of an answer is {lines[-1]['kl/answer']:.2f} nats, above max_kl={config.max_kl}"
    cut = [m["answer/truncated"] for m in lines]
    if config.max_truncated and cut and cut[-1] > max(config.max_truncated, cut[0]):
        return (
            f"{cut[-1]:.0%} of the answers were cut at max_new_tokens={config.max_new_tokens}, "
            f"more than max_truncated={config.max_truncated:g} and the {cut[0]:.0%} at first: a "
            "larger --max-truncated goes on"
        )
    return None


def check_sampled(config: PolicyConfig, iteration: int, metrics: Mapping[str, int | float]) -> None:
    """Raise TrainingError, before any update, for answers that cannot be learned from.

    Their scores are not finite, or the sampler's distribution differs from that of the model being
    trained.
    """
    _check_finite(iteration, metrics)
    if metrics["drift/mean"] > config.max_drift:
        raise TrainingError(
            f"iteration {iteration}: the log-probabilities of sampler and trainer are "
            f"{metrics['drift/mean']:.4f} nats apart on average (at most "
            f"{metrics['drift/max']:.4f}), more than max_drift={config.max_drift:g}: the two "
            "compute different models; check model.dtype and model.attention, or raise --max-drift"
        )


def check_updated(config: PolicyConfig, lines: Sequence[Mapping[str, int | float]]) -> None:
    """Raise TrainingError if the updates of the last of these iterations went wrong."""
    now = lines[-1]
    iteration = int(now["step"])
    _check_finite(iteration, now)
    first = now.get("policy/ratio_first", 1.0)
    if abs(first - 1) > config.max_ratio_error:
        raise TrainingError(
            f"iteration {iteration}: the mean ratio of new to old probability at the first "
            f"minibatch, before any update, is {first:.7f} and not 1 within "
            f"max_ratio_error={config.max_ratio_error:g}: the two come from different programs; "
            "raise --max-ratio-error if model.dtype rounds that much"
        )


def check_value(config: PpoConfig, lines: Sequence[Mapping[str, int | float]]) -> None:
    """Raise TrainingError if the value model has explained nothing for long."""
    iteration = int(lines[-1]["step"])
    recent = [m["value/explained_variance"] for m in lines[-config.value_patience :]]
    if config.value_patience == len(recent) and max(recent) < LEAST_EXPLAINED:
        raise TrainingError(
            f"iteration {iteration}: the value's explained variance has been below "
            f"{LEAST_EXPLAINED:g} for {len(recent)} iterations, now {recent[-1]:.2f}: lower "
            "--value-optimizer.learning-rate, or raise --value-warmup"
        )


def _check_finite(iteration: int, metrics: Mapping[str, int | float]) -> None:
    bad = {name: value for name, value in metrics.items() if not math.isfinite(value)}
    if bad:
        said = ", ".join(f"{name} is {value}" for name, value in bad.items())
        raise TrainingError(
            f"iteration {iteration}: {said}: nothing of it was kept; lower the learning rates, or "
            "look at the answers in rollouts/"
        )
