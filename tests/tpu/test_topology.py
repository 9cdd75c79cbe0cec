"""Slices by the names Google gives them."""

import json
import math
import os
import subprocess
import sys

import pytest
from jax._src import tpu_info

from llama_jax.config import InputError
from llama_jax.tpu.chips import CHIPS
from llama_jax.tpu.compile_step import ENVIRONMENT
from llama_jax.tpu.topology import names, parse, shapes_of


@pytest.mark.parametrize(
    ("name", "grid", "chips", "slices"),
    [
        ("v4-8", "v4:2x2x1", 4, 1),
        ("v4-32", "v4:2x2x4", 16, 1),
        ("v5p-128", "v5p:4x4x4", 64, 1),
        ("v5p-256", "v5p:4x4x8", 128, 1),
        ("v5p-640", "v5p:4x4x20", 320, 1),
        ("v5e-256", "v5e:16x16", 256, 1),
        ("v5litepod-16", "v5e:4x4", 16, 1),
        ("v6e-32", "v6e:4x8", 32, 1),
        ("v6e-256x4", "v6e:16x16", 1024, 4),
        ("v5p:4x4x8", "v5p:4x4x8", 128, 1),
        ("v5e:16x16x2", "v5e:16x16", 512, 2),
        ("v5e:8x4", "v5e:8x4", 32, 1),
        ("v5e-1", "v5e:1x1", 1, 1),
        ("v6e-1", "v6e:1x1", 1, 1),
        ("v5e-8", "v5e:2x4", 8, 1),
        ("v2-8", "v2:2x2", 4, 1),
        ("v3-8", "v3:2x2", 4, 1),
        ("v3-2048", "v3:32x32", 1024, 1),
        ("tpu7x-2", "tpu7x:1x1x1", 1, 1),
        ("tpu7x-128", "tpu7x:4x4x4", 64, 1),
        ("tpu7x:4x4x4", "tpu7x:4x4x4", 64, 1),
        ("tpu7x-512x2", "tpu7x:4x8x8", 512, 2),
        ("ironwood-16", "tpu7x:2x2x2", 8, 1),
        ("v5p:2x2", "v5p:2x2x1", 4, 1),
    ],
)
def test_names_mean_what_google_means(name, grid, chips, slices):
    topology = parse(name)
    assert (topology.grid, topology.chips, topology.slices) == (grid, chips, slices)
    # Both cores of v4 and v5p are one device; those of v2, v3 and tpu7x are two.
    two = grid.startswith(("v2", "v3", "tpu7x"))
    assert topology.devices == (2 * chips if two else chips)


ASKED = """
import json, sys
from jax.experimental import topologies
found = {}
for name in json.load(sys.stdin):
    try:
        found[name] = len(topologies.get_topology_desc(topology_name=name, platform="tpu").devices)
    except Exception:
        found[name] = 0
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def compiler():
    """Devices of every slice that can be named, and of small ones of all TPUs that jax knows, as
    libtpu sees them; 0 of those that it refuses."""
    pytest.importorskip("libtpu", reason="libtpu is only made for x86-64 Linux")
    kinds = [kind.value for kind in tpu_info.ChipVersion]
    small = [f"{tpu}{kind}:{s}" for tpu in ("", "tpu") for kind in kinds for s in ("2x2", "2x2x1")]
    asked = [parse(name).grid for name in names()] + small
    done = subprocess.run(
        [sys.executable, "-c", ASKED],
        input=json.dumps(asked),
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    return found, small


def test_every_slice_that_is_named_is_one_of_the_compiler(compiler):
    found, _ = compiler
    cores = {name: parse(name).chip.cores for name in names()}
    for name in names():
        topology = parse(name)
        # Without being told, the compiler takes the cores of v4 apart.
        each = cores[name] if topology.generation == "v4" else topology.chip.devices
        assert found[topology.grid] == topology.chips * each, name


def test_no_tpu_of_the_compiler_is_unknown(compiler):
    found, small = compiler
    accepted = [grid for grid in small if found[grid]]
    assert {grid.split(":")[0] for grid in accepted} >= {"v2", "v3", "v4", "v5e", "v6e", "tpu7x"}
    assert [grid for grid in accepted if not known(grid)] == []


def known(grid):
    try:
        return parse(grid)
    except InputError:
        return None


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("v5p-127", "v5p-128"),
        ("v5e-300", "v5e-256"),
        ("v5e:3x5", "v5e-16"),
        ("v5p:4x4x9", "v5p-256"),
        ("v5e:4x4x2x2", "v5e-64"),
        ("v7-8", "v4-8"),
        ("v5e-256x0", "v5e:16x16"),
        ("", "v5e:16x16"),
        ("tpu", "v5p"),
    ],
)
def test_what_does_not_exist_is_refused_with_the_nearest(name, near):
    with pytest.raises(InputError, match=near):
        parse(name)


@pytest.mark.parametrize("name", names())
def test_every_name_is_read_back(name):
    assert parse(name).name == name


@pytest.mark.parametrize("generation", CHIPS)
def test_shapes_hold_the_smallest_slice_and_the_largest(generation):
    shapes = [math.prod(s) for s in shapes_of(generation)]
    assert shapes == sorted(shapes)
    assert max(shapes) <= math.prod(CHIPS[generation].largest)


def test_rings():
    assert [parse("v5e:8x16").wraps(k) for k in (0, 1)] == [False, True]
    assert [parse("v5p-64").wraps(k) for k in (0, 1, 2)] == [False, True, True]
    assert [parse("v3-512").wraps(k) for k in (0, 1)] == [False, False]
    assert parse("v3-2048").wraps(0)
    assert parse("tpu7x-128").wraps(0)
