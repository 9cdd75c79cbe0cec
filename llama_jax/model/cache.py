"""The key/value cache, and the decoder over it: the layers one by one, each with its own weights.

A scan over stacked layers would copy every layer's weights and cache out of the stack at every
token, which is as much traffic as the work itself. So generation takes the stack apart once.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Shaped

from llama_jax.config import ModelConfig, plain
from llama_jax.model.layer import Cache, Pages, decoder_layer, order_of_cache
from llama_jax.model.matrix import (
    Int8,
    Int8Rows,
    matrices,
    merged,
    outer_matrices,
    project,
    rows,
)
from llama_jax.model.weights import layer_weights, outer_weights
from llama_jax.ops.cached_attention import VALUES
from llama_jax.ops.int8_cache import SCALE_BYTES, Int8Pages
from llama_jax.ops.norm import rms_norm
from llama_jax.ops.paged_attention import Pool
from llama_jax.parallel.devices import on_cpus
from llama_jax.parallel.rules import constrain, named_sharding, spec_in_context


def empty_cache(config: ModelConfig, B: int, S: int) -> list[Cache]:
    """One (keys, values) pair for each layer, zeros in the compute dtype, see `order_of_cache`.

    With a mesh in context, each device makes the rows and heads that it will read.
    """
    sizes = {"B": B, "K": config.num_kv_heads, "S": S, "H": config.head_dim}

    def zeros(order):
        shape = tuple(sizes[letter] for letter in order)
        spec = spec_in_context([_AXES[letter] for letter in order], shape)
        return _zeros(shape, config.dtype, spec)

    order = order_of_cache(config, B)
    return [(zeros(order), zeros(VALUES[order])) for _ in range(config.num_layers)]


_AXES = {"B": "batch", "K": "kv_heads", "S": None, "H": "head_dim"}


def empty_pages(config: ModelConfig, P: int, page: int, kv: str) -> list[tuple[Pool, Pool]]:
    """Keys and values of each layer in P pages, in the compute dtype, or in int8 with kv="int8"."""
    if kv != "int8":
        return [*empty_cache(config, P, page)]
    # Their shapes alone: in the compute type the pages may be more than there is memory.
    pools = jax.eval_shape(partial(empty_cache, config, P, page))

    def packed(pool: jax.ShapeDtypeStruct, axes: str) -> Int8Pages:
        spec = spec_in_context([_AXES[letter] for letter in axes], pool.shape)
        scale = P, config.num_kv_heads, page
        scales = _zeros(scale, "float32", spec_in_context(_SCALE_AXES, scale))
        return Int8Pages(_zeros(pool.shape, "int8", spec), scales)

    order = order_of_cache(config, P)
    return [(packed(keys, order), packed(values, VALUES[order])) for keys, values in pools]


_SCALE_AXES = "batch", "kv_heads", None


def pages_in_place(
    pages: Sequence[tuple[Pool, Pool]], config: ModelConfig
) -> list[tuple[Pool, Pool]]:
    """The same pages, laid out over the mesh in context as `empty_pages` lays them out: so that no
    program returns them as the next one does not expect them."""

    def placed(pool: Any, axes: str) -> Any:
        if isinstance(pool, Int8Pages):
            return Int8Pages(placed(pool.numbers, axes), constrain(pool.scale, _SCALE_AXES))
        return constrain(pool, [_AXES[letter] for letter in axes])

    order = order_of_cache(config, pages[0][0].shape[0])
    return [(placed(keys, order), placed(values, VALUES[order])) for keys, values in pages]


@partial(jax.jit, static_argnums=(0, 1, 2))
def _zeros(shape: tuple[int, ...], dtype: str, spec: PartitionSpec | None) -> Array:
    zeros = jnp.zeros(shape, dtype)
    return zeros if spec is None else jax.lax.with_sharding_constraint(zeros, spec)


def copy_rows(
    cache: list[tuple[Array, Array]],
    source: list[tuple[Array, Array]],
    rows: Int[Array, " B"],
    replaced: Bool[Array, " B"],
) -> list[tuple[Array, Array]]:
    """The cache with row rows[b] of `source` in its row b, wherever replaced[b].

    The source may have another number of rows, and fewer positions: later positions stay unchanged.
    """

    def copy(ours: Array, theirs: Array) -> Array:
        origin = (0,) * ours.ndim
        before = jax.lax.slice(ours, origin, (len(rows), *theirs.shape[1:]))
        after = jnp.where(replaced[:, None, None, None], theirs[rows], before)
        return jax.lax.dynamic_update_slice(ours, after, origin)

    return jax.tree.map(copy, cache, source)


def cache_bytes(config: ModelConfig, kv: str = "model") -> int:
    """Bytes that keys and values of one token take, all layers together."""
    width = jnp.dtype(inference_config(config).dtype).itemsize
    head = config.head_dim + SCALE_BYTES if kv == "int8" else config.head_dim * width
    return 2 * config.num_layers * config.num_kv_heads * head


def unstack(
    params: dict[str, Any], config: ModelConfig, *, release: bool = False
) -> dict[str, Any]:
    """The parameter tree with a list of L layers for "layers", matrices in the compute type.

    A tied head becomes a tensor of its own, in the layout that is read fastest. With `release` each
    stack is deleted once it is taken apart.
    """
    inner, outer = layer_weights(config), outer_weights(config)
    apart: dict[str, list[Array]] = {}
    for name, stack in params["layers"].items():
        apart[name] = _apart(stack, config.dtype if inner[name].is_matrix else stack.dtype)
        if release:
            stack.delete()
    layers = [
        matrices({name: ws[i] for name, ws in apart.items()}, config)
        for i in range(config.num_layers)
    ]
    found = {
        name: jnp.asarray(w, config.dtype if outer[name].is_matrix else w.dtype)
        for name, w in params.items()
        if name != "layers"
    }
    found = outer_matrices(found, config)
    return {"head": found["embed"].T, **found, "layers": layers}


@partial(jax.jit, static_argnames="dtype")
def _apart(stack: Shaped[Array, "L ..."], dtype: Any) -> list[Array]:
    return [w.astype(dtype) for w in stack]


def decode(
    w: dict[str, Any],
    tokens: Int[Array, "B T"],
    cache: list[Cache] | list[Pages],
    start: Int[Array, " B"],
    *,
    config: ModelConfig,
) -> tuple[Float[Array, "B T D"], list[Any]]:
    """Normed residual stream of T further tokens per row, and the cache, or pages, that hold them.

    Row b's tokens have positions start[b] onwards; earlier positions must be in the cache. `w` is
    what `unstack` returns.
    """
    positions = start[:, None] + jnp.arange(tokens.shape[1])[None]
    x = rows(w["embed"], tokens, config.dtype)
    written: list[Any] = []
    for layer, kv in zip(w["layers"], cache, strict=True):
        x, kv = decoder_layer(layer, x, kv, positions, None, cfg=config)
        written.append(kv)
    return rms_norm(x, w["norm"], eps=config.norm_eps), written


def logits_of(w: dict[str, Any], x: Float[Array, "B 1 D"]) -> Float[Array, "B V"]:
    """The head: float32 logits of one position per row."""
    head = w["head"]
    head = head.astype(jnp.float32) if isinstance(head, jax.Array) else head
    # Said here, or a program that wants them whole would gather the head and not the logits.
    return constrain(project(x.astype(jnp.float32), head)[:, 0], ("batch", "vocab"))


def inference_config(config: ModelConfig) -> ModelConfig:
    """The configuration for generation: float32 on CPUs, where bfloat16 products of one row run
    several times slower than float32 ones; the configured dtype elsewhere."""
    return replace(config, dtype="float32") if on_cpus() else config


def prepare(
    params: dict[str, Any], config: ModelConfig, *, release: bool = False
) -> dict[str, Any]:
    """The parameters as generation reads them: layers apart, in the type it computes with, adapters
    merged.

    With `release` the stacks of `params`, or those that adapters were merged into, are deleted one
    by one, as soon as each is taken apart: a device that a model nearly fills has no room for two
    copies of it.
    """
    if config.lora is not None:
        params = _merged(params, cfg=config)
    return unstack(params, inference_config(_prepared(config)), release=release)


def _prepared(config: ModelConfig) -> ModelConfig:
    """That of prepared parameters, whose adapters are merged."""
    return config if config.lora is None else plain(config)


_merged = jax.jit(merged, static_argnames="cfg")


def is_prepared(params: dict[str, Any]) -> bool:
    """Whether the parameters come from `prepare`, and are not the stacked tree of training."""
    return isinstance(params["layers"], list)


def gather(w: dict[str, Any], config: ModelConfig) -> dict[str, Any]:
    """Prepared parameters, whole on every device except for what `tensor` splits.

    If they stayed split over `fsdp`, each decoding step would gather them again; this moves the
    same bytes once. The mesh in context decides; it may have the devices of training in other axes.
    Without one, or where nothing is split otherwise, the arrays themselves are returned.
    """
    mesh = jax.sharding.get_mesh()
    if mesh.empty:
        return w

    def whole(array: Array, axes: Sequence[str]) -> Array:
        kept = [None if axis == "embed" else axis for axis in axes]
        return jax.device_put(array, named_sharding(kept, mesh, array.shape))

    return jax.tree.map(whole, w, prepared_axes(config))


def prepared_axes(config: ModelConfig) -> dict[str, Any]:
    """Prepared parameters with each tensor's logical axes for a leaf."""
    config = _prepared(config)
    outer = {name: weight.axes for name, weight in outer_weights(config).items()}
    inner = {name: weight.axes for name, weight in layer_weights(config).items()}
    outer, inner = outer_matrices(outer, config), matrices(inner, config)
    table = outer["embed"]
    packed = isinstance(table, Int8Rows)
    tied = Int8(table.values[::-1], table.scale) if packed else table[::-1]
    return {"head": tied, **outer, "layers": [inner] * config.num_layers}
