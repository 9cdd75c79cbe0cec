"""Rotary position embedding in the half-split layout, and its context extensions.

Head dimensions j and j + H/2 form a plane that is rotated by position * frequency[j]
(Su et al. 2021, equation 34). The extensions change the frequencies only:

- linear  position interpolation, Chen et al. 2023: positions shrink by the factor
- ntk     NTK-aware: the base grows so that the slowest plane shrinks by the factor and the
          fastest hardly changes (bloc97 2023; Peng et al. 2023, section 3.1)
- yarn    NTK-by-parts plus a temperature on the logits (Peng et al. 2023, equations 17 to 22)
"""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

# Planes that turn more often than this within the pretrained context keep their frequency, those
# that turn less often than YARN_SLOW are interpolated (Peng et al. 2023, section 3.2: Llama).
YARN_FAST, YARN_SLOW = 32.0, 1.0


def rope_frequencies(
    head_dim: int, *, theta: float, scaling: str, factor: float, pretrained_len: float
) -> tuple[Float[np.ndarray, " half"], float]:
    """Angular frequencies float32 [H/2] in radians per position, and the amplitude.

    The amplitude multiplies cosines and sines, so the attention logits grow by its square; it is 1
    except for YaRN. `pretrained_len` is the context before extension, in tokens.

    Raises:
      ValueError: `scaling` is not one of none, linear, ntk, yarn.
    """
    exponents = np.arange(0, head_dim, 2) / head_dim
    plain = theta**-exponents
    if scaling == "none":
        return plain.astype(np.float32), 1.0
    if scaling == "linear":
        return (plain / factor).astype(np.float32), 1.0
    if scaling == "ntk":
        base = theta * factor ** (head_dim / (head_dim - 2))
        return (base**-exponents).astype(np.float32), 1.0
    if scaling == "yarn":
        # The paper's ramp is linear in a plane's number of turns. Its authors' code, which made the
        # published models, and Hugging Face's take it linear in the plane's index between the two
        # thresholds, with the ends rounded outwards; so does this.
        fast, slow = (
            head_dim * math.log(pretrained_len / (2 * math.pi * n)) / (2 * math.log(theta))
            for n in (YARN_FAST, YARN_SLOW)
        )
        low, high = max(math.floor(fast), 0), min(math.ceil(slow), head_dim - 1)
        ramp = (np.arange(plain.size) - low) / max(high - low, 1e-3)
        interpolate = np.clip(ramp, 0, 1)
        mixed = plain * (1 - interpolate) + plain / factor * interpolate
        return mixed.astype(np.float32), 0.1 * math.log(factor) + 1.0
    raise ValueError(f"{scaling=} must be one of none, linear, ntk, yarn")


def apply_rope(
    x: Float[Array, "B T heads H"],
    positions: Int[Array, "B T"],
    frequencies: Float[np.ndarray, " half"],
    amplitude: float,
) -> Float[Array, "B T heads H"]:
    """Rotates x by its positions. Angles and rotation are in float32, the result in x's dtype."""
    angles = positions.astype(jnp.float32)[:, :, None, None] * frequencies[None, None, None]
    cos, sin = amplitude * jnp.cos(angles), amplitude * jnp.sin(angles)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = (first * cos - second * sin, second * cos + first * sin)
    return jnp.concatenate(rotated, axis=-1).astype(x.dtype)
