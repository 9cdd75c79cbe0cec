"""Weight matrices (dense, low-rank, int8, int4, NF4) behind one interface for products.

An array is a dense matrix. `LowRank` is one with an adapter beside it, W + scale A B (Hu et al.
2021), and `by_row.ByRow` one with several; `Int8`, `Int4` and `Nf4` are quantised (quantize.py
makes them) and multiplied in the dtype of the other operand. The layer's code is the same for all.
Values are pytrees, so they are scanned, sharded and differentiated like the arrays that they hold.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from llama_jax.config import MATRICES, ModelConfig
from llama_jax.model.by_row import ByRow
from llama_jax.model.weights import LOW, SCALE, STEP, A, B, adapter_inputs, dense_weights
from llama_jax.ops import linear, mlp

NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
)  # fmt: skip
"""Quantiles of a normal distribution, both halves including 0 (Dettmers et al. 2023, appendix
E)."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Int8:
    """int8 [*inputs,*outputs], and a scale [*outputs] for each output."""

    values: Any
    scale: Any

    def dense(self) -> Float[Array, "*weight"]:
        """float32 [*inputs,*outputs]."""
        inputs = self.values.ndim - self.scale.ndim
        return self.values.astype(jnp.float32) * self.scale[(None,) * inputs]

    def times(self, x: Array, inputs: int) -> Array:
        """x W: the integers are exact in any compute dtype, and the scale is applied last."""
        return linear.project(x, self.values, inputs, self.scale)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Int4:
    """4 bits each in groups of g along the flattened inputs: scale (code - 8).

    values: uint8 [groups,g/2,*outputs], the first half of a group in the low bits.
    scale: float16 [groups,*outputs].
    """

    values: Any
    scale: Any
    inputs: tuple[int, ...] = field(metadata={"static": True})

    def dense(self) -> Float[Array, "*weight"]:
        """float32 [*inputs,*outputs]."""
        numbers = codes(self.values).astype(jnp.float32) - 8
        return ungrouped(numbers * self.scale[:, None].astype(jnp.float32), self.inputs)

    def times(self, x: Array, inputs: int) -> Array:
        """x W."""
        return linear.project(x, self.dense().astype(x.dtype), inputs)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Nf4:
    """4-bit NormalFloat in blocks of g along the flattened inputs, with scales of one byte each.

    values: uint8 [groups,g/2,*outputs], as in `Int4`; codes are indices into NF4. scale: uint8
    [groups,*outputs]; a block's largest magnitude is low + step * scale. low, step: float32
    [*outputs].
    """

    values: Any
    scale: Any
    low: Any
    step: Any
    inputs: tuple[int, ...] = field(metadata={"static": True})

    def dense(self) -> Float[Array, "*weight"]:
        """float32 [*inputs,*outputs]."""
        numbers = jnp.asarray(NF4, jnp.float32)[codes(self.values)]
        scale = self.low[None] + self.step[None] * self.scale.astype(jnp.float32)
        return ungrouped(numbers * scale[:, None], self.inputs)

    def times(self, x: Array, inputs: int) -> Array:
        """x W."""
        return linear.project(x, self.dense().astype(x.dtype), inputs)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Int8Rows:
    """An embedding: int8 [V,D], and a scale [V] for each row."""

    values: Any
    scale: Any

    @property
    def T(self) -> Int8:
        """The head tied to it."""
        return Int8(self.values.T, self.scale)

    def dense(self) -> Float[Array, "V D"]:
        """float32."""
        return self.T.dense().T


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LowRank:
    """W [*inputs,*outputs] and its adapter: A [*inputs,r], B [r,*outputs]."""

    base: Any
    a: Any
    b: Any
    scale: float = field(metadata={"static": True})


Packed = Int8 | Int4 | Nf4
Matrix = Array | Packed | LowRank | ByRow


def project(x: Float[Array, "B T *inputs"], w: Matrix, inputs: int = 1) -> Array:
    """x times a matrix, over the last `inputs` axes of x: [B,T,*outputs] in x's dtype."""
    if isinstance(w, LowRank):
        low = linear.project(linear.project(x, w.a, inputs), w.b)
        return project(x, w.base, inputs) + w.scale * low
    if isinstance(w, ByRow):
        return project(x, w.base, inputs) + w.added(x)
    if isinstance(w, Packed):
        return _times(inputs, x, w)
    return linear.project(x, w, inputs)


def gate_up(x: Float[Array, "B T D"], gate: Matrix, up: Matrix) -> tuple[Array, Array]:
    """x gate and x up, the first half of SwiGLU."""
    if isinstance(gate, jax.Array) and isinstance(up, jax.Array):
        return mlp.gate_up(x, gate, up)
    return project(x, gate), project(x, up)


def gated_down(g: Float[Array, "B T F"], u: Float[Array, "B T F"], down: Matrix) -> Array:
    """(silu(g) u) down, the second half of SwiGLU."""
    if isinstance(down, jax.Array):
        return mlp.gated_down(g, u, down)
    return project(mlp.gated(g, u), down)


