"""Meshes multiply out, or the message says what does not."""

import json
import math
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh

from llama_jax.config import InputError, MeshConfig
from llama_jax.parallel.arrays import check_batch, host_rows, shard_batch, to_host
from llama_jax.parallel.mesh import AXES, axis_sizes, in_rows, make_mesh
from llama_jax.parallel.torus import coordinates, extents, stages
from tests.parallel.chips import chips, grid_of


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
    mesh = make_mesh(MeshConfig(fsdp=2, sequence=2, tensor=2))
    with pytest.raises(InputError, match=r"seq_len = 34 .*sequence=2 x tensor=2.*such as 36"):
        check_batch(8, 34, 1, mesh)


def test_a_batch_is_split_over_rows_and_positions():
    mesh = make_mesh(MeshConfig(fsdp=4, sequence=2))
    rows = np.arange(8 * 6, dtype=np.int32).reshape(8, 6)
    array = shard_batch({"tokens": rows}, mesh)["tokens"]
    assert {s.data.shape for s in array.addressable_shards} == {(2, 3)}
    np.testing.assert_array_equal(to_host(array), rows)
    assert len(jax.devices()) == 8


def laid(devices, **sizes):
    return grid_of(devices, *(sizes.get(axis, 1) for axis in AXES))


@given(st.lists(st.integers(1, 4), min_size=2, max_size=3), st.integers(1, 2), st.randoms())
@settings(deadline=None)
def test_a_path_becomes_rows_where_a_scatter_needs_them(shape, slices, random):
    """Whatever the order of the chips; slices stay apart."""
    devices = chips(shape, slices)
    size = len(devices) // slices
    order = random.sample(range(size), size)
    path = laid(
        [devices[i * size + k] for i in range(slices) for k in order], slice=slices, fsdp=size
    )
    found = in_rows(path)
    assert found.shape == path.shape
    for part, before in zip(found.reshape(slices, size), path.reshape(slices, size), strict=True):
        assert sorted(part, key=repr) == sorted(before, key=repr)
        assert found is path or math.prod(extents([d.coords for d in part])) == size
    if stages([d.coords for d in devices[:size]]):
        assert stages(coordinates(found, AXES.index("fsdp")))
    assert in_rows(found) is found


@pytest.mark.parametrize(
    "sizes", [{"tensor": 8}, {"sequence": 8}, {"data": 8}, {"fsdp": 2, "tensor": 4},
              {"fsdp": 4, "tensor": 2}]
)  # fmt: skip
def test_a_path_stays_where_neighbours_count(sizes):
    cube = {chip.coords: chip for chip in chips((2, 2, 2))}
    ring = [(0, 0, 0), (1, 0, 0), (1, 1, 0), (0, 1, 0), (0, 1, 1), (1, 1, 1), (1, 0, 1), (0, 0, 1)]
    path = [cube[place] for place in ring]  # jax's for a v5p-16
    grid = laid(path, **sizes)
    assert in_rows(grid) is grid
    found = in_rows(laid(path, fsdp=8))[0, 0, :, 0, 0]
    assert [d.coords[::-1] for d in found] == [c.coords for c in chips((2, 2, 2))]


TORUS = """
import json, numpy
from jax.experimental.topologies import get_topology_desc
from llama_jax.config import InputError, MeshConfig
from llama_jax.parallel.mesh import AXES, make_mesh
def hops(a, b):  # between two chips of a ring of 16 by 16
    return sum(min(abs(p - q), 16 - abs(p - q)) for p, q in zip(a.coords, b.coords))
def farthest(axis, **sizes):  # of two neighbours along a mesh axis
    grid = make_mesh(MeshConfig(**sizes), pod).devices
    rows = numpy.moveaxis(grid, AXES.index(axis), -1).reshape(-1, grid.shape[AXES.index(axis)])
    return max(hops(a, b) for row in rows for a, b in zip(row, row[1:]))
pod = get_topology_desc("v5e:16x16", "tpu").devices
two = get_topology_desc("v5e:4x4", "tpu", num_slices=2).devices
split = make_mesh(MeshConfig(slice=2, fsdp=4, tensor=4), two).devices
try:
    make_mesh(MeshConfig(), two)
except InputError as error:
    refused = str(error)
print(json.dumps({
    "tensor 16": farthest("tensor", tensor=16),
    "tensor 4, a part of a torus axis": farthest("tensor", tensor=4),
    "fsdp 256": farthest("fsdp"),
    "slices": [sorted({device.slice_index for device in part.flat}) for part in split],
    "refused": refused,
}))
"""


@pytest.mark.slow
def test_neighbours_on_the_mesh_are_neighbours_on_the_torus():
    pytest.importorskip("libtpu", reason="knows the topologies")
    own = {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    done = subprocess.run(
        [sys.executable, "-c", TORUS], env=os.environ | own, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["tensor 16"] == found["tensor 4, a part of a torus axis"] == 1
    assert found["fsdp 256"] <= 2
    assert found["slices"] == [[0], [1]]
    assert found["refused"] == (
        "these 32 devices are 2 slices, joined by a data-centre network, and mesh slice=1: use "
        "--mesh.slice 2"
    )


def test_a_host_holds_the_rows_of_its_devices():
    """Rows do not lie by host number: the batch is put together from where the devices are."""
    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2))
    np.testing.assert_array_equal(host_rows(mesh, 12), np.arange(12))
    backwards = Mesh(mesh.devices[..., ::-1, :, :], mesh.axis_names, axis_types=mesh.axis_types)
    rows = np.arange(8 * 6, dtype=np.int32).reshape(8, 6)
    for m in (mesh, backwards):
        array = shard_batch({"tokens": rows}, m, 8)["tokens"]
        np.testing.assert_array_equal(array, rows)
