"""Ring attention: causal attention over a sequence split between devices, in balanced order.

The sequence is cut into 2n chunks and device r of n holds the chunks r and 2n-1-r, an early and a
late one ("zig-zag"). Keys and values travel around the ring; at every step each device does the
same amount of work, and none of it is masked away:

    own keys           causal attention over the two local chunks, as if they were neighbours
    keys of j < r      all local queries see the early chunk of j, and not its late one
    keys of j > r      the late local queries see both chunks of j, the early ones neither

Parts are merged by their log-sum-exps (Liu et al. 2023, Ring Attention). The backward pass goes
around once more with the merged log-sum-exp; dk and dv travel with their keys and come home last.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped

from llama_jax.ops.attention_parts import Parts

EMPTY = -1e30


def zigzag(x: Shaped[Array, "..."], n: int, axis: int = 1) -> Shaped[Array, "..."]:
    """Reorder a whole sequence so that its n equal shards have the order that `ring_parts` expects.

    Raises ValueError if 2n does not divide the axis.
    """
    return _reorder(x, [c for r in range(n) for c in (r, 2 * n - 1 - r)], axis)


def unzigzag(x: Shaped[Array, "..."], n: int, axis: int = 1) -> Shaped[Array, "..."]:
    """Undo `zigzag`."""
    order = [c for r in range(n) for c in (r, 2 * n - 1 - r)]
    return _reorder(x, [order.index(c) for c in range(2 * n)], axis)


def _reorder(x, order, axis):
    length = x.shape[axis]
    if length % len(order):
        near = -(-length // len(order)) * len(order)
        raise ValueError(
            f"{length} positions must be a multiple of {len(order)}; the next is {near}"
        )
    chunks = jnp.split(x, len(order), axis)
    return jnp.concatenate([chunks[c] for c in order], axis)


def ring_parts(local: Parts, axis_name: str) -> Parts:
    """Causal attention of a device's queries over the whole sequence, inside `jax.shard_map`.

    The parts take local shards, of even length, of sequences in `zigzag` order; documents keep one
    id each.

    Args:
      local: attention over keys that one device holds, such as the kernel's or `xla_parts`.
      axis_name: mesh axis that splits the sequence.
    """
    return Parts(
        functools.partial(_forward, axis_name, local),
        functools.partial(_gradients, axis_name, local),
    )


def xla_parts(scale: float) -> Parts:
    """`flash_attention_with_lse` and `flash_attention_gradients` in plain jnp, for any backend."""
    return Parts(
        functools.partial(_xla, scale=scale), functools.partial(_xla_gradients, scale=scale)
    )


def _around(axis_name):
    n = jax.lax.axis_size(axis_name)
    return functools.partial(
        jax.lax.ppermute, axis_name=axis_name, perm=[(i, (i + 1) % n) for i in range(n)]
    )


def _masks(segment_ids, kv_segment_ids):
    return dict(causal=False, segment_ids=segment_ids, kv_segment_ids=kv_segment_ids)


def _halves(ids, half):
    return (None, None) if ids is None else (ids[:, :half], ids[:, half:])


def _merge(a, b):
    """Two attentions over disjoint keys, each with its log-sum-exp."""
    (out_a, lse_a), (out_b, lse_b) = a, b
    lse = jnp.logaddexp(lse_a, lse_b)
    weigh = [jnp.exp(x - lse).transpose(0, 2, 1)[..., None] for x in (lse_a, lse_b)]
    return weigh[0] * out_a + weigh[1] * out_b.astype(jnp.float32), lse


def _forward(axis_name, local, q, k, v, segment_ids=None):
    attend, ids = local.forward, segment_ids
    half = q.shape[1] // 2
    n, me, around = jax.lax.axis_size(axis_name), jax.lax.axis_index(axis_name), _around(axis_name)
    _, late_ids = _halves(ids, half)

    def from_before(k, v, kv_ids):
        early, _ = _halves(kv_ids, half)
        return attend(q, k[:, :half], v[:, :half], **_masks(ids, early))

    def from_after(k, v, kv_ids):
        out, lse = attend(q[:, half:], k, v, **_masks(late_ids, kv_ids))
        out = jnp.concatenate([jnp.zeros_like(out), out], axis=1)
        return out, jnp.concatenate([jnp.full_like(lse, EMPTY), lse], axis=2)

    def step(carry, s):
        merged, keys = carry
        keys = around(keys)
        part = jax.lax.cond((me - s) % n < me, from_before, from_after, *keys)
        return (_merge(merged, part), keys), None

    out, lse = attend(q, k, v, causal=True, segment_ids=ids)
    start = (out.astype(jnp.float32), lse), (k, v, ids)
    ((out, lse), _), _ = jax.lax.scan(step, start, jnp.arange(1, n))
    return out.astype(q.dtype), lse


def _gradients(axis_name, local, q, k, v, do, lse, delta, segment_ids=None):
    gradients, ids = local.gradients, segment_ids
    half = q.shape[1] // 2
    n, me, around = jax.lax.axis_size(axis_name), jax.lax.axis_index(axis_name), _around(axis_name)
    _, late_ids = _halves(ids, half)

    def after_zeros(x):
        return jnp.concatenate([jnp.zeros_like(x), x], axis=1)

    def before_zeros(x):
        return jnp.concatenate([x, jnp.zeros_like(x)], axis=1)

    def from_before(k, v, kv_ids):
        early, _ = _halves(kv_ids, half)
        masks = _masks(ids, early)
        dq, dk, dv = gradients(q, k[:, :half], v[:, :half], do, lse, delta, **masks)
        return dq, before_zeros(dk), before_zeros(dv)

    def from_after(k, v, kv_ids):
        late = [x[:, half:] for x in (q, do)]
        rows = lse[:, :, half:], delta[:, :, half:]
        masks = _masks(late_ids, kv_ids)
        dq, dk, dv = gradients(late[0], k, v, late[1], *rows, **masks)
        return after_zeros(dq), dk, dv

    def add(sums, parts):
        return [total + part.astype(jnp.float32) for total, part in zip(sums, parts, strict=True)]

    def step(carry, s):
        dq, travelling = carry
        k, v, kv_ids, dk, dv = around(travelling)
        part = jax.lax.cond((me - s) % n < me, from_before, from_after, k, v, kv_ids)
        dq, dk, dv = add((dq, dk, dv), part)
        return (dq, (k, v, kv_ids, dk, dv)), None

    own = gradients(q, k, v, do, lse, delta, causal=True, segment_ids=ids)
    dq, dk, dv = (x.astype(jnp.float32) for x in own)
    (dq, (_, _, _, dk, dv)), _ = jax.lax.scan(step, (dq, (k, v, ids, dk, dv)), jnp.arange(1, n))
    # n - 1 steps have taken dk and dv to the device before the one they belong to.
    dk, dv = around((dk, dv))
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype)


def _logits(q, k, scale, causal, segment_ids, kv_segment_ids):
    """float32 [B,K,G,T,S], -inf where masked."""
    B, T, N, H = q.shape
    K, S = k.shape[2], k.shape[1]
    grouped = q.reshape(B, T, K, N // K, H)
    s = jnp.einsum("BTKGH,BSKH->BKGTS", grouped, k, preferred_element_type=jnp.float32) * scale
    if causal:
        s = jnp.where(jnp.tri(T, S, dtype=bool)[None, None, None], s, -jnp.inf)
    if segment_ids is not None:
        keys = segment_ids if kv_segment_ids is None else kv_segment_ids
        same = segment_ids[:, :, None] == keys[:, None, :]
        s = jnp.where(same[:, None, None], s, -jnp.inf)
    return s


def _xla(q, k, v, *, scale, causal, segment_ids, kv_segment_ids=None):
    s = _logits(q, k, scale, causal, segment_ids, kv_segment_ids)
    lse = jnp.maximum(jax.nn.logsumexp(s, axis=-1), EMPTY)
    p = jnp.exp(s - lse[..., None])
    out = jnp.einsum("BKGTS,BSKH->BTKGH", p.astype(v.dtype), v, preferred_element_type=jnp.float32)
    B, T, N, H = q.shape
    return out.astype(q.dtype).reshape(B, T, N, H), lse.reshape(B, N, T)


def _xla_gradients(q, k, v, do, lse, delta, *, scale, causal, segment_ids, kv_segment_ids=None):
    B, T, N, H = q.shape
    K = k.shape[2]
    rows = [x.reshape(B, K, N // K, T)[..., None] for x in (lse, delta)]
    p = jnp.exp(_logits(q, k, scale, causal, segment_ids, kv_segment_ids) - rows[0])
    grouped = [x.reshape(B, T, K, N // K, H) for x in (q, do)]
    einsum = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    dp = einsum("BTKGH,BSKH->BKGTS", grouped[1], v)
    ds = (p * (dp - rows[1]) * scale).astype(q.dtype)
    dq = einsum("BKGTS,BSKH->BTKGH", ds, k).reshape(B, T, N, H)
    dk = einsum("BKGTS,BTKGH->BSKH", ds, grouped[0])
    dv = einsum("BKGTS,BTKGH->BSKH", p.astype(q.dtype), grouped[1])
    return dq, dk, dv
