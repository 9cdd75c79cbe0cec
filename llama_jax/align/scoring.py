"""Frozen models (rewards, reference, value), evaluated in blocks of rows.

Rows are tokens, positions and segment_ids [R,T], each a prompt with an answer from its beginning.
A block of them is read packed: see `packed`.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Float, Int

from llama_jax.align.logprobs import batch_logprobs, next_tokens
from llama_jax.align.packed import packing
from llama_jax.config import AdaptedModel, InputError, ModelConfig, require
from llama_jax.config_file import read_config
from llama_jax.data.packing import positions_of
from llama_jax.data.tokenizer import Tokenizer
from llama_jax.model.heads import apply_head
from llama_jax.model.llama import hidden
from llama_jax.models import (
    Opened,
    on_base,
    open_base,
    open_model,
    params_digest,
    read_adapters,
    weights_identity,
)
from llama_jax.parallel.arrays import host_rows, shard_batch, to_host
from llama_jax.parallel.rules import num_shards
from llama_jax.runtime.places import expand
from llama_jax.train.next_token import batch_targets
from llama_jax.train.objective import Forward

Rows = Mapping[str, np.ndarray]
"""tokens, positions, segment_ids int32 [R,T], and any other arrays with one entry per row."""


READ = ("tokens", "positions", "segment_ids")
"""The arrays of rows that are model inputs."""


class Scorer(NamedTuple):
    """A model with one head, and the number of rows that it reads at once."""

    config: ModelConfig
    params: Any
    block: int
    """Rows of a compiled block; rounded up to a multiple of the mesh's batch axes."""


@dataclass(frozen=True)
class RewardModel:
    """A reward model trained by this project, ready to score."""

    path: str
    digest: str
    """Digest of its weights: scores of different models are never compared."""
    scorer: Scorer

    def scores(self, rows: Rows) -> Float[np.ndarray, " R"]:
        """One score for each row, read at its last token, in logits."""
        last = np.maximum(np.sum(rows["segment_ids"] > 0, axis=1) - 1, 0)
        return np.take_along_axis(values_of(self.scorer, rows), last[:, None], axis=1)[:, 0]


@dataclass(frozen=True)
class Base:
    """Frozen weights that several adapter models share, held in memory once."""

    source: Opened
    config: ModelConfig
    params: Any

    @cached_property
    def identity(self) -> str:
        """`weights_identity` of their source."""
        return weights_identity(self.source)

    def adapters(self, path: str) -> tuple[ModelConfig, Any] | None:
        """The model of a run that trained adapters of these weights, without copying the base. None
        for any other model, and for adapters that were trained on a quantised form of these
        weights."""
        run = epath.Path(expand(path))
        experiment = read_config(run)[1] if (run / "config.json").exists() else None
        if experiment is None or not experiment.lora.rank or experiment.lora.base != "dense":
            return None
        same = weights_identity(open_base(run)) == self.identity
        if not same or experiment.model.param_dtype != self.config.param_dtype:
            return None
        config = AdaptedModel.of(experiment.model, experiment.lora)
        return config, on_base(self.params, read_adapters(run, experiment), config)


def open_reward_model(
    path: str, tokenizer: Tokenizer, *, seq_len: int, block: int, base: Base | None = None
) -> RewardModel:
    """Read a reward model for rows of `seq_len` tokens, `block` of them at once.

    With a mesh in context its weights are split over it. If it is adapters of `base`, the base is
    not copied. Raises InputError if it is no reward model, has a shorter context, or uses another
    tokenizer.
    """
    opened = open_model(path)
    require(
        opened.config.head == "score",
        f"{path} is not a reward model: it has no score head; train one with llama-jax reward",
    )
    require(
        opened.config.max_seq_len >= seq_len,
        f"reward model {path} has a context of {opened.config.max_seq_len} tokens, less than "
        f"seq_len={seq_len}: shorten prompts and answers, or train one with a longer context",
    )
    own = opened.tokenizer
    if own is not None and own.fingerprint != tokenizer.fingerprint:
        raise InputError(
            f"reward model {path} has a different tokenizer (fingerprint {own.fingerprint[:12]}) "
            f"from the model that answers ({tokenizer.fingerprint[:12]}), so the same ids mean "
            "other text: train it from a model with that tokenizer"
        )
    require(
        opened.config.vocab_size >= tokenizer.vocab_size,
        f"reward model {path} knows {opened.config.vocab_size} tokens, the tokenizer has "
        f"{tokenizer.vocab_size}: train it from a model with that tokenizer",
    )
    found = None if base is None else base.adapters(path)
    config, params = found or (opened.config, opened.read())
    return RewardModel(path, params_digest(params), Scorer(config, params, block))


