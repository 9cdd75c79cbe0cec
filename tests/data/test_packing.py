"""Packing against plain Python: what comes out must be what went in, once."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_jax.data import packing
from llama_jax.data.corpora import tales
from llama_jax.data.packing import (
    best_fit,
    pack,
    pack_whole,
    positions_of,
    target_bytes,
    target_mask,
)  # fmt: skip

BOS, EOS = 1, 2
BODY = st.lists(st.integers(3, 99), max_size=30)
DOCUMENTS = st.lists(BODY.map(lambda body: [BOS, *body, EOS]), min_size=1, max_size=12)


def stack(records):
    return {name: np.stack([r[name] for r in records]) for name in records[0]}


def unpack(records):
    """The documents again: segments in order, continued ones joined without the repeated token."""
    documents = []
    for record in records:
        for segment in range(1, record["segment_ids"].max() + 1):
            tokens = record["tokens"][record["segment_ids"] == segment].tolist()
            if tokens[0] == BOS and (not documents or documents[-1][-1] == EOS):
                documents.append(tokens)
            else:
                assert documents[-1][-1] == tokens[0]
                documents[-1] += tokens[1:]
    return documents


@settings(deadline=None, max_examples=80)
@given(DOCUMENTS, st.integers(2, 40))
def test_invertible(documents, seq_len):
    records = list(pack(documents, seq_len))
    assert unpack(records) == documents
    assert all(len(r["tokens"]) == seq_len for r in records)
    assert all((r["segment_ids"] > 0).all() for r in records[:-1])  # only the last is padded
    padding = records[-1]["segment_ids"] == 0
    assert (np.diff(padding.astype(int)) >= 0).all()


@settings(deadline=None, max_examples=80)
@given(DOCUMENTS, st.integers(2, 40))
def test_every_token_but_bos_is_a_target_once_after_its_predecessor(documents, seq_len):
    pairs = []
    for r in pack(documents, seq_len):
        for t in range(1, seq_len):
            same = r["segment_ids"][t] == r["segment_ids"][t - 1] > 0
            assert bool(target_mask(r)[t]) == bool(same)
            if same:
                pairs.append((int(r["tokens"][t - 1]), int(r["tokens"][t])))
        assert not target_mask(r)[0]
    expected = [pair for d in documents for pair in itertools.pairwise(d)]
    assert pairs == expected


@settings(deadline=None, max_examples=60)
@given(DOCUMENTS, st.integers(2, 40))
def test_positions_restart(documents, seq_len):
    for r in pack(documents, seq_len):
        seen = {}
        for segment, position in zip(r["segment_ids"], r["positions"], strict=True):
            assert position == (0 if segment == 0 else seen.get(segment, 0))
            seen[segment] = position + 1
        assert r["positions"].dtype == np.int32
        np.testing.assert_array_equal(positions_of(r["segment_ids"][None])[0], r["positions"])


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(st.tuples(st.integers(3, 99), st.booleans()), min_size=2, max_size=20),
                min_size=1, max_size=8), st.integers(2, 24))  # fmt: skip
def test_masks_travel_with_their_tokens(rows, seq_len):
    documents = [([t for t, _ in row], [m for _, m in row]) for row in rows]
    records = list(pack(documents, seq_len))
    counted = [int(t) for r in records for t in r["tokens"][target_mask(r)]]
    assert counted == [t for row in rows for t, m in row[1:] if m]


def test_a_document_is_cut_and_goes_on():
    first, second = pack([[1, 5, 6, 7, 2]], 4)
    np.testing.assert_array_equal(first["tokens"], [1, 5, 6, 7])
    np.testing.assert_array_equal(second["tokens"], [7, 2, 0, 0])
    np.testing.assert_array_equal(second["segment_ids"], [1, 1, 0, 0])
    np.testing.assert_array_equal(second["positions"], [0, 1, 0, 0])


@pytest.mark.parametrize("seq_len", [2, 5, 64, 300])
def test_target_bytes_are_the_bytes_of_the_text(tokenizer, seq_len):
    texts = ["", "a", "h\u00e9llo 日本\n", *[tales.story(i) for i in range(20)]]
    ids = tokenizer.encode_batch(texts, bos=True, eos=True)
    batch = stack(list(pack(ids, seq_len)))
    expected = sum(len(text.encode()) for text in texts)
    assert target_bytes(batch, tokenizer.byte_lengths, tokenizer.bos_id) == expected


def test_uncounted_tokens_have_no_bytes(tokenizer):
    ids = tokenizer.encode("Mia ran home.", bos=True, eos=True)
    batch = stack(list(pack([(ids, [0] * len(ids))], 32)))
    assert target_bytes(batch, tokenizer.byte_lengths, tokenizer.bos_id) == 0


def best_fit_by_search(lengths, seq_len):
    """How full the bins are, looking at every bin for every document."""
    loads = []
    for length in sorted(lengths, reverse=True):
        fitting = [load for load in loads if load + length <= seq_len]
        if fitting:
            loads.remove(max(fitting))
        loads.append(max(fitting, default=0) + length)
    return sorted(loads)


@settings(deadline=None, max_examples=80)
@given(st.lists(st.integers(1, 20), max_size=40), st.integers(20, 40))
def test_best_fit_is_that_of_a_search(lengths, seq_len):
    bins = best_fit(lengths, seq_len)
    assert sorted(i for row in bins for i in row) == list(range(len(lengths)))
    assert sorted(sum(lengths[i] for i in row) for row in bins) == best_fit_by_search(
        lengths, seq_len
    )


def test_best_fit_prefers_the_fullest_bin():
    assert best_fit([4, 6, 3, 7, 4, 2], 10) == [[3, 2], [1, 0], [4, 5]]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(st.tuples(st.integers(3, 99), st.booleans()), min_size=1, max_size=16),
                max_size=12), st.integers(16, 30), st.sampled_from([1, 20, 10**6]))  # fmt: skip
def test_whole_documents_come_out_whole(rows, seq_len, window):
    documents = [([t for t, _ in row], [int(m) for _, m in row]) for row in rows]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "WINDOW_TOKENS", window)
        records = list(pack_whole(documents, seq_len))
    found = []
    for record in records:
        assert {name: v.dtype.name for name, v in record.items()} == {
            "tokens": "int32", "segment_ids": "int32", "positions": "int32", "loss_mask": "uint8",
        }  # fmt: skip
        assert all(len(values) == seq_len for values in record.values())
        segments = record["segment_ids"]
        used = int((segments > 0).sum())
        assert not segments[used:].any()
        assert not record["loss_mask"][used:].any()
        for segment in range(1, segments.max() + 1):
            (at,) = np.nonzero(segments == segment)
            assert record["positions"][at].tolist() == list(range(len(at)))
            found.append((record["tokens"][at].tolist(), record["loss_mask"][at].tolist()))
    assert sorted(found) == sorted(documents)
    if window == 1:
        assert found == documents


def test_a_document_that_does_not_go_in():
    with pytest.raises(ValueError, match="document of 5 tokens does not go into seq_len=4"):
        list(pack_whole([[1, 5, 6, 7, 2]], 4))
    with pytest.raises(ValueError, match="document of 0 tokens"):
        list(pack_whole([[]], 4))


def test_bad_arguments():
    with pytest.raises(ValueError, match="seq_len=1"):
        list(pack([[1, 2]], 1))
    with pytest.raises(ValueError, match="mask of 1"):
        list(pack([([1, 2], [1])], 4))
