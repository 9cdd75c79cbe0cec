"""How close is close: errors relative to the largest magnitude, and bounds from the dtype."""

import jax
import jax.numpy as jnp
import numpy as np


def assert_close(actual, expected, tolerance, what="array", scale=None):
    """max |actual - expected| <= tolerance * scale, shapes equal, all finite; scale max |expected|.

    Relative to the largest magnitude: a sum that cancels to nearly nothing has no relative
    accuracy of its own, and one scale for all entries cannot hide an error in a large one.
    """
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, f"{what}: {actual.shape} is not {expected.shape}"
    assert np.isfinite(actual).all(), f"{what} is not finite"
    error = np.abs(actual - expected)
    scale = np.abs(expected).max() if scale is None else scale
    worst = np.unravel_index(error.argmax(), error.shape)
    assert error[worst] <= tolerance * scale, (
        f"{what}{list(map(int, worst))}: {actual[worst]} is not {expected[worst]}: "
        f"off by {error[worst]:.2e}, more than {tolerance:.2e} of {scale:.3g}"
    )


def assert_trees_close(actual, expected, tolerance):
    """`assert_close` leaf by leaf; the structures must agree."""

    def check(path, a, e):
        assert_close(a, e, tolerance, jax.tree_util.keystr(path))

    jax.tree_util.tree_map_with_path(check, actual, expected)


def epsilon(dtype):
    """Spacing of the dtype at 1: 2^-23 for float32, 2^-7 for bfloat16."""
    return float(jnp.finfo(dtype).eps)


def quick_jit(f):
    """jax.jit with hasty machine code: the same program, compiled in half the time."""
    return jax.jit(f, compiler_options={"xla_backend_optimization_level": 0})


def random_params(abstract, seed=0):
    """Parameters with the spread of a trained model: no norm is 1, no two tensors are alike."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = path[-1].key
        if name.endswith("norm"):
            value = 1 + 0.3 * rng.standard_normal(leaf.shape)
        elif name == "embed":
            value = rng.standard_normal(leaf.shape)
        else:
            inputs = {"head": leaf.shape[:1], "o": leaf.shape[1:3]}.get(name, leaf.shape[1:2])
            value = rng.standard_normal(leaf.shape) / np.sqrt(np.prod(inputs))
        return jnp.asarray(value, leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, abstract)
