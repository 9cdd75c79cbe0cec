"""Next-token cross-entropy in chunks of positions: no float32 [B,T,V] array ever exists.

With x [B,T,D] the normed residual stream and W [D,V] the head, the loss of one target y is
logsumexp(x W) - (x W)[y], plus z_loss * logsumexp(x W)^2. The gradient needs the same logits as the
value, so when it is asked for, the forward pass makes dx and dW chunk by chunk while the logits
are at hand: three products with W a step, where recomputing the logits would take four.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

# Logits of one chunk, in elements: 128 MB of float32. With less, adding up dW takes longer.
CHUNK_ELEMENTS = 1 << 25


def next_token_targets(
    tokens: Int[Array, "B T"],
    segment_ids: Int[Array, "B T"] | None = None,
    loss_mask: Bool[Array, "B T"] | None = None,
) -> tuple[Int[Array, "B T"], Bool[Array, "B T"]]:
    """Targets and their mask: position t predicts token t+1 of its own document.

    The last position of a row and of a segment has no target; segment 0 is padding. `loss_mask[t]`
    says whether token t counts as a target.
    """
    targets = jnp.roll(tokens, -1, axis=1)
    mask = jnp.ones_like(tokens, dtype=bool).at[:, -1].set(False)
    if segment_ids is not None:
        following = jnp.roll(segment_ids, -1, axis=1)
        mask = jnp.logical_and(mask, jnp.logical_and(segment_ids == following, following > 0))
    if loss_mask is not None:
        mask = jnp.logical_and(mask, jnp.roll(loss_mask, -1, axis=1))
    return targets, mask


def chunk_length(rows: int, T: int, V: int) -> int:
    """Positions in a chunk: a divisor of T below T whose logits fit CHUNK_ELEMENTS, if any does."""
    divisors = [c for c in range(1, T) if T % c == 0]
    return max((c for c in divisors if rows * c * V <= CHUNK_ELEMENTS), default=1)


def cross_entropy(
    x: Float[Array, "B T D"],
    head: Float[Array, "D V"],
    targets: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    z_loss: float,
    chunk: int,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Summed loss in nats and the number of targets, both float32 scalars.

    Logits are float32 whatever the dtype of x and head (which must agree); gradients come in the
    dtypes of x and head, dW accumulated in float32. `chunk` positions are taken at a time.

    Raises:
      ValueError: T is not divisible by chunk, or the dtypes of x and head differ.
    """
    if x.shape[1] % chunk:
        raise ValueError(f"T={x.shape[1]} must be divisible by {chunk=}")
    if x.dtype != head.dtype:
        raise ValueError(f"x and head need one dtype, not {x.dtype=} and {head.dtype=}")
    return _summed(x, head, targets, mask, z_loss, chunk), jnp.sum(mask, dtype=jnp.float32)


def chunks_of(array: Array, chunk: int) -> Array:
    """[B, T, ...] as [T/chunk, B, chunk, ...], for a scan; rows stay whole, so sharding does."""
    B, T = array.shape[:2]
    return jnp.moveaxis(array.reshape(B, T // chunk, chunk, *array.shape[2:]), 1, 0)


def _chunk_loss(x, head, targets, mask, z_loss):
    """Loss of one chunk, and what its gradient needs: logits and log-partition."""
    logits = jnp.einsum("BTD,DV->BTV", x, head, preferred_element_type=jnp.float32)
    partition = jax.nn.logsumexp(logits, axis=-1)
    correct = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    losses = partition - correct + z_loss * jnp.square(partition)
    return jnp.sum(jnp.where(mask, losses, 0.0)), logits, partition


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _summed(x, head, targets, mask, z_loss, chunk):
    def add(total, part):
        return total + _chunk_loss(part[0], head, part[1], part[2], z_loss)[0], None

    parts = tuple(chunks_of(a, chunk) for a in (x, targets, mask))
    return jax.lax.scan(add, jnp.float32(0), parts)[0]


def _summed_forward(x, head, targets, mask, z_loss, chunk):
    def add(carry, part):
        total, d_head = carry
        x, targets, mask = part
        loss, logits, partition = _chunk_loss(x, head, targets, mask, z_loss)
        hit = jnp.arange(head.shape[1])[None, None] == targets[..., None]
        slope = 1 + 2 * z_loss * partition
        d_logits = jnp.exp(logits - partition[..., None]) * slope[..., None]
        d_logits = jnp.where(mask[..., None], d_logits - hit, 0.0).astype(x.dtype)
        d_x = jnp.einsum("BTV,DV->BTD", d_logits, head)
        d_head += jnp.einsum("BTD,BTV->DV", x, d_logits, preferred_element_type=jnp.float32)
        return (total + loss, d_head), d_x

    parts = tuple(chunks_of(a, chunk) for a in (x, targets, mask))
    start = (jnp.float32(0), jnp.zeros(head.shape, jnp.float32))
    (total, d_head), d_x = jax.lax.scan(add, start, parts)
    return total, (jnp.moveaxis(d_x, 0, 1).reshape(x.shape), d_head)


def _summed_backward(z_loss, chunk, residuals, g):
    d_x, d_head = residuals
    return (g * d_x).astype(d_x.dtype), (g * d_head).astype(d_x.dtype), None, None


_summed.defvjp(_summed_forward, _summed_backward)