def rows_of(texts: Sequence[Sequence[int]], seq_len: int) -> dict[str, Int[np.ndarray, "R T"]]:
    """Rows that hold one text each, padded to T = seq_len; no text may be longer."""
    tokens = np.zeros((len(texts), seq_len), np.int32)
    for row, ids in zip(tokens, texts, strict=True):
        row[: len(ids)] = ids
    lengths = np.array([len(ids) for ids in texts])[:, None]
    segment_ids = (np.arange(seq_len)[None] < lengths).astype(np.int32)
    return {
        "tokens": tokens,
        "segment_ids": segment_ids,
        "positions": positions_of(segment_ids),
    }


def token_logprobs_of(
    scorer: Scorer, rows: Rows, *, temperature: float
) -> tuple[Float[np.ndarray, "R T"], Float[np.ndarray, "R T"]]:
    """Log-probability of token t+1 at index t, and the entropy there, by a language model.

    Values at a row's last token and after it are meaningless.
    """
    return read_rows(functools.partial(_logprobs, temperature=temperature), scorer, rows)


def answer_logprobs_of(scorer: Scorer, rows: Rows) -> Float[np.ndarray, " R"]:
    """Log-probability of each row's answer, whose tokens `loss_mask` marks, by a language model."""
    logp, _ = token_logprobs_of(scorer, rows, temperature=1.0)
    _, mask = batch_targets({k: jnp.asarray(a) for k, a in rows.items()})
    return np.sum(logp, axis=1, where=np.asarray(mask))


def values_of(scorer: Scorer, rows: Rows) -> Float[np.ndarray, "R T"]:
    """The value at each position: the expected reward from the choice of the next token on; 0 at
    padding."""
    return read_rows(_values, scorer, rows)


def read_rows(function: Any, scorer: Scorer, rows: Rows) -> Any:
    """Runs function(params, block of rows, config=...) over all rows, block by block; results on
    the host.

    It maps rows to arrays of their shape, [R,T]. The last block is filled up with empty rows, so
    that there are few compiled shapes.
    """
    named = {name: rows[name] for name in READ}
    R, shards = len(named["tokens"]), num_shards("batch")
    B = -(-scorer.block // shards) * shards
    found = []
    for start in range(0, R, B):
        block = {k: _filled(a[start : start + B], B) for k, a in named.items()}
        fewer = packing(block["segment_ids"], shards)
        made = function(scorer.params, place_rows(fewer.pack(block)), config=scorer.config)
        found.append(jax.tree.map(fewer.unpack, to_host(made)))
    return jax.tree.map(lambda *parts: np.concatenate(parts)[:R], *found)


def _filled(a: np.ndarray, rows: int) -> np.ndarray:
    return np.concatenate([a, np.zeros((rows - len(a), *a.shape[1:]), a.dtype)])


def place_rows(rows: Rows) -> Mapping[str, Any]:
    """Rows that every host holds completely, split over the mesh in context, if there is one."""
    mesh = jax.sharding.get_mesh()
    if mesh.empty:
        return rows
    B = len(rows["tokens"])
    mine = host_rows(mesh, B)
    return shard_batch({name: a[mine] for name, a in rows.items()}, mesh, B)


def _forward(params: Any, config: ModelConfig) -> Forward:
    def forward(tokens, positions, segment_ids):
        return hidden(params, tokens, config=config, positions=positions, segment_ids=segment_ids)

    return forward


@functools.partial(jax.jit, static_argnames="config")
def _values(params, rows, *, config):
    x, head = _forward(params, config)(rows["tokens"], rows["positions"], rows["segment_ids"])
    return apply_head(head, x)


@functools.partial(jax.jit, static_argnames=("config", "temperature"))
def _logprobs(params, rows, *, config, temperature):
    targets = next_tokens(rows["tokens"])
    found = batch_logprobs(
        _forward(params, config), rows, targets, cfg=config, temperature=temperature
    )
    return found.logp, found.entropy
