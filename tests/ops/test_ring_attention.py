"""Ring attention on eight fake devices against the float64 oracle of the whole sequence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, PartitionSpec

from llama_jax.ops.attention import dot_product_attention
from llama_jax.ops.ring_attention import unzigzag, zigzag
from tests.kernels import oracle
from tests.kernels.test_flash_attention import check, inputs, jit


def over_the_ring(n, implementation, q, k, v, do, ids):
    """Values and gradients of sequences in natural order, computed on n devices."""
    mesh = Mesh(np.array(jax.devices()[:n]), ("sequence",), axis_types=(AxisType.Auto,))

    @jit
    def run(q, k, v, do, ids):
        def whole(q, k, v):
            *arranged, segment_ids = [None if x is None else zigzag(x, n) for x in (q, k, v, ids)]
            out = dot_product_attention(
                *arranged,
                segment_ids=segment_ids,
                implementation=implementation,
                spec=PartitionSpec(None, "sequence", None, None),
                zigzag=True,
            )
            return unzigzag(out, n)

        out, pull = jax.vjp(whole, q, k, v)
        return out, *pull(do)

    with jax.set_mesh(mesh):
        return run(q, k, v, do, ids)


def compare(n, T, K, implementation, ids=None):
    q, k, v, do = inputs(2, T, T, 2, K, 64)
    if ids is not None:
        ids = np.broadcast_to(ids, (2, T)).astype(np.int32)
    got = over_the_ring(n, implementation, q, k, v, do, ids)
    seen = oracle.visible(T, T, segment_ids=ids, B=2)
    want = oracle.attention(q, k, v, seen, do=do)
    for name, a, b in zip(("out", "dq", "dk", "dv"), got, (want[0], *want[2:]), strict=True):
        check(a, b, "float32", name)


@pytest.mark.parametrize("n", [1, 2, 8])
def test_matches_the_whole_sequence(n):
    compare(n, 96, 2, "xla")


def test_documents_that_span_devices():
    """Runs that begin and end inside chunks, one of them longer than half of the sequence."""
    compare(4, 64, 1, "xla", ids=np.repeat([3, 1, 0, 2], [5, 38, 1, 20]))


@pytest.mark.slow
def test_the_kernel_on_the_ring():
    compare(4, 256, 1, "pallas", ids=np.repeat([1, 0], [150, 106]))


def test_zigzag_gives_every_device_an_early_and_a_late_chunk():
    order = np.asarray(zigzag(jnp.arange(12)[None], 3))[0]
    assert order.tolist() == [0, 1, 10, 11, 2, 3, 8, 9, 4, 5, 6, 7]
    assert np.asarray(unzigzag(jnp.asarray(order)[None], 3))[0].tolist() == list(range(12))
    with pytest.raises(ValueError, match="13 positions must be a multiple of 6; the next is 18"):
        zigzag(jnp.arange(13)[None], 3)
