"""Texts in a row: where they lie, against plain Python."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_jax.align.segments import apart, segment_sums, spans

T = 11


def rows_with(lengths):
    """Rows [R,T] whose segments have these lengths, then padding."""
    segment_ids = np.zeros((len(lengths), T), np.int32)
    for row, parts in zip(segment_ids, lengths, strict=True):
        numbers = np.repeat(np.arange(1, len(parts) + 1), parts)
        row[: len(numbers)] = numbers
    return segment_ids


partitions = st.lists(
    st.lists(st.integers(1, 5), max_size=4).filter(lambda p: sum(p) <= T), min_size=1, max_size=4
)


@settings(max_examples=25, deadline=None)
@given(partitions, st.integers(1, 4))
def test_segments_are_found_summed_and_set_apart(lengths, count):
    segment_ids = rows_with(lengths)
    R = len(lengths)
    values = np.random.default_rng(0).standard_normal((R, T)).astype(np.float32)
    tokens = np.arange(1, R * T + 1, dtype=np.int32).reshape(R, T)
    starts, sizes = spans(jnp.asarray(segment_ids), count)
    sums = segment_sums(jnp.asarray(values), jnp.asarray(segment_ids), count)
    alone = apart({"tokens": tokens, "segment_ids": segment_ids}, count)
    assert alone["tokens"].shape == (R * count, T)
    for r, parts in enumerate(lengths):
        begins = 0
        for k in range(count):
            n = parts[k] if k < len(parts) else 0
            assert (int(starts[r, k]), int(sizes[r, k])) == (begins, n)
            expected = values[r, begins : begins + n].astype(np.float64).sum()
            assert float(sums[r, k]) == pytest.approx(expected, abs=1e-5)
            row = [*tokens[r, begins : begins + n], *[0] * (T - n)]
            assert alone["tokens"][r * count + k].tolist() == row
            own = r * count + k
            assert alone["segment_ids"][own].tolist() == [1] * n + [0] * (T - n)
            assert alone["positions"][own].tolist() == [*range(n), *[0] * (T - n)]
            begins += n
