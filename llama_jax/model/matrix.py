"""A weight as a value that knows how it multiplies: what a layer calls, whatever its weights are.

An array is a dense matrix. `LowRank` is one with an adapter beside it, W + scale A B (Hu et al.
2021): the layer is the same page for both. Values are pytrees, so they are scanned, sharded and
differentiated like the arrays that they hold.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from llama_jax.config import ModelConfig
from llama_jax.model.weights import A, B, adapter_inputs
from llama_jax.ops import linear, mlp


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LowRank:
    """W [*inputs,*outputs] and its adapter: A [*inputs,r], B [r,*outputs]."""

    base: Any
    a: Any
    b: Any
    scale: float = field(metadata={"static": True})


Matrix = Array | LowRank


def project(x: Float[Array, "B T *inputs"], w: Matrix, inputs: int = 1) -> Array:
    """x times a matrix, over the last `inputs` axes of x: [B,T,*outputs] in x's dtype."""
    if isinstance(w, LowRank):
        low = linear.project(linear.project(x, w.a, inputs), w.b)
        return linear.project(x, w.base, inputs) + w.scale * low
    return linear.project(x, w, inputs)


def gate_up(x: Float[Array, "B T D"], gate: Matrix, up: Matrix) -> tuple[Array, Array]:
    """x gate and x up, the first half of SwiGLU."""
    if isinstance(gate, LowRank) or isinstance(up, LowRank):
        return project(x, gate), project(x, up)
    return mlp.gate_up(x, gate, up)


def gated_down(g: Float[Array, "B T F"], u: Float[Array, "B T F"], down: Matrix) -> Array:
    """(silu(g) u) down, the second half of SwiGLU."""
    if isinstance(down, LowRank):
        return project(mlp.gated(g, u), down)
    return mlp.gated_down(g, u, down)


def matrices(flat: Mapping[str, Any], cfg: ModelConfig) -> dict[str, Any]:
    """A layer's arrays by name, each matrix together with its adapter.

    The same of their axes: each then stands where its array does.
    """
    found = {name: w for name, w in flat.items() if not name.endswith((A, B))}
    if cfg.lora is None:
        return found
    for name in cfg.lora.targets:
        if name + A in flat:
            own = flat[name], flat[name + A], flat[name + B]
            found[name] = LowRank(*own, scale=cfg.lora.scale)
    return found


def merged(params: Mapping[str, Any], cfg: ModelConfig) -> dict[str, Any]:
    """Parameters whose adapters have gone into their matrices: W + scale A B, added in float32 and
    rounded to W's type. Parameters without adapters come back as they are."""
    if cfg.lora is None:
        return dict(params)
    layers = matrices(params["layers"], cfg)

    def dense(name: str, w: Any) -> Array:
        if not isinstance(w, LowRank):
            return w
        delta = jax.vmap(lambda a, b: merge(a, b, w.scale, adapter_inputs(name)))(w.a, w.b)
        return (w.base.astype(jnp.float32) + delta).astype(w.base.dtype)

    return {**params, "layers": {name: dense(name, w) for name, w in layers.items()}}


def merge(a: Array, b: Array, scale: float, inputs: int) -> Float[Array, "*weight"]:
    """scale A B of one matrix, float32."""
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    flat = a.reshape(-1, a.shape[-1]) @ b.reshape(b.shape[0], -1)
    return scale * flat.reshape(*a.shape[:inputs], *b.shape[1:])
