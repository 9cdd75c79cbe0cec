"""FLOPs, bytes and seconds of a training step from the model's shape, without a compiler.

The plan takes its work from here, the search its order of candidates, and both what a change would
save.
"""

import dataclasses
import math

from llama_jax.config import ModelConfig, TrainConfig, adapted
from llama_jax.model.weights import (
    kept_bytes,
    layer_weights,
    outer_weights,
    parameter_count,
)
from llama_jax.parallel.mesh import axis_sizes
from llama_jax.tpu.topology import Topology

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclasses.dataclass(frozen=True)
class Flops:
    """FLOPs of one step, over all chips."""

    causal: float
    """Forward and backward pass, without products above the causal diagonal."""
    full: float
    """The same with these products, as FLOPs were counted until 2025."""
    executed: float
    """FLOPs computed: causal, plus what rematerialisation and flash attention recompute."""


def layer_products(c: ModelConfig) -> dict[str, float]:
    """FLOPs per token of one layer's matrix products, without attention."""
    weights = {
        k: 2.0 * math.prod(w.shape) for k, w in layer_weights(c).items() if w.axes[-1] != "norm"
    }
    return {
        "qkv": weights["q"] + weights["k"] + weights["v"],
        "o": weights["o"],
        "gate_up": weights["gate"] + weights["up"],
        "down": weights["down"],
    }


def attention_products(c: ModelConfig, seq_len: int) -> float:
    """FLOPs per token of q k^T and of its product with v, in one layer, without a causal mask."""
    return 4.0 * seq_len * c.num_heads * c.head_dim


def head_products(c: ModelConfig) -> float:
    """FLOPs per token of the head, forward and backward; negligible for a score."""
    return 6.0 * c.d_model * c.vocab_size if c.head == "language" else 0.0


def tokens_of(config: TrainConfig) -> int:
    """Positions of one batch; a pair of answers has two rows."""
    rows = 2 if config.stage in ("reward", "dpo") else 1
    return rows * config.batch_size * config.seq_len


