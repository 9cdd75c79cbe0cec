"""Batched LoRA: several adapters over one base; each row uses its own adapter, or none.

A row gets x W + scale (x A_n) B_n. W, dense or quantised, is read once for all rows, and a step
reads only the adapters of its own rows. Smaller ranks are padded with zeros, and adapter 0 is none:
zeros throughout.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from llama_jax.config import LoraConfig
from llama_jax.model.weights import A, B
from llama_jax.parallel.arrays import everywhere


class Adapter(NamedTuple):
    """A trained adapter."""

    lora: LoraConfig
    layers: Mapping[str, Any]
    """`q_a` [L,*inputs,r], `q_b` [L,r,*outputs], and so on for each target matrix."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ByRow:
    """W [*inputs,*outputs] with n adapters: A [n,*inputs,r], B [n,r,*outputs], scaled."""

    base: Any
    a: Any
    b: Any
    taken: Any = None
    """int32 [B]: the adapter of each row. See `taking`."""

    def added(self, x: Float[Array, "B T *inputs"]) -> Float[Array, "B T *outputs"]:
        """The adapters' addition to x W. For one position per row, summed in an order that does not
        depend on the number of rows (see `ops.linear`)."""
        a, b = self.a[self.taken], self.b[self.taken]
        rows, T, rank = x.shape[0], x.shape[1], a.shape[-1]
        low = _product(x.reshape(rows, T, -1), a.reshape(rows, -1, rank))
        out = _product(low, b.reshape(rows, rank, -1))
        return out.astype(x.dtype).reshape(rows, T, *b.shape[2:])


def _product(x: Float[Array, "B T I"], w: Float[Array, "B I O"]) -> Float[Array, "B T O"]:
    """float32; each row by its own matrix."""
    if x.shape[1] > 1:
        return jnp.einsum("BTI,BIO->BTO", x, w, preferred_element_type=jnp.float32)
    x, w = jax.lax.optimization_barrier((x.astype(jnp.float32), w.astype(jnp.float32)))
    return jnp.sum(x.swapaxes(1, 2) * w, axis=1, keepdims=True)


def with_adapters(w: Mapping[str, Any], adapters: Sequence[Adapter], dtype: str) -> dict[str, Any]:
    """Prepared parameters (`cache.prepare`) with these adapters beside their matrices, stored in
    `dtype`; adapter 1 is the first."""
    layers = []
    for number, layer in enumerate(w["layers"]):
        own = dict(layer)
        for name in sorted({name for adapter in adapters for name in adapter.lora.targets}):
            own[name] = ByRow(layer[name], *_stacks(name, number, adapters, dtype))
        layers.append(own)
    return {**w, "layers": layers}


def _stacks(name: str, layer: int, adapters: Sequence[Adapter], dtype: str) -> tuple[Array, Array]:
    rank = max(adapter.lora.rank for adapter in adapters)
    having = next(adapter for adapter in adapters if name in adapter.lora.targets)
    inputs, outputs = having.layers[name + A].shape[1:-1], having.layers[name + B].shape[2:]
    a = np.zeros((1 + len(adapters), *inputs, rank), np.float32)
    b = np.zeros((1 + len(adapters), rank, *outputs), np.float32)
    for n, adapter in enumerate(adapters, 1):
        if name in adapter.lora.targets:
            r = adapter.lora.rank
            a[n, ..., :r] = adapter.layers[name + A][layer]
            b[n, :r] = adapter.lora.scale * np.asarray(adapter.layers[name + B][layer], np.float32)
    stored = jnp.dtype(dtype)
    return everywhere(a.astype(stored)), everywhere(b.astype(stored))


def taking(w: dict[str, Any], taken: Int[Array, " B"]) -> dict[str, Any]:
    """The same parameters with adapter taken[b] for row b; parameters without adapters are
    unchanged."""

    def take(matrix: Any) -> Any:
        return replace(matrix, taken=taken) if isinstance(matrix, ByRow) else matrix

    return jax.tree.map(take, w, is_leaf=lambda matrix: isinstance(matrix, ByRow))
