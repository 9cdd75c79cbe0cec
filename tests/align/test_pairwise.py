"""The objective of reward models, against NumPy float64 written from the formulas."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax.align.losses import MARGINS
from llama_jax.align.reward import Pairwise, row_scores
from llama_jax.data.records import RATINGS
from llama_jax.model.presets import TINY
from llama_jax.model.weights import abstract_params
from llama_jax.train.step import mean_loss_and_gradient
from tests.align.pair_rows import in_fewer_rows
from tests.comparison import assert_trees_close, quick_jit, random_params

V, D, T = 13, 5, 9
CFG = replace(TINY, vocab_size=V, d_model=D, head="score")
RNG = np.random.default_rng(0)
EMBED, SCORE, BIAS = (RNG.standard_normal(shape) for shape in ((V, D), (D, 1), 1))
NAN = np.nan


def pairs(*, rating, margin, safe, seed=1):
    """Pairs of answers of unequal lengths; the last one only fills the batch."""
    rng, B = np.random.default_rng(seed), len(rating)
    lengths = rng.integers(3, T + 1, (B, 2))
    lengths[-1] = 0
    valid = np.arange(T)[None, None] < lengths[..., None]
    return {
        "tokens": rng.integers(0, V, (B, 2, T)).astype(np.int32),  # garbage behind the answers
        "segment_ids": valid.astype(np.int32),
        "positions": np.where(valid, np.arange(T)[None, None], 0).astype(np.int32),
        "loss_mask": (valid & (np.arange(T)[None, None] >= 2)).astype(np.uint8),
        "rating": np.array(rating, np.int32)[:, None],
        "margin": np.array(margin, np.float32)[:, None],
        "safe": np.array(safe, np.int8)[:, None],
    }


BATCH = pairs(
    rating=[3, 2, 1, 0, -1, 2, 3, 3],
    margin=[NAN, NAN, NAN, NAN, NAN, 0.25, 0.0, NAN],
    safe=[[1, 0], [1, -1], [-1, -1], [0, 0], [-1, 1], [1, 1], [0, 1], [1, 0]],
)
LAST = 7
"""The pair that only fills the batch; what it says of itself does not count."""


def forward(tokens, positions, segment_ids, **_):
    head = {"score": jnp.asarray(SCORE, jnp.float32), "score_bias": jnp.asarray(BIAS, jnp.float32)}
    return jnp.asarray(EMBED, jnp.float32)[tokens], head


def scores_of(batch):
    """Scores [B,2] at the last token of each answer, float64."""
    last = np.maximum(batch["segment_ids"].sum(-1) - 1, 0)
    token = np.take_along_axis(batch["tokens"], last[..., None], 2)[..., 0]
    return (EMBED[token] @ SCORE)[..., 0] + BIAS


def loss_of(objective, batch, forward=forward):
    """Loss and averages of a batch."""
    batch = on_device(batch)
    return objective.loss(forward, batch, objective.weights(batch))


def on_device(batch):
    return {name: jnp.asarray(a) for name, a in batch.items()}


def averages(means):
    return {name: float(m.total) / max(float(m.count), 1) for name, m in means.items()}


@pytest.mark.parametrize("table", ["none", "small", "large"])
def test_the_loss_is_that_of_the_formula(table):
    r = scores_of(BATCH)[:LAST]
    margins = [*(MARGINS[table][k] for k in (3, 2, 1, 0)), 0.0, 0.25, 0.0]
    expected = np.log1p(np.exp(-(r[:, 0] - r[:, 1] - margins))).mean()
    loss, means = loss_of(Pairwise(CFG, table), BATCH)
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert averages(means) == pytest.approx(
        {
            "ranking_loss": expected,
            "accuracy": (r[:, 0] > r[:, 1]).mean(),
            "gap": (r[:, 0] - r[:, 1]).mean(),
            "score": r.mean(),
        },
        rel=1e-5,
    )


def test_the_loss_by_token_is_the_mean_of_a_pair_from_where_its_answers_part():
    batch = {name: a.copy() for name, a in BATCH.items()}
    batch["tokens"][:, 1, :3] = batch["tokens"][:, 0, :3]
    for name in ("tokens", "segment_ids", "positions", "loss_mask"):
        batch[name][2, 1] = batch[name][2, 0]  # answers that never part
    r = (EMBED[batch["tokens"]] @ SCORE)[..., 0] + BIAS
    margins = np.array([*(MARGINS["small"][k] for k in (3, 2, 1, 0)), 0.0, 0.25, 0.0])
    means = []
    for pair in range(LAST):
        tokens, n = batch["tokens"][pair], batch["segment_ids"][pair].sum(-1).min()
        (differ,) = np.nonzero(tokens[0] != tokens[1])
        gaps = [r[pair, 0, t] - r[pair, 1, t] for t in range(n) if len(differ) and t >= differ[0]]
        losses = [np.log1p(np.exp(-(gap - margins[pair]))) for gap in gaps]
        means.append(np.mean(losses) if losses else 0.0)
    assert means[2] == 0
    assert np.count_nonzero(means) >= 4
    without, _ = loss_of(Pairwise(CFG, "small"), batch)
    loss, found = loss_of(Pairwise(CFG, "small", token_weight=0.5), batch)
    assert averages(found)["token_loss"] == pytest.approx(np.mean(means), rel=1e-5)
    assert float(loss - without) == pytest.approx(0.5 * np.mean(means), rel=1e-4)


def test_the_safety_loss_takes_the_score_for_log_odds():
    r, safe = scores_of(BATCH)[:LAST], BATCH["safe"][:LAST, 0]
    toward = np.where(safe == 1, r, -r)[safe >= 0]
    safety = np.log1p(np.exp(-toward)).mean()
    plain, weighted = Pairwise(CFG, "small"), Pairwise(CFG, "small", safety_weight=0.5)
    without, _ = loss_of(plain, BATCH)
    loss, means = loss_of(weighted, BATCH)
    assert float(loss - without) == pytest.approx(0.5 * safety, rel=1e-5)
    assert averages(means)["safety_loss"] == pytest.approx(safety, rel=1e-5)
    assert float(means["safety_loss"].count) == (safe >= 0).sum()


def test_pairs_without_a_label_have_no_safety_loss():
    batch = {**BATCH, "safe": np.full_like(BATCH["safe"], -1)}
    plain, weighted = Pairwise(CFG, "small"), Pairwise(CFG, "small", safety_weight=1.0)
    losses = [loss_of(objective, batch)[0] for objective in (plain, weighted)]
    assert float(losses[0]) == float(losses[1])


@pytest.mark.parametrize(
    ("rating", "table", "loss"),
    [
        (0, "small", 0.6931), (1, "small", 0.8736), (2, "small", 1.0810), (3, "small", 1.3133),
        (2, "large", 2.1269), (3, "large", 3.0486), (3, "none", 0.6931), (-1, "large", 0.6931),
    ],
)  # fmt: skip
def test_an_untrained_head_has_the_loss_of_its_margin(rating, table, loss):
    def blank(tokens, positions, segment_ids, **_):
        return forward(tokens, None, None)[0], {
            "score": jnp.zeros((D, 1)), "score_bias": jnp.zeros(1)
        }  # fmt: skip

    batch = pairs(rating=[rating] * 4, margin=[NAN] * 4, safe=[[-1, -1]] * 4)
    found, means = loss_of(Pairwise(CFG, table), batch, blank)
    assert float(found) == pytest.approx(loss, abs=5e-5)
    assert averages(means)["accuracy"] == 0  # ties are not right


def test_an_examination_counts_what_it_says():
    batch = {name: a.copy() for name, a in BATCH.items()}
    for name in ("tokens", "segment_ids", "positions", "loss_mask"):
        batch[name][4, 1] = batch[name][4, 0]  # a tie, of equal lengths
    r, safe = scores_of(batch)[:LAST], batch["safe"][:LAST, 0]
    length = batch["loss_mask"].sum(-1)[:LAST]
    better, unequal = r[:, 0] > r[:, 1], length[:, 0] != length[:, 1]
    rating = batch["rating"][:LAST, 0]
    assert r[4, 0] == r[4, 1]
    found = Pairwise(CFG, "small").examine(forward, on_device(batch))
    expected = {
        "accuracy": better.mean(),
        "ties": (r[:, 0] == r[:, 1]).mean(),
        "gap": (r[:, 0] - r[:, 1]).mean(),
        "longer_wins": (length[:, 0] > length[:, 1])[unequal].mean(),
        "unsafe_recall": (r < 0)[safe == 0].mean(),
        "safe_recall": (r >= 0)[safe == 1].mean(),
        **{f"accuracy_{name}": better[rating == k].mean() for k, name in enumerate(RATINGS)},
    }
    said = averages(found)
    assert {name: said[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    assert float(found["longer_wins"].count) == unequal.sum() < LAST
    assert float(found["accuracy_significantly"].count) == 2


def test_a_score_is_read_at_the_last_token():
    def places(tokens, positions, segment_ids, **_):
        """The number of each position as its features."""
        here = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.float32), tokens.shape)
        return here[..., None], {"score": jnp.ones((1, 1)), "score_bias": jnp.zeros(1)}

    segment_ids = jnp.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]])
    rows = {"tokens": segment_ids, "positions": segment_ids, "segment_ids": segment_ids}
    assert row_scores(places, rows).tolist() == [[2], [4], [0], [0]]


@pytest.mark.parametrize("per_row", [2, 3, 7])
def test_pairs_in_a_row_have_the_loss_of_pairs_in_rows_of_their_own(per_row):
    alone = {name: a[:LAST].copy() for name, a in BATCH.items()}
    alone["tokens"][:, 1, :3] = alone["tokens"][:, 0, :3]
    together = in_fewer_rows(alone, per_row)
    assert together["tokens"].shape[0] == -(-LAST // per_row)
    objective = Pairwise(CFG, "small", 0.5, 0.7, per_row)
    one, many = loss_of(objective, alone), loss_of(objective, together)
    assert float(many[0]) == pytest.approx(float(one[0]), rel=1e-6)
    assert averages(many[1]) == pytest.approx(averages(one[1]), rel=1e-6)
    assert {k: float(m.count) for k, m in many[1].items()} == {
        k: float(m.count) for k, m in one[1].items()
    }
    examined = [averages(objective.examine(forward, on_device(b))) for b in (alone, together)]
    assert examined[1] == pytest.approx(examined[0], rel=1e-6)
    shapes = objective.abstract_batch(len(together["tokens"]), together["tokens"].shape[2])
    assert {k: (a.shape, a.dtype) for k, a in together.items()} == {
        k: (s.shape, s.dtype) for k, s in shapes.items()
    }


MODEL = replace(TINY, vocab_size=V, num_layers=1, head="score")
PARAMS = random_params(abstract_params(MODEL))


def gradient_of(batch, accumulate=1):
    step = quick_jit(
        lambda params, batch: mean_loss_and_gradient(
            params, batch, objective=Pairwise(MODEL, "small", 1.0), accumulate=accumulate
        )
    )
    (loss, means), gradient = step(PARAMS, batch)
    return float(loss), averages(means), gradient


@pytest.fixture(scope="module")
def whole():
    return gradient_of(BATCH)


def assert_same_step(found, expected):
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    assert found[1] == pytest.approx(expected[1], rel=1e-5)
    assert_trees_close(found[2], expected[2], 1e-5)


def test_micro_batches_add_up_to_the_batch(whole):
    assert_same_step(gradient_of(BATCH, accumulate=4), whole)


def test_the_model_reads_a_pair_beside_others_as_it_reads_it_alone(whole):
    found = gradient_of(in_fewer_rows({name: a[:LAST] for name, a in BATCH.items()}, 3))
    assert_same_step(found, whole)


def test_filling_rows_and_garbage_behind_answers_change_nothing(whole):
    garbage = {name: a.copy() for name, a in BATCH.items()}
    behind = garbage["segment_ids"] == 0
    garbage["tokens"][behind] = 0
    garbage["rating"][LAST], garbage["margin"][LAST], garbage["safe"][LAST] = -1, 5.0, -1
    found = gradient_of(garbage)
    assert found[:2] == whole[:2]
    jax.tree.map(np.testing.assert_array_equal, found[2], whole[2])
    assert_same_step(gradient_of({name: a[:LAST] for name, a in BATCH.items()}), whole)
