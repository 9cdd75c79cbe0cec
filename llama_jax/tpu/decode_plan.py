"""Generation on a slice by arithmetic alone: weights and cache in HBM, read once a token."""

import math
from dataclasses import replace
from typing import Any

from llama_jax.config import ModelConfig, Quantization, QuantizedModel, TrainConfig, require
from llama_jax.model.weights import kept_bytes
from llama_jax.ops.int8_cache import SCALE_BYTES
from llama_jax.tpu.arithmetic import BYTES, attention_products, layer_products
from llama_jax.tpu.chips import GiB
from llama_jax.tpu.topology import Topology

WEIGHTS = ("int8", "int4")


def decode_plan(
    config: TrainConfig,
    topology: Topology,
    *,
    weights: str | None = None,
    kv: str | None = None,
    page: int = 128,
) -> dict[str, Any]:
    """Memory and time of one token for each of `batch_size` rows at a context of `seq_len`.

    The weights, in the compute type, are split over all devices of one slice, as is the cache: by
    heads over as many as the key/value heads allow, by rows over the rest. The minimum cost of a
    step is reading both once, the products, and two sums over the chips in each layer.

    Args:
      weights: int8 or int4 for the matrices; None for the compute type throughout.
      kv: int8 for the cache; None for the compute type.
      page: positions that a row takes of the cache at once.

    Raises InputError where the rows do not divide over the devices that remain.
    """
    c, chip = config.model, topology.chip
    chips, devices = (n // topology.slices for n in (topology.chips, topology.devices))
    width = BYTES[c.dtype]
    split = math.gcd(c.num_kv_heads, devices)
    rows = devices // split
    require(
        config.batch_size % rows == 0,
        f"batch_size={config.batch_size} is not divisible by {rows}, the devices that the "
        f"{c.num_kv_heads} key/value heads leave of {devices}; use a multiple of {rows}",
    )
    require(page > 0, f"page={page} must be positive")
    B, S, T = config.batch_size, config.seq_len, 1
    stored = weight_bytes(c, weights) / chips
    per_row = -(-S // page)
    head = c.head_dim + SCALE_BYTES if kv == "int8" else c.head_dim * width
    page_bytes = 2 * c.num_layers * page * c.num_kv_heads * head / chips
    pages = max(0, int((chip.hbm_bytes - stored) / page_bytes))
    # A step reads what a row has, and holds its pages.
    read = B * S / page * page_bytes
    cache = B * per_row * page_bytes
    work = B * T * (
        c.num_layers * (sum(layer_products(c).values()) + attention_products(c, S))
        + 2.0 * c.d_model * c.vocab_size
    )  # fmt: skip
    sums = 2 * c.num_layers * 2 * B * c.d_model * width * (chips - 1) / chips
    links = sum(2 if topology.wraps(k) else 1 for k, n in enumerate(topology.shape) if n > 1)
    seconds = {
        "hbm": (stored + read) / chip.hbm_bytes_per_second,
        "compute": work / chips / chip.bf16_flops,
    }
    if links:
        seconds["links"] = sums / (links * chip.link_bytes_per_second)
    total = stored + cache
    step = max(seconds.values())
    return {
        "topology": topology.name,
        "chips": chips,
        "batch_size": B,
        "context": S,
        "hbm_bytes_per_chip": {"total": total, "weights": stored, "cache": cache},
        "hbm_limit_bytes": chip.hbm_bytes,
        "fits": total <= chip.hbm_bytes,
        "weights": weights or c.dtype,
        "kv": kv or c.dtype,
        "page": page,
        "pages": pages,
        "largest_batch_size": pages // per_row // rows * rows,
        "predicted_seconds": seconds,
        "predicted_seconds_per_token": step,
        "predicted_tokens_per_second": B / step,
        "predicted_tokens_per_second_per_chip": B / step / chips,
        "binding_limit": max(seconds, key=seconds.__getitem__)
        if total <= chip.hbm_bytes
        else "memory",
    }


def weight_bytes(c: ModelConfig, weights: str | None) -> float:
    """Bytes of the parameters, in the compute type or as `llama-jax quantize` stores them."""
    c = replace(c, param_dtype=c.dtype)
    if weights is not None:
        c = QuantizedModel.of(c, Quantization.of(weights))
    return float(kept_bytes(c))


def decode_text(p: dict[str, Any]) -> str:
    """The plan of generation for people."""
    hbm = {name: size / GiB for name, size in p["hbm_bytes_per_chip"].items()}
    seconds = ", ".join(f"{k} {1e3 * v:.3f} ms" for k, v in p["predicted_seconds"].items())
    return "\n".join(
        [
            f"{p['topology']}: generation on {p['chips']} chips, {p['batch_size']} rows at a "
            f"context of {p['context']} tokens, by arithmetic",
            f"  HBM of one chip   {hbm['weights']:.2f} GiB weights, {hbm['cache']:.2f} cache: "
            f"{hbm['total']:.2f} of {p['hbm_limit_bytes'] / GiB:.2f}, "
            + ("fits" if p["fits"] else "DOES NOT FIT"),
            f"  in the types      {p['weights']} weights, {p['kv']} cache",
            f"  rows that fit     {p['largest_batch_size']}, in {p['pages']:,} pages of "
            f"{p['page']} tokens",
            f"  predicted         {seconds}",
            f"                    {1e3 * p['predicted_seconds_per_token']:.3f} ms a token, "
            f"{p['predicted_tokens_per_second']:,.0f} tokens/s in all, "
            f"{p['predicted_tokens_per_second_per_chip']:,.0f} a chip",
            f"  bound by          {p['binding_limit']}",
        ]
    )
