"""Root mean square normalisation (Zhang and Sennrich 2019; Llama 2, section 2.2)."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from llama_jax.ops.ordered_sum import ordered_sum


def rms_norm(x: Float[Array, "... D"], scale: Float[Array, " D"], *, eps: float) -> Array:
    """x / sqrt(mean(x^2) + eps) * scale, computed in float32, returned in x's dtype [..., D].

    The backward pass keeps x in its dtype and one float32 per row, no float32 copy of x.
    """
    return _rms_norm(x, scale, eps)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _rms_norm(x, scale, eps):
    return _forward(x, scale, eps)[0]


def _forward(x, scale, eps):
    x32 = x.astype(jnp.float32)
    inverse = jax.lax.rsqrt(_mean_square(x32) + eps)
    return (x32 * inverse * _row(scale, x.ndim)).astype(x.dtype), (x, scale, inverse)


def _mean_square(x):
    """[..., 1]. One position per row is one step of a decoder: see `ops.ordered_sum`."""
    if x.ndim == 3 and x.shape[1] == 1:
        return ordered_sum(jnp.square(x[:, 0]))[:, None, None] / x.shape[2]
    return jnp.mean(jnp.square(x), axis=-1, keepdims=True)


def _backward(eps, residuals, g):
    x, scale, inverse = residuals
    normed, g32 = x.astype(jnp.float32) * inverse, g.astype(jnp.float32)
    scaled = g32 * _row(scale, x.ndim)
    d_x = inverse * (scaled - normed * jnp.mean(scaled * normed, axis=-1, keepdims=True))
    d_scale = jnp.sum(g32 * normed, axis=tuple(range(x.ndim - 1)))
    return d_x.astype(x.dtype), d_scale.astype(scale.dtype)


def _row(scale, ndim):
    return jnp.expand_dims(scale.astype(jnp.float32), tuple(range(ndim - 1)))


_rms_norm.defvjp(_forward, _backward)