def rows(table: Array | Int8Rows, tokens: Array, dtype: str) -> Array:
    """The embeddings of tokens."""
    if isinstance(table, Int8Rows):
        numbers = table.values[tokens].astype(jnp.float32)
        return (numbers * table.scale[tokens][..., None]).astype(dtype)
    return table[tokens]


def dense(w: Array | Packed | Int8Rows, dtype: Any) -> Array:
    """A matrix as one array."""
    return (w.dense() if isinstance(w, Packed | Int8Rows) else w).astype(dtype)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _times(inputs: int, x: Array, w: Packed) -> Array:
    """x W. What is packed is never trained, and the backward pass makes it dense anew instead of
    keeping it so for every layer."""
    return w.times(x, inputs)


def _times_forward(inputs, x, w):
    return w.times(x, inputs), w


def _times_backward(inputs, w, d_out):
    matrix = w.dense().astype(d_out.dtype)
    axes = tuple(range(2, d_out.ndim)), tuple(range(inputs, matrix.ndim))
    return jnp.tensordot(d_out, matrix, axes=axes), None


_times.defvjp(_times_forward, _times_backward)


def codes(values: Array) -> Array:
    """uint8 [groups,g/2,*outputs], two codes in each -> [groups,g,*outputs], codes below 16."""
    return jnp.concatenate([values & 15, values >> 4], axis=1)


def ungrouped(numbers: Array, inputs: tuple[int, ...]) -> Array:
    """[groups,g,*outputs] -> [*inputs,*outputs], without the padding of the last group."""
    flat = numbers.reshape(-1, *numbers.shape[2:])[: math.prod(inputs)]
    return flat.reshape(*inputs, *flat.shape[1:])


def matrices(flat: Mapping[str, Any], cfg: ModelConfig) -> dict[str, Any]:
    """A layer's arrays by name, or some of them, each matrix joined with its adapter to one value.

    Of logical axes it makes the same structure, with axes in the place of arrays.
    """
    parts = (A, B, SCALE, LOW, STEP)
    found = {name: w for name, w in flat.items() if not name.endswith(parts)}
    if cfg.quant is not None:
        table = dense_weights(cfg)
        for name in found.keys() & set(MATRICES):
            inputs = table[name].shape[: adapter_inputs(name)]
            found[name] = _packed(flat, name, cfg.quant.weights, inputs)
    if cfg.lora is not None:
        for name in cfg.lora.targets:
            if name + A in flat:
                own = found[name], flat[name + A], flat[name + B]
                found[name] = LowRank(*own, scale=cfg.lora.scale)
    return found


def _packed(flat: Mapping[str, Any], name: str, kind: str, inputs: tuple[int, ...]) -> Packed:
    if kind == "int8":
        return Int8(flat[name], flat[name + SCALE])
    if kind == "int4":
        return Int4(flat[name], flat[name + SCALE], inputs)
    return Nf4(flat[name], flat[name + SCALE], flat[name + LOW], flat[name + STEP], inputs)


def outer_matrices(flat: Mapping[str, Any], cfg: ModelConfig) -> dict[str, Any]:
    """The same for the tensors outside the layers."""
    if cfg.quant is None or not cfg.quant.embeddings:
        return dict(flat)
    kinds = {"embed": Int8Rows, "head": Int8}
    return {
        name: kinds[name](w, flat[name + SCALE]) if name in kinds else w
        for name, w in flat.items()
        if not name.endswith(SCALE)
    }


def merged(params: Mapping[str, Any], cfg: ModelConfig) -> dict[str, Any]:
    """Parameters whose adapters are merged into their matrices: W + scale A B, added in float32 and
    rounded to W's dtype, or to that of parameters where W is quantised. Parameters without adapters
    are returned unchanged."""
    if cfg.lora is None:
        return dict(params)
    layers = matrices(params["layers"], cfg)

    def whole(name: str, w: Any) -> Array:
        base = w.base if isinstance(w, LowRank) else w
        dtype = cfg.param_dtype if isinstance(base, Packed) else base.dtype
        base = jax.vmap(lambda m: dense(m, jnp.float32))(base)
        if isinstance(w, LowRank):
            base += jax.vmap(lambda a, b: merge(a, b, w.scale, adapter_inputs(name)))(w.a, w.b)
        return base.astype(dtype)

    own = {n: whole(n, w) if n in MATRICES else w for n, w in layers.items()}
    return {**params, "layers": own}


def merge(a: Array, b: Array, scale: float, inputs: int) -> Float[Array, "*weight"]:
    """scale A B of one matrix, float32."""
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    flat = a.reshape(-1, a.shape[-1]) @ b.reshape(b.shape[0], -1)
    return scale * flat.reshape(*a.shape[:inputs], *b.shape[1:])
