"""Slices by the names Google gives them."""

import math

import pytest

from llama_jax.config import InputError
from llama_jax.tpu.chips import CHIPS
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
    ],
)
def test_names_mean_what_google_means(name, grid, chips, slices):
    topology = parse(name)
    assert (topology.grid, topology.chips, topology.slices) == (grid, chips, slices)


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
