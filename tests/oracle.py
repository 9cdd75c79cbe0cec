"""Llama 2 in float64 NumPy, written from the formulas of the papers and from nothing else.

Slow on purpose: one loop per head and position wherever that reads more like the formula. The
letters are those of `llama_jax.ops`. Parameters are the tree of `model.weights`, as any arrays.
"""

import math

import numpy as np


def rms_norm(x, scale, eps):
    """x / RMS(x) * scale (Zhang and Sennrich 2019, equation 4), eps inside the root."""
    x = np.asarray(x, np.float64)
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + eps) * np.asarray(scale, np.float64)


def rope_frequencies(H, *, theta=10_000.0, scaling="none", factor=1.0, pretrained_len=4096.0):
    """Radians per position of each plane, and what multiplies cosine and sine."""
    plain = [theta ** (-2 * j / H) for j in range(H // 2)]
    if scaling == "none":
        return np.array(plain), 1.0
    if scaling == "linear":  # Chen et al. 2023, equation 4: f(x, m) becomes f(x, m / s)
        return np.array([f / factor for f in plain]), 1.0
    if scaling == "ntk":  # Peng et al. 2023, definition 1: b' = b s^(|D| / (|D| - 2))
        base = theta * factor ** (H / (H - 2))
        return np.array([base ** (-2 * j / H) for j in range(H // 2)]), 1.0
    assert scaling == "yarn"

    # Peng et al. 2023, section 3.2, in the form of their published code: the planes that make
    # beta = 32 and alpha = 1 turns within the pretrained context, rounded outwards, bound a ramp
    # that is linear in the plane's index.
    def plane_of(turns):
        return H * math.log(pretrained_len / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = max(math.floor(plane_of(32)), 0), min(math.ceil(plane_of(1)), H - 1)
    frequencies = []
    for j, f in enumerate(plain):
        ramp = min(max((j - low) / (high - low), 0.0), 1.0)
        keep = 1 - ramp  # gamma of the paper
        frequencies.append((1 - keep) * f / factor + keep * f)
    return np.array(frequencies), 0.1 * math.log(factor) + 1.0  # equation 22


def rope(x, positions, frequencies, amplitude=1.0):
    """Each [H] vector times the block rotation matrix of its position; planes are (j, j + H/2)."""
    x = np.asarray(x, np.float64)
    B, T, heads, H = x.shape
    out = np.empty_like(x)
    for b in range(B):
        for t in range(T):
            rotation = np.zeros((H, H))
            for j, frequency in enumerate(frequencies):
                angle = float(positions[b, t]) * frequency
                rotation[j, j] = rotation[j + H // 2, j + H // 2] = math.cos(angle)
                rotation[j, j + H // 2] = -math.sin(angle)
                rotation[j + H // 2, j] = math.sin(angle)
            for n in range(heads):
                out[b, t, n] = amplitude * rotation @ x[b, t, n]
    return out


def attention(q, k, v, **options):
    """softmax(scale q k^T) v over the visible keys, head by head; zeros where nothing is seen."""
    out = np.zeros(q.shape)
    for here, keys, weights in _attention_weights(q, k, **options):
        out[here] = weights @ np.asarray(v, np.float64)[keys]
    return out


def attention_gradients(q, k, v, cotangent, *, scale=None, **options):
    """Gradients of sum(attention * cotangent) with respect to q, k and v, by the chain rule."""
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    q, k, v, cotangent = (np.asarray(a, np.float64) for a in (q, k, v, cotangent))
    d_q, d_k, d_v = np.zeros(q.shape), np.zeros(k.shape), np.zeros(v.shape)
    for here, keys, weights in _attention_weights(q, k, scale=scale, **options):
        d_v[keys] += np.outer(weights, cotangent[here])
        d_weights = v[keys] @ cotangent[here]
        d_logits = weights * (d_weights - weights @ d_weights)
        d_q[here] = scale * d_logits @ k[keys]
        d_k[keys] += scale * np.outer(d_logits, q[here])
    return d_q, d_k, d_v


def _attention_weights(
    q, k, *, causal=True, segment_ids=None, kv_segment_ids=None, q_offset=0, scale=None
):
    """Yields each query's place (b, t, n), the places of the keys it sees, and their weights."""
    q, k = np.asarray(q, np.float64), np.asarray(k, np.float64)
    (B, T, N, H), (S, K) = q.shape, k.shape[1:3]
    if segment_ids is not None:
        segment_ids = np.asarray(segment_ids)
        kv_segment_ids = segment_ids if kv_segment_ids is None else np.asarray(kv_segment_ids)
    offset = np.broadcast_to(q_offset, (B,))
    scale = 1 / math.sqrt(H) if scale is None else scale
    for b in range(B):
        for t in range(T):
            seen = [
                s
                for s in range(S)
                if (not causal or s <= offset[b] + t)
                and (segment_ids is None or segment_ids[b, t] == kv_segment_ids[b, s])
            ]
            for n in range(N if seen else 0):
                keys = (b, seen, n // (N // K))  # consecutive query heads share a key/value head
                logits = scale * k[keys] @ q[b, t, n]
                weights = np.exp(logits - logits.max())
                yield (b, t, n), keys, weights / weights.sum()


def swiglu(h, gate, up, down):
    """(silu(h gate) * (h up)) down (Shazeer 2020, equation 6)."""
    a = h @ gate
    return (a / (1 + np.exp(-a)) * (h @ up)) @ down


def forward(params, tokens, cfg, positions=None, segment_ids=None):
    """Logits [B,T,V] of the whole model."""
    p = _float64(params)
    tokens = np.asarray(tokens)
    B, T = tokens.shape
    D, N, K, H = cfg.d_model, cfg.num_heads, cfg.num_kv_heads, cfg.head_dim
    if positions is None:
        positions = np.tile(np.arange(T), (B, 1))
    rotary = rope_frequencies(
        H,
        theta=cfg.rope_theta,
        scaling=cfg.rope_scaling,
        factor=cfg.rope_factor,
        pretrained_len=cfg.max_seq_len / cfg.rope_factor,
    )
    x = p["embed"][tokens]
    for layer in range(cfg.num_layers):
        w = {name: stacked[layer] for name, stacked in p["layers"].items()}
        h = rms_norm(x, w["attn_norm"], cfg.norm_eps)
        q = rope((h @ w["q"].reshape(D, N * H)).reshape(B, T, N, H), positions, *rotary)
        k = rope((h @ w["k"].reshape(D, K * H)).reshape(B, T, K, H), positions, *rotary)
        v = (h @ w["v"].reshape(D, K * H)).reshape(B, T, K, H)
        a = attention(q, k, v, segment_ids=segment_ids)
        x = x + a.reshape(B, T, N * H) @ w["o"].reshape(N * H, D)
        h = rms_norm(x, w["mlp_norm"], cfg.norm_eps)
        x = x + swiglu(h, w["gate"], w["up"], w["down"])
    x = rms_norm(x, p["norm"], cfg.norm_eps)
    return x @ (p["embed"].T if cfg.tie_embeddings else p["head"])


def cross_entropy(logits, targets, mask, z_loss=0.0):
    """Sum over the masked positions of -log softmax(logits)[target] + z_loss (log Z)^2."""
    total = 0.0
    for b, t in np.argwhere(np.asarray(mask)):
        row = np.asarray(logits[b, t], np.float64)
        log_z = row.max() + math.log(np.exp(row - row.max()).sum())
        total += log_z - row[targets[b, t]] + z_loss * log_z**2
    return total


def next_token_targets(tokens, segment_ids=None, loss_mask=None):
    """Targets and mask by their definition: the next token, where it is of the same document."""
    tokens = np.asarray(tokens)
    B, T = tokens.shape
    targets, mask = np.zeros((B, T), int), np.zeros((B, T), bool)
    for b in range(B):
        for t in range(T - 1):
            targets[b, t] = tokens[b, t + 1]
            mask[b, t] = loss_mask is None or loss_mask[b, t + 1]
            if segment_ids is not None and (
                segment_ids[b, t] != segment_ids[b, t + 1] or segment_ids[b, t] == 0
            ):
                mask[b, t] = False
    return targets, mask


def _float64(tree):
    if isinstance(tree, dict):
        return {name: _float64(value) for name, value in tree.items()}
    return np.asarray(tree, np.float64)
