"""Loads parameters from a source straight into device arrays, without converting them first."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding

from llama_jax.convert.source import Source, tensors
from llama_jax.model.weights import abstract_params


def load_params(source: Source, shardings: Any = None) -> dict[str, Any]:
    """The parameter tree of a source, in its stored dtypes.

    shardings: a tree like the parameters'; each device reads only its own part of every tensor.
    None for the default device.

    Raises InputError if the source turns out to be damaged.
    """
    abstract = abstract_params(source.config)
    if shardings is None:
        device = jnp.zeros(()).sharding
        shardings = jax.tree.map(lambda _: device, abstract)
    layered = {name: layer is not None for name, layer, _ in tensors(source.config)}

    def array(path: Any, a: jax.ShapeDtypeStruct, sharding: Sharding) -> jax.Array:
        name = path[-1].key

        def part(index: Any) -> np.ndarray:
            if not layered[name]:
                return np.asarray(source.tensor(name, None)[index]).astype(a.dtype, copy=False)
            start, stop, _ = index[0].indices(a.shape[0])
            shape = [len(range(*i.indices(n))) for i, n in zip(index, a.shape, strict=True)]
            stacked = np.empty(shape, a.dtype)
            for row, layer in enumerate(range(start, stop)):
                stacked[row] = source.tensor(name, layer)[index[1:]]
            return stacked

        return jax.make_array_from_callback(a.shape, sharding, part)

    return jax.tree.map_with_path(array, abstract, shardings)
