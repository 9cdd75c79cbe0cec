"""Texts of several rows in one: nothing is lost, few shapes, and models say the same of them."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_jax.align import scoring
from llama_jax.align.packed import SHARES, packing
from llama_jax.align.policy_objectives import Policy, Value
from llama_jax.align.scoring import Scorer, rows_of, values_of
from llama_jax.model.presets import TINY
from llama_jax.model.weights import abstract_params
from llama_jax.train.step import mean_loss_and_gradient
from tests.comparison import random_params

T = 16
LENGTHS = st.lists(st.integers(0, T), min_size=1, max_size=24)


def rows_with(lengths, seed=0):
    """Rows of random tokens, with a float that belongs to each token."""
    rng = np.random.default_rng(seed)
    rows = rows_of([rng.integers(1, 90, n).tolist() for n in lengths], T)
    return rows | {"own": np.where(rows["segment_ids"] > 0, rng.random((len(lengths), T)), 0)}


@given(LENGTHS)
@settings(max_examples=100, deadline=None)
def test_what_is_packed_comes_back(lengths):
    rows = rows_with(lengths)
    fewer = packing(rows["segment_ids"])
    packed = fewer.pack(rows)
    for name in ("tokens", "positions", "own"):
        assert packed[name].shape == (fewer.rows, T)
        assert packed[name].dtype == rows[name].dtype
        np.testing.assert_array_equal(fewer.unpack(packed[name]), rows[name])
    assert np.count_nonzero(packed["segment_ids"]) == sum(lengths)


@given(LENGTHS)
@settings(max_examples=100, deadline=None)
def test_each_text_is_one_segment_of_its_own(lengths):
    """As one reads the packed rows: the texts found in them are those that were given."""
    rows = rows_with(lengths)
    packed = packing(rows["segment_ids"]).pack(rows)
    found = []
    for tokens, positions, segments in zip(
        packed["tokens"], packed["positions"], packed["segment_ids"], strict=True
    ):
        assert (np.diff(segments[segments > 0]) >= 0).all()
        for segment in range(1, segments.max() + 1):
            inside = segments == segment
            assert positions[inside].tolist() == list(range(inside.sum()))
            found.append(tokens[inside].tolist())
    given_texts = [t[:n].tolist() for t, n in zip(rows["tokens"], lengths, strict=True) if n]
    assert sorted(found) == sorted(given_texts)


@given(st.integers(1, 6), st.integers(1, 12), st.data())
@settings(max_examples=100, deadline=None)
def test_rows_shrink_by_eighths_and_to_a_multiple(multiple, blocks, data):
    R = multiple * blocks
    lengths = data.draw(st.lists(st.integers(0, T), min_size=R, max_size=R))
    P = packing(rows_with(lengths)["segment_ids"], multiple).rows
    assert 0 < P <= R
    assert P % multiple == 0
    sizes = {packing(rows_with([n] * R)["segment_ids"], multiple).rows for n in range(T + 1)}
    assert len(sizes) <= SHARES
    assert sum(lengths) <= P * T


def test_short_texts_shrink_to_an_eighth_and_long_ones_not_at_all():
    assert packing(rows_with([2] * 32)["segment_ids"]).rows == 4
    assert packing(rows_with([T] * 32)["segment_ids"]).rows == 32
    assert packing(rows_with([0] * 32)["segment_ids"]).rows == 4


def test_rows_that_no_mesh_splits_evenly_are_refused():
    with pytest.raises(ValueError, match="6 rows are not a multiple of 4"):
        packing(rows_with([3] * 6)["segment_ids"], 4)


LANGUAGE = replace(TINY, vocab_size=96, num_layers=1)
REWARD = replace(LANGUAGE, head="score")
MIXED = [3, 16, 5, 1, 9, 2, 7, 4]


def test_models_read_fewer_rows_than_they_are_asked_about(monkeypatch):
    """Eight texts of 47 tokens fill three rows; their values do not change."""
    params, rows = random_params(abstract_params(REWARD)), rows_with(MIXED)
    scorer, asked = Scorer(REWARD, params, len(MIXED)), []
    place = scoring.place_rows

    def counted(block):
        asked.append(block["tokens"].shape)
        return place(block)

    monkeypatch.setattr(scoring, "place_rows", counted)
    together = values_of(scorer, rows)
    assert asked == [(3, T)]
    alone = np.concatenate([
        values_of(Scorer(REWARD, params, 1), {k: a[r : r + 1] for k, a in rows.items()})
        for r in range(len(MIXED))
    ])  # fmt: skip
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert not together[rows["segment_ids"] == 0].any()


@pytest.mark.parametrize("objective", [Policy(LANGUAGE, 0.2, 0.9), Value(REWARD, 0.2)])
def test_a_packed_minibatch_has_the_loss_and_the_gradient_of_its_rows(objective):
    rows, rng = rows_with(MIXED), np.random.default_rng(1)
    inside = rows["segment_ids"] > 0
    t = np.arange(T)
    rows["answer"] = inside & np.roll(inside, -1, axis=1) & (t > 0) & (t < T - 1)
    for name in objective.floats():
        drawn = rng.normal(size=inside.shape) - 3
        rows[name] = np.where(rows["answer"], drawn, 0).astype("float32")
    batch = {k: rows[k] for k in objective.abstract_batch(len(MIXED), T)}
    packed = packing(rows["segment_ids"]).pack(batch)
    batch, packed = (jax.tree.map(jnp.asarray, b) for b in (batch, packed))
    assert len(packed["tokens"]) < len(MIXED)
    params = random_params(abstract_params(objective.model))
    (loss, means), gradient = mean_loss_and_gradient(
        params, batch, objective=objective, accumulate=1
    )
    (also, same), equal = mean_loss_and_gradient(params, packed, objective=objective, accumulate=1)
    np.testing.assert_allclose(also, loss, rtol=1e-5)
    for name, mean in means.items():
        np.testing.assert_allclose(same[name].total, mean.total, rtol=1e-4, atol=1e-5)
        assert same[name].count == mean.count
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), equal, gradient)
    assert max(float(abs(g).max()) for g in jax.tree.leaves(gradient)) > 1e-3
