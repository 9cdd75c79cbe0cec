"""Interpreted kernels are for CPUs: no other platform gets them unseen."""

import functools

import jax
import jax.numpy as jnp
import pytest

from llama_jax.ops.attention import dot_product_attention
from llama_jax.ops.cached_attention import cached_attention
from llama_jax.ops.capabilities import Unsupported

Q = jax.ShapeDtypeStruct((1, 128, 2, 64), jnp.float32)
ONE = jax.ShapeDtypeStruct((1, 1, 2, 64), jnp.float32)
START = jax.ShapeDtypeStruct((1,), jnp.int32)
attend = functools.partial(dot_product_attention, implementation="pallas")


@pytest.mark.parametrize(
    ("function", "shapes"),
    [
        (attend, (Q, Q, Q)),
        (jax.grad(lambda *x: attend(*x).sum()), (Q, Q, Q)),
        (functools.partial(cached_attention, order="BSKH"), (ONE, Q, Q, START)),
    ],
    ids=["forward", "gradient", "decode"],
)
def test_what_was_traced_for_a_cpu_is_not_lowered_for_a_tpu(function, shapes):
    traced = jax.jit(function).trace(*shapes)
    with pytest.raises(Unsupported, match=r"traced for a CPU.* lowered for tpu: trace it"):
        traced.lower(lowering_platforms=("tpu",))
    assert "interpreted" not in traced.lower().as_text()


def test_rows_of_a_batch_are_marked_too():
    rows = jnp.arange(2 * 128 * 64, dtype=jnp.float32).reshape(2, 1, 128, 1, 64) / 1e4
    each = [attend(x, x, x) for x in rows]
    assert jnp.array_equal(jax.vmap(attend)(rows, rows, rows), jnp.stack(each))
