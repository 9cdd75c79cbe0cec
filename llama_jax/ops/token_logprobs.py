"""Log-probabilities of given tokens, in chunks of positions: no [B,T,V] array ever exists.

With x [B,T,D] the normed residual stream, W [D,V] the head and tau the temperature,
logp = (x W)[y]/tau - logsumexp(x W/tau). Policies, references and answers are compared by these; a
loss of the log-probabilities themselves is cheaper in `ops.loss`.

The gradient of a token is its cotangent g, which only the backward pass knows, times
(onehot(y) - p)/tau. So dW = sum g x (onehot - p)/tau needs the logits again, while dx is g times
something [D] that the forward pass can make. A step that trains the head thus takes four products
with it (logits; logits, dx, dW), and one that does not takes two (logits, dx): the forward pass
then keeps dx for g = 1, in x's dtype, instead of x.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from llama_jax.ops.loss import chunks_of


def token_logprobs(
    x: Float[Array, "B T D"],
    head: Float[Array, "D V"],
    targets: Int[Array, "B T"],
    *,
    temperature: float,
    chunk: int,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"], Float[Array, "B T"]]:
    """Log-probability of each target, entropy of its distribution, and the largest log-probability
    in it; nats, float32.

    The last two are measurements: no gradient flows through them, and a jitted program that does
    not use one does not compute it. Logits are float32 whatever the dtype of x and head (which must
    agree); gradients come in the dtypes of x and head, dW accumulated in float32. `chunk` positions
    are processed at a time (see `ops.loss.chunk_length`). The step is cheaper if the head is not
    differentiated, such as under `stop_gradient`.

    Raises:
      ValueError: T is not divisible by chunk, the dtypes of x and head differ, or the temperature
        is not positive.
    """
    if x.shape[1] % chunk:
        raise ValueError(f"T={x.shape[1]} must be divisible by {chunk=}")
    if x.dtype != head.dtype:
        raise ValueError(f"x and head need one dtype, not {x.dtype=} and {head.dtype=}")
    if not temperature > 0:
        raise ValueError(f"{temperature=} must be positive")
    logp, entropy, best = _by_chunk(x, head, targets, temperature, chunk)
    return logp, jax.lax.stop_gradient(entropy), jax.lax.stop_gradient(best)


def _measured(x, head, targets, temperature):
    """Of one chunk: log-probabilities, entropies, and what gradients need."""
    logits = jnp.einsum("BTD,DV->BTV", x, head, preferred_element_type=jnp.float32) / temperature
    partition = jax.nn.logsumexp(logits, axis=-1)
    logp = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0] - partition
    surprise = partition[..., None] - logits
    entropy = jnp.sum(jnp.exp(-surprise) * surprise, axis=-1)
    return (logp, entropy, jnp.max(logits, axis=-1) - partition), logits, partition


def _slope(logits, partition, targets, temperature):
    """d logp / d (x W) of one chunk: (onehot - p) / temperature, [B,T,V]."""
    hit = jnp.arange(logits.shape[-1])[None, None] == targets[..., None]
    return (hit - jnp.exp(logits - partition[..., None])) / temperature


def _over_chunks(body, start, chunk, *arrays):
    """Scan body(carry, (parts...)) -> (carry, parts) over chunks of arrays [B,T,...]."""
    carry, parts = jax.lax.scan(body, start, tuple(chunks_of(a, chunk) for a in arrays))

    def whole(parts):
        """[T/chunk, B, chunk, ...] as [B, T, ...]."""
        joined = jnp.moveaxis(parts, 0, 1)
        return joined.reshape(joined.shape[0], -1, *joined.shape[3:])

    return carry, jax.tree.map(whole, parts)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _by_chunk(x, head, targets, temperature, chunk):
    def measure(carry, part):
        x, targets = part
        return carry, _measured(x, head, targets, temperature)[0]

    return _over_chunks(measure, None, chunk, x, targets)[1]


def _forward(x: Any, head: Any, targets: Any, temperature, chunk):
    trained, head = head.perturbed, head.value

    def measure(carry, part):
        x, targets = part
        measured, logits, partition = _measured(x, head, targets, temperature)
        if trained:
            return carry, (measured, partition)
        slope = _slope(logits, partition, targets, temperature).astype(x.dtype)
        return carry, (measured, jnp.einsum("BTV,DV->BTD", slope, head))

    _, (measured, kept) = _over_chunks(measure, None, chunk, x.value, targets.value)
    residuals = (x.value, head, targets.value, kept) if trained else (kept,)
    return measured, residuals


def _backward(temperature, chunk, residuals, cotangents):
    g = cotangents[0][..., None]
    if len(residuals) == 1:
        return (g * residuals[0]).astype(residuals[0].dtype), None, None
    x, head, targets, partition = residuals

    def add(d_head, part):
        x, targets, partition, g = part
        logits = jnp.einsum("BTD,DV->BTV", x, head, preferred_element_type=jnp.float32)
        slope = _slope(logits / temperature, partition, targets, temperature)
        d_logits = (g * slope).astype(x.dtype)
        d_head += jnp.einsum("BTD,BTV->DV", x, d_logits, preferred_element_type=jnp.float32)
        return d_head, jnp.einsum("BTV,DV->BTD", d_logits, head)

    start = jnp.zeros(head.shape, jnp.float32)
    d_head, d_x = _over_chunks(add, start, chunk, x, targets, partition, g)
    return d_x, d_head.astype(head.dtype), None


_by_chunk.defvjp(_forward, _backward, symbolic_zeros=True)
