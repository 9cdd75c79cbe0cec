"""Attention in float64 NumPy straight from the formula, with its gradients."""

import numpy as np


def visible(T, S, *, causal=True, segment_ids=None, kv_segment_ids=None, q_offset=0, B=1):
    """bool [B,T,S]: which keys each query sees."""
    seen = np.ones((B, T, S), bool)
    if causal:
        position = np.broadcast_to(np.asarray(q_offset).reshape(-1, 1), (B, 1)) + np.arange(T)
        seen &= np.arange(S)[None, None] <= position[:, :, None]
    if segment_ids is not None:
        keys = segment_ids if kv_segment_ids is None else kv_segment_ids
        seen &= np.asarray(segment_ids)[:, :, None] == np.asarray(keys)[:, None, :]
    return seen


def attention(q, k, v, seen, scale=None, do=None):
    """out [B,T,N,H] and lse [B,N,T], and with `do` the gradients dq, dk, dv, all float64."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    B, T, N, H = q.shape
    K = k.shape[2]
    scale = H**-0.5 if scale is None else scale
    out, lse = np.zeros((B, T, N, H)), np.full((B, N, T), -np.inf)
    dq, dk, dv = np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)
    for b in range(B):
        for n in range(N):
            head = n // (N // K)
            s = np.where(seen[b], scale * q[b, :, n] @ k[b, :, head].T, -np.inf)
            top = s.max(1, keepdims=True)
            e = np.exp(s - np.where(np.isfinite(top), top, 0))
            total = e.sum(1, keepdims=True)
            p = e / np.where(total > 0, total, 1)
            out[b, :, n] = p @ v[b, :, head]
            some = total[:, 0] > 0
            lse[b, n, some] = (top + np.log(np.where(total > 0, total, 1)))[some, 0]
            if do is not None:
                g = np.asarray(do, np.float64)[b, :, n]
                dp = g @ v[b, :, head].T
                ds = p * (dp - (p * dp).sum(1, keepdims=True)) * scale
                dq[b, :, n] = ds @ k[b, :, head]
                dk[b, :, head] += ds.T @ q[b, :, n]
                dv[b, :, head] += p.T @ g
    return (out, lse) if do is None else (out, lse, dq, dk, dv)