def flops(config: TrainConfig) -> Flops:
    """The work of one step.

    A weight costs two FLOPs a token forward and four backward, two where adapters beside it are
    trained, whose own are not counted; flash attention makes five products backward where two would
    do forward. What each remat policy computes again: model/llama.py.
    """
    c = config.model
    tokens = tokens_of(config)
    products = layer_products(c)
    scores = attention_products(c, config.seq_len)
    passes = 2 if config.lora.rank else 3
    weights = passes * c.num_layers * sum(products.values()) + passes / 3 * head_products(c)
    again = {
        "none": 0.0,
        "full": products["qkv"] + products["o"] + products["gate_up"] + scores / 2,
        "dots": scores / 2,
        "qkvo": products["o"] + products["gate_up"],
        "offload": products["o"] + products["gate_up"],
    }[c.remat]
    causal = weights + 3 * c.num_layers * scores / 2
    executed = causal + c.num_layers * (again + scores / 4)
    return Flops(
        causal=tokens * causal,
        full=tokens * (weights + 3 * c.num_layers * scores),
        executed=tokens * executed,
    )


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The needs of a step on each chip, by arithmetic alone."""

    hbm: dict[str, float]
    """Bytes of one chip by category."""
    seconds: dict[str, float]
    """Time of each resource by itself: compute, hbm, links by mesh axis."""

    @property
    def total(self) -> float:
        """Bytes of HBM."""
        return sum(self.hbm.values())

    @property
    def step(self) -> float:
        """Seconds when all resources work at once."""
        return max(self.seconds.values())


def axis_rates(mesh: dict[str, int], topology: Topology) -> dict[str, float]:
    """Bytes per second that one device can send along each mesh axis, if it is laid out well.

    `tensor` and `sequence` get a ring of the torus each, `fsdp` and `data` the rest; the devices of
    a chip share its links, and `tensor` stays within a chip where that is enough.
    """
    chip = topology.chip
    links = sum(
        2 if topology.wraps(k) else 1 for k, chips in enumerate(topology.shape) if chips > 1
    )
    rates = {"slice": chip.network_bytes_per_second}
    within = mesh["tensor"] == chip.devices > 1
    if within:
        rates["tensor"] = chip.between_devices
    for axis in ("sequence",) if within else ("tensor", "sequence"):
        rates[axis] = min(2, links) * chip.link_bytes_per_second
        links = max(links - 2, 1) if mesh[axis] > 1 else links
    return rates | dict.fromkeys(("fsdp", "data"), max(links, 1) * chip.link_bytes_per_second)


def estimate(config: TrainConfig, topology: Topology) -> Estimate:
    """Estimates a plan by arithmetic.

    Raises InputError if the mesh does not multiply out.
    """
    c, chip = config.model, topology.chip
    mesh = axis_sizes(config.mesh, topology.devices)
    width = BYTES[c.dtype]
    replicas = mesh["slice"] * mesh["data"] * mesh["fsdp"]
    tokens = tokens_of(config) / config.accumulate / replicas / mesh["sequence"]
    count = parameter_count(c)
    held = count / (mesh["fsdp"] * mesh["tensor"])
    stored, copied = held * BYTES[c.param_dtype], held * width
    if config.lora.rank:
        stored = kept_bytes(adapted(config).model) / (mesh["fsdp"] * mesh["tensor"])
    if config.lora.base != "dense":  # made dense layer by layer
        copied = 0
    own = parameter_count(adapted(config).model) - count if config.lora.rank else count
    trained = own / (mesh["fsdp"] * mesh["tensor"])
    layer = sum(math.prod(w.shape) for w in layer_weights(c).values())
    outer = sum(math.prod(w.shape) for w in outer_weights(c).values())
    D, F = c.d_model, c.d_ff
    heads = (c.num_heads + 2 * c.num_kv_heads) * c.head_dim
    kept = {
        "none": 4 * D + 2 * heads + 4 * F,
        "full": 0,
        "dots": D + heads + 2 * F,
        "qkvo": heads + c.num_heads * c.head_dim,
        "offload": 0,
    }[c.remat]
    residual = tokens / mesh["tensor"] * D
    hbm = {
        "parameters": stored,
        "optimizer": trained * (4 + BYTES[config.optimizer.moment_dtype]),
        "gradients": trained * (width if config.accumulate == 1 else 4),
        "activations": c.num_layers * width * (residual + tokens / mesh["tensor"] * kept),
        # Weights as they are computed with; one layer's, gathered, and their gradients; its widest
        # activations; or at the end of the stack the head and its gradient.
        "temporaries": copied
        + max(
            (1.5 * layer * width + tokens * (3 * F + heads) * width) / mesh["tensor"]
            + 4 * residual,
            outer / 2 * (width + 4) / mesh["tensor"],
        ),
    }
    per_chip = flops(config).executed / topology.chips
    moved = 2.0 * width * count / mesh["tensor"] * config.accumulate
    updates = trained * (2 * (8 + BYTES[config.optimizer.moment_dtype]) + 4 * width)
    stream = (
        c.num_layers * config.accumulate * tokens / mesh["tensor"] * (12 * D + 4 * F + 2 * heads)
    )
    seconds = {
        "compute": per_chip / chip.bf16_flops,
        "hbm": chip.devices * (2 * moved + updates + width * stream) / chip.hbm_bytes_per_second,
    }
    sent = {
        # Gathered forward and backward, scattered once.
        "fsdp": 3 * width * count / mesh["tensor"] * config.accumulate,
        "data": 2 * width * held,
        "slice": 2 * width * held,
        # Around attention and around the MLP, forward, again, and backward.
        "tensor": c.num_layers * config.accumulate * width * tokens * D
        * (8 if c.remat in ("none", "dots") else 11),
        "sequence": c.num_layers * config.accumulate * width * tokens * mesh["sequence"]
        * 2 * c.num_kv_heads * c.head_dim / mesh["tensor"] * 4,
    }  # fmt: skip
    rates = axis_rates(mesh, topology)
    for axis, size in mesh.items():
        if size > 1:
            seconds[f"links {axis}"] = sent[axis] * (size - 1) / size / rates[axis]
    return Estimate({name: chip.devices * size for name, size in hbm.items()}, seconds)
