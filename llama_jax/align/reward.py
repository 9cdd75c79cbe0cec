"""Reward models: one score for an answer, learned from pairs of answers (Llama 2, section 3.2.2).

The score stands at EOS, the last token of prompt and answer. Its difference within a pair is the
log-odds that people prefer the chosen answer. The safety model also learns the score itself as the
log-odds that an answer is safe.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from llama_jax.align.losses import MARGINS, pairwise_terms, safety_terms
from llama_jax.align.pairs import (
    Pairs,
    abstract_pairs,
    accuracy_by_rating,
    answer_rows,
    by_pair,
    pairs_of,
    per_row,
)
from llama_jax.align.segments import segment_sums, spans
from llama_jax.config import ModelConfig
from llama_jax.config_align import RewardConfig
from llama_jax.data.conversations import prepare_preferences
from llama_jax.model.heads import apply_head
from llama_jax.train.loop import Summary, run
from llama_jax.train.objective import Batch, Forward, Mean
from llama_jax.train.stage import Stage


def reward(config: RewardConfig) -> Summary:
    """Train a reward model, or resume; see `train.loop.run`."""
    return run(config, stage)


def stage(config: RewardConfig) -> Stage:
    """Describes the stage: preference pairs; accuracy by rating."""
    return Stage(
        name="reward",
        objective=Pairwise(
            config.model,
            config.margin,
            config.safety_weight,
            config.token_weight,
            config.pairs_per_row,
        ),
        prepare=lambda tokenizer: prepare_preferences(
            config.data,
            tokenizer,
            seq_len=config.seq_len,
            half=config.half,
            per_row=config.pairs_per_row,
        ),
        results=lambda means, counts, observed: {k: v for k, v in means.items() if counts[k]},
    )


@dataclass(frozen=True)
class Pairwise:
    """-log sigmoid(chosen - rejected - margin), averaged over pairs, and the safety loss."""

    model: ModelConfig
    margin: str
    safety_weight: float = 0.0
    token_weight: float = 0.0
    per_row: int = 1
    """K: pairs that may share two rows."""

    def trains(self, name: str) -> bool:
        """All parameters are trained."""
        return True

    def abstract_batch(self, batch_size: int, seq_len: int) -> dict[str, jax.ShapeDtypeStruct]:
        """See `align.pairs`."""
        return abstract_pairs(batch_size, seq_len, self.per_row)

    def weights(self, batch: Batch) -> tuple[Array, Array]:
        """Numbers of pairs and of answers with a safety label."""
        pairs = pairs_of(batch)
        found = (jnp.sum(a, dtype=jnp.float32) for a in (pairs.there, pairs.labelled))
        there, labelled = (jnp.maximum(number, 1) for number in found)
        return there, labelled

    def loss(
        self, forward: Forward, batch: Batch, weights: tuple[Array, Array]
    ) -> tuple[Float[Array, ""], dict[str, Mean]]:
        """Ranking loss over pairs, at the end and by token; safety loss over labelled answers."""
        rows, pairs = answer_rows(batch), pairs_of(batch)
        x, head = forward(rows["tokens"], rows["positions"], rows["segment_ids"])
        scores = by_pair(_at_last(x, head, rows, per_row(batch)))
        means = {
            "ranking_loss": Mean.over(self._ranking(scores, pairs), pairs.there),
            "accuracy": Mean.over(scores[:, 0] > scores[:, 1], pairs.there),
            "gap": Mean.over(scores[:, 0] - scores[:, 1], pairs.there),
            "score": Mean.over(scores, jnp.broadcast_to(pairs.there[:, None], scores.shape)),
        }
        loss = means["ranking_loss"].total / weights[0]
        if self.token_weight:
            by_token = apply_head(head, x).reshape(batch["tokens"].shape)
            terms = self._ranking_by_token(by_token, batch, pairs)
            means["token_loss"] = Mean.over(terms, pairs.there)
            loss += self.token_weight * means["token_loss"].total / weights[0]
        if self.safety_weight:
            labelled = pairs.labelled.reshape(-1)
            terms = safety_terms(scores.reshape(-1), pairs.safe.reshape(-1) == 1, labelled)
            means["safety_loss"] = Mean.over(terms, labelled)
            loss += self.safety_weight * means["safety_loss"].total / weights[1]
        return loss, means

    def examine(self, forward: Forward, batch: Batch) -> dict[str, Mean]:
        """Accuracy over all, by rating, and of the longer answer; ties; the safety threshold."""
        rows, pairs, K = answer_rows(batch), pairs_of(batch), per_row(batch)
        scores = by_pair(row_scores(forward, rows, K))
        answers = rows["loss_mask"].astype(jnp.float32)
        length = by_pair(segment_sums(answers, rows["segment_ids"], K))
        better, there = scores[:, 0] > scores[:, 1], pairs.there
        found = {
            "loss": Mean.over(self._ranking(scores, pairs), there),
            "accuracy": Mean.over(better, there),
            "ties": Mean.over(scores[:, 0] == scores[:, 1], there),
            "gap": Mean.over(scores[:, 0] - scores[:, 1], there),
            "longer_wins": Mean.over(
                length[:, 0] > length[:, 1], there & (length[:, 0] != length[:, 1])
            ),
        }
        found |= accuracy_by_rating(better, pairs)
        found["unsafe_recall"] = Mean.over(scores < 0, pairs.labelled & (pairs.safe == 0))
        found["safe_recall"] = Mean.over(scores >= 0, pairs.labelled & (pairs.safe == 1))
        return found

    def _ranking(self, scores: Float[Array, "P 2"], pairs: Pairs) -> Float[Array, " P"]:
        return pairwise_terms(scores[:, 0], scores[:, 1], self._margins(pairs))

    def _ranking_by_token(
        self, scores: Float[Array, "B 2 T"], batch: Batch, pairs: Pairs
    ) -> Float[Array, " P"]:
        """The mean ranking loss of each pair's tokens, from the first that differs."""
        T, K = scores.shape[2], per_row(batch)
        starts, lengths = spans(batch["segment_ids"], K)
        here = jnp.arange(T)[None, None]
        inside = here < jnp.min(lengths, axis=1)[..., None]
        at = jnp.minimum(starts[..., None] + here[None], T - 1)  # [B,2,K,T]

        def beside(a: Array) -> Array:
            """The tokens of both answers of a pair, from their first on: two arrays [P,T]."""
            found = jnp.take_along_axis(a[:, :, None], at, axis=3)
            return found.swapaxes(0, 1).reshape(2, -1, T)

        tokens, both = beside(batch["tokens"]), beside(scores)
        apart = jnp.cumsum(tokens[0] != tokens[1], axis=-1) > 0
        counted = inside.reshape(-1, T) & apart
        margins = jnp.broadcast_to(self._margins(pairs)[:, None], counted.shape)
        flat = (a.reshape(-1) for a in (*both, margins))
        terms = jnp.where(counted, pairwise_terms(*flat).reshape(counted.shape), 0.0)
        return jnp.sum(terms, axis=-1) / jnp.maximum(jnp.sum(counted, axis=-1), 1)

    def _margins(self, pairs: Pairs) -> Float[Array, " P"]:
        table = jnp.asarray([0.0, *MARGINS[self.margin]], jnp.float32)  # unrated: no margin
        return jnp.where(jnp.isnan(pairs.margin), table[pairs.rating + 1], pairs.margin)


def row_scores(forward: Forward, rows: Batch, per_row: int = 1) -> Float[Array, "R {per_row}"]:
    """The scores of rows [R,T], read at the last token of each of K = per_row texts."""
    x, head = forward(rows["tokens"], rows["positions"], rows["segment_ids"])
    return _at_last(x, head, rows, per_row)


def _at_last(
    x: Float[Array, "R T D"], head: Any, rows: Batch, per_row: int
) -> Float[Array, "R {per_row}"]:
    """What the head makes of the last token of each text; of the first where there is none."""
    starts, lengths = spans(rows["segment_ids"], per_row)
    last = jnp.maximum(starts + lengths - 1, 0)
    return apply_head(head, jnp.take_along_axis(x, last[..., None], axis=1))
