"""Describes a training stage to the loop, beyond its experiment."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from llama_jax.config import ModelConfig, TrainConfig, require
from llama_jax.data.loader import Batch
from llama_jax.data.prepare import Mixture
from llama_jax.data.tokenizer import Tokenizer
from llama_jax.train.objective import Objective

Ask = Callable[[ModelConfig, dict, Tokenizer, Callable[[], None]], Mapping[str, float]]
"""(model, parameters, tokenizer, beat) -> results of benchmark tasks; calls beat from time to
time."""
Sampler = Callable[[dict, Tokenizer], Sequence[str]]
"""(parameters, tokenizer) -> sample texts."""


@dataclass(frozen=True)
class Stage:
    """Data, objective and evaluation of one kind of training."""

    objective: Objective
    prepare: Callable[[Tokenizer], Mapping[str, Mixture]]
    """Records by split: "train", and "validation" if there is text for it."""
    identity: Callable[[], Mapping[str, str]] = dict
    """Digests of whatever else a resumed run must agree in; known once data is prepared."""
    observe: Callable[[Batch, Tokenizer], Mapping[str, int]] = lambda batch, tokenizer: {}
    """Counts of a batch, taken on the host, for an evaluation."""
    results: Callable[[Mapping[str, float], Mapping[str, float], Mapping[str, int]], dict] = (
        lambda means, counts, observed: dict(means)
    )
    """The results of an evaluation from what `evaluate` returns, for metrics and summary."""
    sample: Sampler | None = None
    """Sample texts, written at each evaluation."""
    check: Callable[[Tokenizer], None] = lambda tokenizer: None
    """Rejects, before any data is read, settings that would fail at the first evaluation."""
    new_tokenizer: Callable[[], Tokenizer] | None = None
    """Makes a tokenizer if neither the experiment nor the source has one."""
    template: str | None = None
    """Jinja template of the conversations that it trains on: stored with the model, for other
    programs."""
    name: str = "train"
    """Label of the progress bar."""


def require_fits(prompt: str, tokens: int, config: TrainConfig) -> None:
    """Raise InputError for a sample prompt of more tokens than the model's context."""
    limit = config.model.max_seq_len
    require(
        tokens <= limit,
        f"sample prompt {prompt!r:.40} has {tokens:,} tokens but the model's context is {limit}",
    )
