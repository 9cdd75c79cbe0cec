"""The SwiGLU feed-forward block (Shazeer 2020; Llama 2, section 2.2)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from llama_jax.ops.linear import project


@jax.custom_vjp
def swiglu(
    x: Float[Array, "B T D"],
    gate: Float[Array, "D F"],
    up: Float[Array, "D F"],
    down: Float[Array, "F D"],
) -> Float[Array, "B T D"]:
    """(silu(x gate) * (x up)) down. Products in x's dtype, silu and its gradient in float32.

    The backward pass keeps the two products with x and recomputes what lies between them and
    `down`. It writes each weight's gradient as the product of two activations in the weight's own
    layout: automatic differentiation makes the transpose of it, for which XLA's CPU backend has
    no fast bfloat16 product.
    """
    return _forward(x, gate, up, down)[0]


def _forward(x, gate, up, down):
    g = project(x, gate)
    u = project(x, up)
    g32, u32 = g.astype(jnp.float32), u.astype(jnp.float32)
    out = project((jax.nn.silu(g32) * u32).astype(x.dtype), down)
    return out, (x, gate, up, down, g, u)


def _backward(residuals, d_out):
    x, gate, up, down, g, u = residuals
    g32, u32 = g.astype(jnp.float32), u.astype(jnp.float32)
    sigmoid = jax.nn.sigmoid(g32)
    silu = g32 * sigmoid
    d_act = jnp.einsum("BTD,FD->BTF", d_out, down).astype(jnp.float32)
    d_g = (d_act * u32 * (sigmoid + silu * (1 - sigmoid))).astype(x.dtype)
    d_u = (d_act * silu).astype(x.dtype)
    d_x = jnp.einsum("BTF,DF->BTD", d_g, gate) + jnp.einsum("BTF,DF->BTD", d_u, up)
    # As [D,F], which needs a transposed d_out and not a transposed, longer activation; the barrier
    # keeps XLA from turning it around again.
    d_down = jnp.einsum("BTD,BTF->DF", d_out, (silu * u32).astype(x.dtype))
    return (
        d_x,
        jnp.einsum("BTD,BTF->DF", x, d_g),
        jnp.einsum("BTD,BTF->DF", x, d_u),
        jax.lax.optimization_barrier(d_down).T,
    )


swiglu.defvjp(_forward, _backward)
