"""Reward models: one score for an answer, learned from pairs of answers (Llama 2, section 3.2.2).

The score stands at EOS, the last token of prompt and answer. Its difference within a pair is the
log-odds that people prefer the chosen answer; the safety model learns that the score itself is the
log-odds of an answer being safe as well.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from llama_jax.align.losses import MARGINS, pairwise_terms, safety_terms
from llama_jax.align.pairs import abstract_pairs, accuracy_by_rating, answer_rows, is_pair
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
    """Preference pairs; accuracy by rating."""
    return Stage(
        name="reward",
        objective=Pairwise(config.model, config.margin, config.safety_weight, config.token_weight),
        prepare=lambda tokenizer: prepare_preferences(
            config.data, tokenizer, seq_len=config.seq_len, half=config.half
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

    def trains(self, name: str) -> bool:
        """Everything."""
        return True

    def abstract_batch(self, batch_size: int, seq_len: int) -> dict[str, jax.ShapeDtypeStruct]:
        """See `align.pairs`."""
        return abstract_pairs(batch_size, seq_len)

    def weights(self, batch: Batch) -> tuple[Array, Array]:
        """Pairs, and answers with a safety label."""
        pairs = jnp.sum(is_pair(batch), dtype=jnp.float32)
        labels = jnp.sum(_labelled(batch), dtype=jnp.float32)
        return jnp.maximum(pairs, 1), jnp.maximum(labels, 1)

    def loss(
        self, forward: Forward, batch: Batch, weights: tuple[Array, Array]
    ) -> tuple[Float[Array, ""], dict[str, Mean]]:
        """Ranking loss over pairs, at the end and by token; safety loss over labelled answers."""
        rows, pairs = answer_rows(batch), is_pair(batch)
        x, head = forward(rows["tokens"], rows["positions"], rows["segment_ids"])
        scores = _at_last(x, head, rows).reshape(-1, 2)
        means = {
            "ranking_loss": Mean.over(self._ranking(scores, batch), pairs),
            "accuracy": Mean.over(scores[:, 0] > scores[:, 1], pairs),
            "gap": Mean.over(scores[:, 0] - scores[:, 1], pairs),
            "score": Mean.over(scores, jnp.broadcast_to(pairs[:, None], scores.shape)),
        }
        loss = means["ranking_loss"].total / weights[0]
        if self.token_weight:
            by_token = apply_head(head, x).reshape(batch["tokens"].shape)
            means["token_loss"] = Mean.over(self._ranking_by_token(by_token, batch), pairs)
            loss += self.token_weight * means["token_loss"].total / weights[0]
        if self.safety_weight:
            labelled = _labelled(batch)
            terms = safety_terms(
                scores.reshape(-1), batch["safe"].reshape(-1) == 1, labelled.reshape(-1)
            )
            means["safety_loss"] = Mean.over(terms, labelled.reshape(-1))
            loss += self.safety_weight * means["safety_loss"].total / weights[1]
        return loss, means

    def examine(self, forward: Forward, batch: Batch) -> dict[str, Mean]:
        """Accuracy over all, by rating, and of the longer answer; ties; the safety threshold."""
        scores, pairs = row_scores(forward, answer_rows(batch)).reshape(-1, 2), is_pair(batch)
        better, length = scores[:, 0] > scores[:, 1], jnp.sum(batch["loss_mask"], axis=-1)
        found = {
            "loss": Mean.over(self._ranking(scores, batch), pairs),
            "accuracy": Mean.over(better, pairs),
            "ties": Mean.over(scores[:, 0] == scores[:, 1], pairs),
            "gap": Mean.over(scores[:, 0] - scores[:, 1], pairs),
            "longer_wins": Mean.over(
                length[:, 0] > length[:, 1], pairs & (length[:, 0] != length[:, 1])
            ),
        }
        found |= accuracy_by_rating(better, pairs, batch)
        labelled = _labelled(batch)
        found["unsafe_recall"] = Mean.over(scores < 0, labelled & (batch["safe"] == 0))
        found["safe_recall"] = Mean.over(scores >= 0, labelled & (batch["safe"] == 1))
        return found

    def _ranking(self, scores: Float[Array, "B 2"], batch: Batch) -> Float[Array, " B"]:
        return pairwise_terms(scores[:, 0], scores[:, 1], self._margins(batch))

    def _ranking_by_token(self, scores: Float[Array, "B 2 T"], batch: Batch) -> Float[Array, " B"]:
        """The mean ranking loss of each pair's tokens, from the first that differs."""
        tokens, inside = batch["tokens"], jnp.all(batch["segment_ids"] > 0, axis=1)
        apart = jnp.cumsum(tokens[:, 0] != tokens[:, 1], axis=-1) > 0
        counted = inside & apart
        margins = jnp.broadcast_to(self._margins(batch)[:, None], counted.shape)
        flat = (a.reshape(-1) for a in (scores[:, 0], scores[:, 1], margins))
        terms = jnp.where(counted, pairwise_terms(*flat).reshape(counted.shape), 0.0)
        return jnp.sum(terms, axis=-1) / jnp.maximum(jnp.sum(counted, axis=-1), 1)

    def _margins(self, batch: Batch) -> Float[Array, " B"]:
        table = jnp.asarray([0.0, *MARGINS[self.margin]], jnp.float32)  # unrated: no margin
        return jnp.where(jnp.isnan(batch["margin"]), table[batch["rating"] + 1], batch["margin"])


def row_scores(forward: Forward, rows: Batch) -> Float[Array, " B"]:
    """The score of each row [B,T], read at its last token; rows begin with their text."""
    x, head = forward(rows["tokens"], rows["positions"], rows["segment_ids"])
    return _at_last(x, head, rows)


def _at_last(x: Float[Array, "B T D"], head: Any, rows: Batch) -> Float[Array, " B"]:
    """What the head makes of the last token of each row."""
    last = jnp.maximum(jnp.sum(rows["segment_ids"] > 0, axis=1) - 1, 0)
    return apply_head(head, jnp.take_along_axis(x, last[:, None, None], axis=1)[:, 0])


def _labelled(batch: Batch) -> Array:
    """bool [B,2]: answers of which somebody said whether they are safe."""
    return (batch["safe"] >= 0) & is_pair(batch)[:, None]
