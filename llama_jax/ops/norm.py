"""Root mean square normalisation (Zhang and Sennrich 2019; Llama 2, section 2.2)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def rms_norm(x: Float[Array, "... D"], scale: Float[Array, " D"], *, eps: float) -> Array:
    """x / sqrt(mean(x^2) + eps) * scale, computed in float32, returned in x's dtype [..., D]."""
    x32 = x.astype(jnp.float32)
    inverse = jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + eps)
    scale = jnp.expand_dims(scale.astype(jnp.float32), tuple(range(x.ndim - 1)))
    return (x32 * inverse * scale).astype(x.dtype)
