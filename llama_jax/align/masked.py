"""Masked reductions that check shapes and dtypes; masked-out entries have no influence.

Losses and estimators check their arguments here. Silent broadcasting of [B,1] against [B], integer
rewards and padding that leaks into a mean are the common faults of this field; all of them raise,
or cannot happen.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

Mask = Bool[Array, "*shape"] | Float[Array, "*shape"]
"""True or 1 where an entry counts."""


def floats(axes: str | None, /, **arrays: Any) -> tuple[Array, ...]:
    """Returns the named arrays, checked to have one shape, in float32 or wider.

    axes: the letters of that shape, as "B T"; None for any.

    Raises:
      TypeError: an array holds integers or booleans.
      ValueError: an array has another rank, or another shape than the first.
    """
    first, shape, found = "", (), []
    for name, array in arrays.items():
        array = jnp.asarray(array)
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise TypeError(f"{name} must hold floating-point numbers, not {array.dtype}")
        if axes is not None and array.ndim != len(axes.split()):
            raise ValueError(f"{name} must have the axes [{axes}], not the shape {array.shape}")
        if not found:
            first, shape = name, array.shape
        if array.shape != shape:
            raise ValueError(f"{name} has the shape {array.shape}, but {first} has {shape}")
        found.append(array.astype(jnp.promote_types(array.dtype, jnp.float32)))
    return tuple(found)


def as_mask(mask: Any, shape: tuple[int, ...], name: str = "mask") -> Bool[Array, "*shape"]:
    """Returns the mask as booleans.

    Raises:
      TypeError: it holds integers, which are more often tokens or segments than a mask.
      ValueError: it has another shape than what it masks.
    """
    mask = jnp.asarray(mask)
    if mask.dtype != bool and not jnp.issubdtype(mask.dtype, jnp.floating):
        raise TypeError(f"{name} must be boolean, or 0 and 1 as floats, not {mask.dtype}")
    if mask.shape != shape:
        raise ValueError(f"{name} has the shape {mask.shape}, but what it masks has {shape}")
    return mask.astype(bool)


def under(mask: Any, axes: str | None, /, **arrays: Any) -> tuple[Array, ...]:
    """`as_mask` of the mask, then `floats` of the arrays with 0 wherever it is false.

    Zeros come first, before any arithmetic: the gradient of a `where` around a square or an
    exponential is not finite where the masked value is not.
    """
    found = floats(axes, **arrays)
    counted = as_mask(mask, found[0].shape)
    return counted, *(jnp.where(counted, a, 0) for a in found)


def masked_sum(x: Float[Array, "*shape"], mask: Mask) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Sum of x over the mask, and the number of its entries: both add up over micro-batches."""
    counted, x = under(mask, None, x=x)
    return jnp.sum(x), jnp.sum(counted, dtype=x.dtype)


def masked_mean(x: Float[Array, "*shape"], mask: Mask) -> Float[Array, ""]:
    """Mean of x over the mask; 0 where the mask is empty."""
    total, count = masked_sum(x, mask)
    return total / jnp.maximum(count, 1)


def masked_variance(x: Float[Array, "*shape"], mask: Mask) -> Float[Array, ""]:
    """Population variance of x over the mask; 0 where the mask is empty."""
    return masked_mean(jnp.square(x - masked_mean(x, mask)), mask)


def masked_whiten(x: Float[Array, "*shape"], mask: Mask) -> Float[Array, "*shape"]:
    """(x - mean) / sqrt(variance + 1e-8) over the mask, 0 outside it.

    The variance is the population's (divided by n, not n - 1), so that one entry gives 0; over a
    batch that a mesh splits, both moments are those of the whole batch.
    """
    counted, x = under(mask, None, x=x)
    centred = x - masked_mean(x, counted)
    return jnp.where(counted, centred * jax.lax.rsqrt(masked_variance(x, counted) + 1e-8), 0)
