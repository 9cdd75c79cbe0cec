"""The table of weights: one row per tensor gives its shape, sharding, count and conversion."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from llama_jax.config import MATRICES, ModelConfig, Quantization


class Weight(NamedTuple):
    """Shape, logical axes (see parallel/rules.py) and initial values of one tensor."""

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    init: Callable[..., jax.Array]
    dtype: str | None = None
    """The dtype that it is stored in; None for the model's param_dtype."""
    packed: bool = False
    """Part of a quantised matrix, used as stored; see model/matrix.py."""

    @property
    def is_matrix(self) -> bool:
        """Whether it is multiplied in the compute dtype and has weight decay; norms and scores are
        neither."""
        return not self.packed and not {"norm", "score"} & set(self.axes)


Table = Mapping[str, Any]
"""A parameter tree with Weight rows for leaves."""
ones, zeros = jax.nn.initializers.ones, jax.nn.initializers.zeros


def fan_in(
    inputs: int | tuple[int, ...], outputs: int | tuple[int, ...], gain: float = 1.0
) -> Callable[..., jax.Array]:
    """Truncated normal with variance gain / (product of the input axes)."""
    return jax.nn.initializers.variance_scaling(
        gain, "fan_in", "truncated_normal", in_axis=inputs, out_axis=outputs
    )


A, B = "_a", "_b"
"""Endings of the names of an adapter's two factors."""


SCALE, LOW, STEP = "_scale", "_low", "_step"
"""Endings of the names of what a matrix in fewer bits has besides its values."""


def adapter_inputs(name: str) -> int:
    """Number of axes of a matrix that are contracted with its input; the others are output axes."""
    return 2 if name == "o" else 1


def adapter_weights(c: ModelConfig, table: Mapping[str, Weight]) -> dict[str, Weight]:
    """The factors A [*inputs,r] and B [r,*outputs] of each matrix that has an adapter, float32.

    As in PEFT, A starts with variance 1/3 over its inputs and B with zeros, so that nothing changes
    at first.
    """
    found = {}
    if c.lora is not None:
        for name in c.lora.targets:
            w, n, r = table[name], adapter_inputs(name), c.lora.rank
            init = fan_in(tuple(range(n)), n, 1 / 3)
            found[name + A] = Weight((*w.shape[:n], r), (*w.axes[:n], "rank"), init, "float32")
            found[name + B] = Weight((r, *w.shape[n:]), ("rank", *w.axes[n:]), zeros, "float32")
    return found


def stays_fixed(c: ModelConfig, name: str) -> bool:
    """Whether a parameter ("layers/q", ...) is frozen because it belongs to the base of adapters.

    The head of a reward model is not: the base has none.
    """
    return c.lora is not None and not name.endswith((A, B)) and not name.startswith("score")


def chosen(tree: Mapping[str, Any], keep: Callable[[str], bool], path: str = "") -> dict[str, Any]:
    """The leaves whose names ("embed", "layers/q", ...) are kept, in the shape of the tree."""
    found = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            if part := chosen(value, keep, f"{path}{key}/"):
                found[key] = part
        elif keep(path + key):
            found[key] = value
    return found


