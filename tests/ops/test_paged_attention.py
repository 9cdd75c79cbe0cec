"""Attention to pages against the formula in float64, and rows that do not know their neighbours."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax.ops.cached_attention import VALUES
from llama_jax.ops.int8_cache import Int8Pages, rounded
from llama_jax.ops.paged_attention import paged_attention, write_pages

N, K, P = 4, 2, 12
START = np.array([0, 6, 11], np.int32)


def expected(q, k, v, start):
    """One row: queries [T,N,H] at positions start onwards, keys and values [S,K,H]."""
    out = np.zeros(q.shape)
    for t, n in np.ndindex(q.shape[:2]):
        seen = start + t + 1
        logits = k[:seen, n // (N // K)] @ q[t, n] / np.sqrt(q.shape[-1])
        weights = np.exp(logits - logits.max())
        out[t, n] = weights @ v[:seen, n // (N // K)] / weights.sum()
    return out


def empty_pool(axes, page, H, int8):
    """What nobody wrote is not a number."""
    sizes = {"B": P, "S": page, "K": K, "H": H}
    shape = [sizes[axis] for axis in axes]
    if int8:
        return Int8Pages(jnp.full(shape, 77, jnp.int8), jnp.full((P, K, page), np.nan, jnp.float32))
    return jnp.full(shape, np.nan, jnp.float32)


def case(T, H, page, order, rng, int8=False):
    """Rows of 0, 6 and 11 earlier tokens and T new ones, in pages out of order."""
    S = START + T
    tables = rng.permutation(np.arange(1, P)).astype(np.int32)
    table, at = np.zeros((3, 4), np.int32), 0
    for b, size in enumerate(S):
        pages = -(-size // page)
        table[b, :pages] = tables[at : at + pages]
        at += pages
    k, v = (rng.normal(size=(3, S.max(), K, H)).astype(np.float32) for _ in range(2))
    keys, values = (empty_pool(axes, page, H, int8) for axes in (order, VALUES[order]))
    for b, before in enumerate(START):
        if before:
            row = slice(b, b + 1)
            old = (jnp.asarray(a[row, :before]) for a in (k, v))
            keys, values = write_pages(
                keys, values, *old, jnp.asarray(table[row]), jnp.zeros(1, jnp.int32), order=order
            )
    new = [jnp.stack([a[b, s : s + T] for b, s in enumerate(START)]) for a in (k, v)]
    keys, values = write_pages(
        keys, values, *new, jnp.asarray(table), jnp.asarray(START), order=order
    )
    q = rng.normal(size=(3, T, N, H)).astype(np.float32)
    return q, k, v, keys, values, table


KERNEL = pytest.param(1, 64, 8, "BSKH", marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("T", "H", "page", "order"), [(1, 8, 4, "BKHS"), (5, 8, 4, "BKHS"), (1, 8, 16, "BKHS"), KERNEL]
)
def test_each_row_attends_to_its_own_pages(T, H, page, order):
    q, k, v, keys, values, table = case(T, H, page, order, np.random.default_rng(0))
    if order == "BSKH":  # the kernel reads whole pages
        keys, values = (jnp.nan_to_num(pool) for pool in (keys, values))
    out = jax.jit(paged_attention, static_argnames="order")(
        q, keys, values, table, START, order=order
    )
    for b, start in enumerate(START):
        wanted = expected(*(a[b].astype(np.float64) for a in (q, k, v)), start)
        np.testing.assert_allclose(out[b], wanted, atol=2e-5)


KERNEL = pytest.param(1, 64, 128, "BSKH", marks=pytest.mark.slow)
PREFILL = pytest.param(130, 64, 128, "BSKH", marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("T", "H", "page", "order"), [(1, 8, 4, "BKHS"), (5, 8, 4, "BKHS"), KERNEL, PREFILL]
)
def test_pages_in_int8_hold_the_nearest_numbers(T, H, page, order):
    """The formula over keys and values that are rounded first."""
    q, k, v, keys, values, table = case(T, H, page, order, np.random.default_rng(2), int8=True)
    if order == "BSKH":
        keys, values = (pool._replace(scale=jnp.nan_to_num(pool.scale)) for pool in (keys, values))
    out = jax.jit(paged_attention, static_argnames="order")(
        q, keys, values, table, START, order=order
    )
    assert keys.numbers.dtype == jnp.int8
    for b, start in enumerate(START):
        stored = (np.float64(rounded(jnp.asarray(a[b]))) for a in (k, v))
        wanted = expected(q[b].astype(np.float64), *stored, start)
        np.testing.assert_allclose(out[b], wanted, atol=2e-5)
    exact = expected(*(a[2].astype(np.float64) for a in (q, k, v)), START[2])
    assert 1e-4 < np.abs(out[2] - exact).max() < 0.1


@pytest.mark.parametrize("T", [1, 5])
def test_a_rows_bits_do_not_depend_on_its_neighbours_length(T):
    q, _, _, keys, values, table = case(T, 8, 4, "BKHS", np.random.default_rng(1))
    attend = jax.jit(paged_attention, static_argnames="order")
    together = attend(q, keys, values, table, START, order="BKHS")
    for b in range(3):
        others, start = np.zeros_like(table), np.zeros_like(START)
        others[b], start[b] = table[b], START[b]
        lone = attend(q, jnp.nan_to_num(keys), jnp.nan_to_num(values), others, start, order="BKHS")
        np.testing.assert_array_equal(lone[b], together[b])


def test_what_lies_beyond_the_table_is_written_to_nobodys_page():
    keys, values = jnp.zeros((3, K, 8, 4)), jnp.zeros((3, K, 4, 8))
    new = jnp.ones((1, 4, K, 8))
    table, start = jnp.array([[2]]), jnp.array([2])
    keys, values = write_pages(keys, values, new, new, table, start, order="BKHS")
    np.testing.assert_array_equal(keys[2, 0, 0], [0, 0, 1, 1])
    np.testing.assert_array_equal(values[0, 0, :, 0], [1, 1, 0, 0])
    assert not np.any(keys[1])
