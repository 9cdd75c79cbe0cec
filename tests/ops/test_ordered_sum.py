"""Sums of rows: right, and the same bit by bit for any number of rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax.ops.ordered_sum import ordered_sum


@pytest.mark.parametrize("width", [1, 15, 62, 500, 4097, 32000])
def test_a_row_is_added_alike_among_any_number_of_rows(optimized, width):
    x = np.random.default_rng(width).standard_normal((33, width)).astype(np.float32)
    run = jax.jit(lambda x: ordered_sum(jnp.exp(x)))
    found = np.asarray(run(jnp.asarray(x)))
    np.testing.assert_allclose(found, np.exp(np.float64(x)).sum(axis=-1), rtol=1e-6)
    for B in (1, 2, 4, 5, 8, 16):
        some = np.asarray(run(jnp.asarray(x[:B])))
        np.testing.assert_array_equal(some, found[:B], err_msg=f"{B} rows")