def packed_weights(q: Quantization, name: str, w: Weight) -> dict[str, Weight]:
    """The arrays that store a quantised matrix of the layers, in the order of its class's fields.

    Groups are along the flattened inputs; the last one is padded.
    """
    inputs, outputs = w.shape[: (n := adapter_inputs(name))], w.shape[n:]

    def row(shape: tuple[int, ...], axes: tuple[str, ...], dtype: str) -> Weight:
        return Weight((*shape, *outputs), (*axes, *w.axes[n:]), zeros, dtype, packed=True)

    if q.weights == "int8":
        return {name: row(inputs, w.axes[:n], "int8"), name + SCALE: row((), (), "float32")}
    groups = -(-math.prod(inputs) // q.group)
    axis = f"{w.axes[0]}_groups"
    found = {name: row((groups, q.group // 2), (axis, "group"), "uint8")}
    if q.weights == "int4":
        return found | {name + SCALE: row((groups,), (axis,), "float16")}
    found[name + SCALE] = row((groups,), (axis,), "uint8")
    return found | {name + end: row((), (), "float32") for end in (LOW, STEP)}


def layer_weights(c: ModelConfig) -> dict[str, Weight]:
    """One decoder layer as stored, adapters included."""
    table = dense_weights(c)
    adapters = adapter_weights(c, table)
    if c.quant is not None:
        for name in MATRICES:
            table |= packed_weights(c.quant, name, table.pop(name))
    return table | adapters


def dense_weights(c: ModelConfig) -> dict[str, Weight]:
    """One decoder layer as computed with: its matrices dense and without adapters."""
    D, N, K, H, F = c.d_model, c.num_heads, c.num_kv_heads, c.head_dim, c.d_ff
    # What is added to the residual stream shrinks with depth, so that its variance does not grow.
    residual = 1 / (2 * c.num_layers)
    return {
        "attn_norm": Weight((D,), ("norm",), ones),
        "q": Weight((D, N, H), ("embed", "heads", "head_dim"), fan_in(0, (1, 2))),
        "k": Weight((D, K, H), ("embed", "kv_heads", "head_dim"), fan_in(0, (1, 2))),
        "v": Weight((D, K, H), ("embed", "kv_heads", "head_dim"), fan_in(0, (1, 2))),
        "o": Weight((N, H, D), ("heads", "head_dim", "embed"), fan_in((0, 1), 2, residual)),
        "mlp_norm": Weight((D,), ("norm",), ones),
        "gate": Weight((D, F), ("embed", "mlp"), fan_in(0, 1)),
        "up": Weight((D, F), ("embed", "mlp"), fan_in(0, 1)),
        "down": Weight((F, D), ("mlp", "embed"), fan_in(0, 1, residual)),
    }


def outer_weights(c: ModelConfig) -> dict[str, Weight]:
    """The tensors outside the layers: embedding, last norm, and the head unless it is tied.

    A score head is w [D,1] and a bias [1], float32; w starts with a standard deviation of
    1/sqrt(D+1) (Stiennon et al. 2020).
    """
    D, V = c.d_model, c.vocab_size
    # Of unit variance, a token stays legible in the residual stream beside what layers add to it,
    # and attention learns early to copy it (torchtitan's Llama 3 begins so). A table that is the
    # head as well begins as a head: its logits would be too large.
    gain = 1.0 if c.tie_embeddings else float(D)
    table = {
        "embed": Weight((V, D), ("vocab", "embed"), fan_in(1, 0, gain)),
        "norm": Weight((D,), ("norm",), ones),
    }
    if c.head == "score":
        normal = jax.nn.initializers.normal((D + 1) ** -0.5)
        table["score"] = Weight((D, 1), ("embed", "score"), normal)
        table["score_bias"] = Weight((1,), ("score",), zeros)
    elif not c.tie_embeddings:
        table["head"] = Weight((D, V), ("embed", "vocab"), fan_in(0, 1))
    if c.quant is not None and c.quant.embeddings:
        for name in [name for name in ("embed", "head") if name in table]:
            table[name] = table[name]._replace(init=zeros, dtype="int8", packed=True)
            table[name + SCALE] = Weight((V,), ("vocab",), zeros, "float32", packed=True)
    return table


def model_weights(c: ModelConfig) -> dict[str, Weight | dict[str, Weight]]:
    """The whole parameter tree, layers stacked along a leading axis "layers"."""
    stacked = {
        name: w._replace(shape=(c.num_layers, *w.shape), axes=("layers", *w.axes))
        for name, w in layer_weights(c).items()
    }
    return {**outer_weights(c), "layers": stacked}


def map_table[T](f: Callable[[Weight], T], table: Table) -> Any:
    """`f` of every row of a table, in its shape."""
    return jax.tree.map(f, table, is_leaf=lambda w: isinstance(w, Weight))


def map_weights[T](f: Callable[[Weight], T], c: ModelConfig) -> dict:
    """`f` of every row, in the shape of the parameter tree."""
    return map_table(f, model_weights(c))


def abstract_params(c: ModelConfig) -> dict:
    """The parameter tree as ShapeDtypeStructs."""
    return map_weights(lambda w: jax.ShapeDtypeStruct(w.shape, w.dtype or c.param_dtype), c)


def logical_axes(c: ModelConfig) -> dict:
    """The parameter tree with each tensor's logical axes for a leaf."""
    return map_weights(lambda w: w.axes, c)


def parameter_count(c: ModelConfig) -> int:
    """Parameters of the model, including embedding, head and adapters, however they are stored."""
    dense = dense_weights(c)
    layer = sum(math.prod(w.shape) for w in (dense | adapter_weights(c, dense)).values())
    outer = (w for name, w in outer_weights(c).items() if not name.endswith(SCALE))
    return c.num_layers * layer + sum(math.prod(w.shape) for w in outer)


def kept_bytes(c: ModelConfig) -> int:
    """Bytes of the parameters in the dtypes that they are stored in."""
    return sum(math.prod(w.shape) * w.dtype.itemsize for w in jax.tree.leaves(abstract_params(c)))


def grow_vocabulary(
    table: Float[Array, "V D"], spelled: Sequence[Sequence[int]]
) -> Float[Array, "W D"]:
    """Append one row for each new piece: the mean of the rows of the old pieces that spelled it.

    `spelled` comes from `data.tokenizer.grow`; W = V + len(spelled). For a head [D,V] pass its
    transpose. Raises ValueError for a piece that no old pieces spell.
    """
    if not all(spelled):
        raise ValueError(f"new piece {[bool(s) for s in spelled].index(False)} has no old pieces")
    rows = [jnp.mean(table[jnp.asarray(ids)], axis=0) for ids in spelled]
    return jnp.concatenate([table, *(row[None].astype(table.dtype) for row in rows)])
