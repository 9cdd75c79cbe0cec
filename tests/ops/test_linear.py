"""Projections of one position a row: right, and the same for any number of rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax.ops.linear import project


def arrays(B, shape, inputs):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((B, 1, *shape[:inputs])).astype(np.float32)
    return jnp.asarray(x), jnp.asarray(rng.standard_normal(shape), jnp.float32)


@pytest.mark.parametrize(
    ("shape", "inputs"),
    [
        ((24, 40), 1),
        ((288, 6, 8), 1),
        ((6, 48, 96), 2),
        ((768, 288), 1),
        ((511, 64), 1),
        ((768, 1024), 1),
        ((12, 64, 768), 2),
    ],
    ids=str,
)
def test_a_row_comes_out_the_same_bit_by_bit_whatever_the_number_of_rows(optimized, shape, inputs):
    x, w = arrays(67, shape, inputs)
    run = jax.jit(lambda x: project(x, w, inputs))
    alone = np.asarray(run(x[:1]))[0]
    for B in (2, 3, 8, 32, 33, 67):
        np.testing.assert_array_equal(np.asarray(run(x[:B]))[0], alone, err_msg=f"{B} rows")


def int8(shape):
    return jnp.asarray(np.random.default_rng(1).integers(-127, 128, shape), jnp.int8)


@pytest.mark.parametrize(("shape", "inputs"), [((288, 2, 8), 1), ((97, 33), 1)], ids=str)
def test_so_it_does_where_integers_are_read(optimized, shape, inputs):
    """Also where terms, or sums of them, come in no whole groups; and with a scale, which could be
    rounded together with what is added."""
    (x, _), w = arrays(35, shape, inputs), int8(shape)
    scale = jnp.asarray(np.random.default_rng(2).standard_normal(shape[inputs:]), jnp.float32)
    run = jax.jit(lambda x: 0.1 + project(x, w, inputs, scale))
    alone = np.asarray(run(x[:1]))[0]
    for B in (2, 4, 9, 35):
        np.testing.assert_array_equal(np.asarray(run(x[:B]))[0], alone, err_msg=f"{B} rows")


@pytest.mark.parametrize("T", [1, 3])
def test_integers_are_what_they_are(T):
    shape = (6, 48, 10, 4)
    w, x = int8(shape), np.random.default_rng(0).standard_normal((5, T, 6, 48))
    found = project(jnp.asarray(x, jnp.float32), w, 2)
    np.testing.assert_allclose(found, np.tensordot(x, np.float64(w), axes=2), rtol=2e-5, atol=2e-3)


def test_no_copy_of_integers_in_floating_point_is_made():
    """The largest temporary is a sum for every 16 terms, a quarter of the bytes of the weight."""
    x, w = jnp.ones((1, 1, 512), jnp.float32), int8((512, 2048))
    memory = jax.jit(project).lower(x, w).compile().memory_analysis()
    assert memory.temp_size_in_bytes < w.nbytes


@pytest.mark.parametrize("B", [1, 5, 33])
def test_it_is_the_product(B):
    x, w = arrays(B, (6, 48, 10, 4), 2)
    expected = np.tensordot(np.asarray(x, np.float64), np.asarray(w, np.float64), axes=2)
    np.testing.assert_allclose(project(x, w, 2), expected, rtol=2e-5, atol=2e-5)


def test_the_program_for_many_rows_is_not_longer():
    """Rows beyond one group are a loop, not one product after another."""

    def size(B):
        x, w = arrays(B, (24, 40), 1)
        return jax.jit(project).lower(x, w).as_text().count("\n")

    assert size(4096) == size(64)
