"""Describes a training stage to the loop, beyond its experiment."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from llama_jax.config import ModelConfig, TrainConfig, require
from llama_jax.data.loader import Batch
from llama_jax.data.prepare import Mixture
from llama_jax.data.tokenizer import Tokenizer
from llama_jax.train.objective import Objective

Ask = Callable[[ModelConfig, dict, Tokenizer, Callable[[], None]], Mapping[str, float]]
"""(model, parameters, tokenizer, beat) -> what benchmark tasks found; calls beat at times."""
Sampler = Callable[[dict, Tokenizer], Sequence[str]]
"""(parameters, tokenizer) -> texts to keep as samples of this moment."""


@dataclass(frozen=True)
class Stage:
    """Data, objective and examination of one kind of training."""

    objective: Objective
    prepare: Callable[[Tokenizer], Mapping[str, Mixture]]
    """Records by split: "train", and "validation" where there is text for it."""
    identity: Callable[[], Mapping[str, str]] = dict
    """Digests, known when data is prepared, of what else a run must not resume without."""
    observe: Callable[[Batch, Tokenizer], Mapping[str, int]] = lambda batch, tokenizer: {}
    """What an evaluation counts of a batch on the host."""
    results: Callable[[Mapping[str, float], Mapping[str, float], Mapping[str, int]], dict] = (
        lambda means, counts, observed: dict(means)
    )
    """The results of an evaluation from what `evaluate` returns, for metrics and summary."""
    sample: Sampler | None = None
    """Texts to keep at each evaluation."""
    check: Callable[[Tokenizer], None] = lambda tokenizer: None
    """Refuses, before any data is read, what would fail at the first evaluation."""
    new_tokenizer: Callable[[], Tokenizer] | None = None
    """Makes one where neither the experiment nor the source has any."""
    template: str | None = None
    """Jinja of the conversations that it trains on: kept with the model, for other programs."""
    name: str = "train"
    """What the progress bar calls it."""


def require_fits(prompt: str, tokens: int, config: TrainConfig) -> None:
    """Raise InputError for a sample prompt of more tokens than the model's context."""
    limit = config.model.max_seq_len
    require(
        tokens <= limit,
        f"sample prompt {prompt!r:.40} has {tokens:,} tokens but the model's context is {limit}",
    )
