"""Keys and values in int8: the vector of each head and position has its own scale.

Rounding is symmetric and to the nearest, as that of int8 matrices (`model.quantize`): the largest
number of a vector becomes 127. The cache then takes a little over a quarter of its size in float32,
and a little over half of its size in bfloat16.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int8

MOST = 127.0
SCALE_BYTES = 4
"""Bytes of a vector's scale."""


class Int8Pages(NamedTuple):
    """A pool of pages, see `ops.paged_attention`. The pool's order determines the axes x, y and
    z."""

    numbers: Int8[Array, "P x y z"]
    scale: Float[Array, "P K page"]
    """The factor of a head's numbers at a position."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the numbers."""
        return self.numbers.shape


def to_int8(
    x: Float[Array, "..."], axes: tuple[int, ...] = (-1,)
) -> tuple[Int8[Array, "..."], Float[Array, "..."]]:
    """Numbers in the shape of x, and the scale shared along `axes`; zeros get a scale of 0."""
    x = x.astype(jnp.float32)
    scale = jnp.max(jnp.abs(x), axis=axes, keepdims=True) / MOST
    numbers = jnp.round(x / jnp.where(scale > 0, scale, 1.0))
    return numbers.astype(jnp.int8), jnp.squeeze(scale, axes)


def rounded(x: Float[Array, "*at H"]) -> Float[Array, "*at H"]:
    """The vectors after a round trip through an int8 cache, in their own dtype."""
    numbers, scale = to_int8(x)
    return (numbers.astype(jnp.float32) * scale[..., None]).astype(x.dtype)
