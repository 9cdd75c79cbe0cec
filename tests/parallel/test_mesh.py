"""Meshes multiply out, or the message says what does not."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_jax.config import InputError, MeshConfig
from llama_jax.parallel.arrays import check_batch, shard_batch, to_host
from llama_jax.parallel.mesh import AXES, axis_sizes, make_mesh


def test_minus_one_takes_what_is_left():
    assert axis_sizes(MeshConfig(tensor=2), 8) == {
        "slice": 1, "data": 1, "fsdp": 4, "sequence": 1, "tensor": 2,
    }  # fmt: skip
    assert make_mesh(MeshConfig(data=-1, fsdp=1)).shape["data"] == 8


@given(st.lists(st.integers(1, 4), min_size=5, max_size=5), st.integers(1, 64))
@settings(deadline=None, max_examples=100)
def test_axes_multiply_out_or_are_refused(sizes, devices):
    config = MeshConfig(**dict(zip(AXES, sizes, strict=True)))
    if np.prod(sizes) == devices:
        assert list(axis_sizes(config, devices).values()) == sizes
    else:
        with pytest.raises(InputError, match=f"does not multiply out to {devices} devices"):
            axis_sizes(config, devices)


def test_indivisible_devices_are_named():
    with pytest.raises(InputError, match=r"tensor=3.*8 devices"):
        make_mesh(MeshConfig(tensor=3))


def test_a_batch_that_does_not_divide_is_refused_with_a_number_that_does():
    mesh = make_mesh(MeshConfig(fsdp=4, sequence=2))
    check_batch(8, 32, 2, mesh)
    with pytest.raises(InputError, match=r"batch_size / accumulate = 6 .*fsdp=4.*such as 8"):
        check_batch(6, 32, 1, mesh)
    with pytest.raises(InputError, match=r"batch_size / accumulate = 2 "):
        check_batch(8, 32, 4, mesh)
    with pytest.raises(InputError, match=r"seq_len = 31 .*sequence=2.*such as 32"):
        check_batch(8, 31, 1, mesh)


def test_a_batch_is_split_over_rows_and_positions():
    mesh = make_mesh(MeshConfig(fsdp=4, sequence=2))
    rows = np.arange(8 * 6, dtype=np.int32).reshape(8, 6)
    array = shard_batch({"tokens": rows}, mesh)["tokens"]
    assert {s.data.shape for s in array.addressable_shards} == {(2, 3)}
    np.testing.assert_array_equal(to_host(array), rows)
    assert len(jax.devices()) == 8
