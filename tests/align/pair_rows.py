"""Batches of pairs for tests of what learns from them."""

import numpy as np


def in_fewer_rows(batch, per_row):
    """The same pairs, up to so many in two rows: of B pairs one after another."""
    B, T = len(batch["tokens"]), batch["tokens"].shape[2]
    R = -(-B // per_row)
    packed = {
        "rating": np.full((R, per_row), -1, np.int32),
        "margin": np.full((R, per_row), np.nan, np.float32),
        "safe": np.full((R, per_row, 2), -1, np.int8),
    }
    names = ("tokens", "segment_ids", "positions", "loss_mask")
    packed |= {name: np.zeros((R, 2, per_row * T), batch[name].dtype) for name in names}
    for row in range(R):
        used = [0, 0]
        for k, b in enumerate(range(row * per_row, min(B, (row + 1) * per_row))):
            for name in ("rating", "margin", "safe"):
                packed[name][row, k] = batch[name][b, 0]
            for side in (0, 1):
                n = batch["segment_ids"][b, side].sum()
                here = slice(used[side], used[side] + n)
                for name in names:
                    packed[name][row, side, here] = batch[name][b, side, :n]
                packed["segment_ids"][row, side, here] = k + 1
                used[side] += n
    return packed
