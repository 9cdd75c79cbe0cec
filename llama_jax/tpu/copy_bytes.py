"""Bytes that a Pallas call copies between HBM and VMEM, from its grid and its index maps.

Pallas copies a block when its index differs from that of the grid step before. The index maps are
evaluated step by step on real scalars, so a ragged cache counts as it is.
"""

import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


def pallas_call_of(function, *shapes):
    """The one pallas_call that `function` makes of arrays like `shapes`.

    Raises ValueError if there are none or several.
    """
    jaxpr = jax.make_jaxpr(function)(*shapes)
    calls = [equation for equation in jaxpr.eqns if equation.primitive.name == "pallas_call"]
    if len(calls) != 1:
        raise ValueError(f"{len(calls)} Pallas calls, not one")
    return calls[0]


def copied_bytes(call, scalars: Sequence[np.ndarray]) -> list[int]:
    """Bytes copied for each input, then each output, of a call that prefetches `scalars`."""
    grid_mapping = call.params["grid_mapping"]
    refs = [jax.new_ref(jnp.asarray(s, jnp.int32)) for s in scalars]
    steps = list(itertools.product(*map(range, grid_mapping.grid)))
    copied = []
    for block in grid_mapping.block_mappings:
        place = block.index_map_jaxpr
        sizes = [getattr(size, "block_size", 1) for size in block.block_shape]
        at, moves = None, 0
        for step in steps:
            index = tuple(map(int, jax.core.eval_jaxpr(place.jaxpr, place.consts, *step, *refs)))
            moves += index != at
            at = index
        copied.append(moves * math.prod(sizes) * block.array_aval.dtype.itemsize)
    return copied
