"""The SwiGLU feed-forward block (Shazeer 2020; Llama 2, section 2.2)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from llama_jax.ops.linear import project


def swiglu(
    x: Float[Array, "B T D"],
    gate: Float[Array, "D F"],
    up: Float[Array, "D F"],
    down: Float[Array, "F D"],
) -> Float[Array, "B T D"]:
    """(silu(x gate) * (x up)) down. Products in x's dtype, silu and its gradient in float32.

    The backward pass keeps the two products with x and recomputes what lies between them and
    `down`. It writes each weight's gradient as the product of two activations in the weight's own
    layout: automatic differentiation would produce its transpose, for which XLA's CPU backend has
    no fast bfloat16 product.
    """
    return gated_down(*gate_up(x, gate, up), down)


@jax.custom_vjp
def gate_up(
    x: Float[Array, "B T D"], gate: Float[Array, "D F"], up: Float[Array, "D F"]
) -> tuple[Float[Array, "B T F"], Float[Array, "B T F"]]:
    """x gate and x up, the first half of `swiglu`."""
    return project(x, gate), project(x, up)


def _gate_up_forward(x, gate, up):
    # Not by way of `gate_up`: a remat policy does not look for products in a function of that kind.
    return (project(x, gate), project(x, up)), (x, gate, up)


def _gate_up_backward(residuals, gradients):
    x, gate, up = residuals
    d_g, d_u = gradients
    d_x = jnp.einsum("BTF,DF->BTD", d_g, gate) + jnp.einsum("BTF,DF->BTD", d_u, up)
    return d_x, jnp.einsum("BTD,BTF->DF", x, d_g), jnp.einsum("BTD,BTF->DF", x, d_u)


gate_up.defvjp(_gate_up_forward, _gate_up_backward)


def gated(g: Float[Array, "B T F"], u: Float[Array, "B T F"]) -> Float[Array, "B T F"]:
    """silu(g) u in g's dtype, computed in float32."""
    return (jax.nn.silu(g.astype(jnp.float32)) * u.astype(jnp.float32)).astype(g.dtype)


@jax.custom_vjp
def gated_down(
    g: Float[Array, "B T F"], u: Float[Array, "B T F"], down: Float[Array, "F D"]
) -> Float[Array, "B T D"]:
    """(silu(g) u) down, the second half of `swiglu`."""
    return _gated_down_forward(g, u, down)[0]


def _gated_down_forward(g, u, down):
    return project(gated(g, u), down), (g, u, down)


def _gated_down_backward(residuals, d_out):
    g, u, down = residuals
    g32, u32 = g.astype(jnp.float32), u.astype(jnp.float32)
    sigmoid = jax.nn.sigmoid(g32)
    silu = g32 * sigmoid
    d_act = jnp.einsum("BTD,FD->BTF", d_out, down).astype(jnp.float32)
    d_g = (d_act * u32 * (sigmoid + silu * (1 - sigmoid))).astype(g.dtype)
    d_u = (d_act * silu).astype(g.dtype)
    # As [D,F], which needs a transposed d_out and not a transposed, longer activation; the barrier
    # keeps XLA from turning it around again.
    d_down = jnp.einsum("BTD,BTF->DF", d_out, (silu * u32).astype(g.dtype))
    return d_g, d_u, jax.lax.optimization_barrier(d_down).T


gated_down.defvjp(_gated_down_forward, _gated_down_backward)
