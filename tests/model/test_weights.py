import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax.config import InputError
from llama_jax.model.llama import init_params
from llama_jax.model.presets import LLAMA2_7B, PRESETS, TINY, extend_context
from llama_jax.model.weights import (
    abstract_params,
    grow_vocabulary,
    logical_axes,
    parameter_count,
)
from tests.model.small import SMALL

MEDIUM = replace(
    TINY, vocab_size=512, d_model=96, num_layers=3, num_heads=8, num_kv_heads=4, head_dim=16,
    d_ff=200,
)  # fmt: skip
# Published counts; those of the (tied) stories models are V D + L (2 D N H + 2 D K H + 3 D F + 2 D)
# + D by hand.
COUNTS = {
    "llama1-7b": 6_738_415_616,
    "llama1-13b": 13_015_864_320,
    "llama1-33b": 32_528_943_616,
    "llama1-65b": 65_285_660_672,
    "llama2-7b": 6_738_415_616,
    "llama2-13b": 13_015_864_320,
    "llama2-34b": 33_743_970_304,  # as Code Llama 34B
    "llama2-70b": 68_976_648_192,
    "stories-260k": 260_032,
    "stories-15m": 15_191_712,
    "stories-42m": 41_689_600,
    "stories-110m": 109_529_856,
}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_published_number_of_parameters(name):
    cfg = PRESETS[name]
    shapes = jax.eval_shape(lambda: init_params(jax.random.key(0), cfg))
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
    assert parameter_count(cfg) == count
    if name != "tiny":
        assert count == COUNTS[name]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_declared_tree_is_the_tree_of_init(tied, dtype):
    cfg = replace(SMALL, tie_embeddings=tied, param_dtype=dtype)
    made = jax.eval_shape(lambda: init_params(jax.random.key(0), cfg))
    assert abstract_params(cfg) == made
    assert ("head" in made) == (not tied)


def test_every_dimension_has_an_axis_name():
    axes = jax.tree.leaves_with_path(logical_axes(SMALL), is_leaf=lambda a: isinstance(a, tuple))
    shapes = jax.tree.leaves_with_path(abstract_params(SMALL))
    for (path, names), (same, leaf) in zip(axes, shapes, strict=True):
        assert path == same
        assert len(names) == len(leaf.shape)
        sizes = dict(zip(names, leaf.shape, strict=True))
        letters = {
            "embed": SMALL.d_model, "heads": 4, "kv_heads": 2, "head_dim": 8, "mlp": SMALL.d_ff,
            "vocab": SMALL.vocab_size, "norm": SMALL.d_model, "layers": 2,
        }  # fmt: skip
        assert sizes == {name: letters[name] for name in names}


@pytest.fixture(scope="module")
def drawn():
    """Initial parameters of MEDIUM from a key's seed; one compilation for all."""
    return {seed: init_params(jax.random.key(seed), MEDIUM) for seed in (0, 1)}


def test_initial_values_spread_by_their_fan_in(drawn):
    params = drawn[0]
    D, NH, F, depth = 96, 8 * 16, 200, 2 * 3
    variances = {
        "q": 1 / D, "k": 1 / D, "v": 1 / D, "gate": 1 / D, "up": 1 / D,
        "o": 1 / NH / depth, "down": 1 / F / depth,
    }  # fmt: skip
    tensors = {name: params["layers"][name] for name in variances}
    tensors |= {"embed": params["embed"], "head": params["head"]}
    variances |= {"embed": 1, "head": 1 / D}
    for name, tensor in tensors.items():
        std, wanted = float(jnp.std(tensor)), math.sqrt(variances[name])
        assert std == pytest.approx(wanted, rel=0.03), name
        assert abs(float(jnp.mean(tensor))) < 0.03 * wanted, name
        # Truncated at two standard deviations of the untruncated normal.
        assert float(jnp.abs(tensor).max()) < 2.28 * wanted, name
    tied = init_params(jax.random.key(0), replace(MEDIUM, tie_embeddings=True))["embed"]
    assert float(jnp.std(tied)) == pytest.approx(1 / math.sqrt(D), rel=0.03)  # the head as well
    for norm in (params["norm"], params["layers"]["attn_norm"], params["layers"]["mlp_norm"]):
        np.testing.assert_array_equal(norm, jnp.ones_like(norm))


def test_initial_values_follow_from_the_key_alone(drawn):
    one, same, other = drawn[0], init_params(jax.random.key(0), MEDIUM), drawn[1]
    jax.tree.map(np.testing.assert_array_equal, one, same)
    for name in ("q", "k", "v", "o", "gate", "up", "down"):
        first, second, _ = one["layers"][name]
        assert not np.array_equal(first, second), f"two layers share their {name}"
        assert not np.array_equal(first, other["layers"][name][0])
    assert not np.array_equal(one["layers"]["gate"], one["layers"]["up"])


def test_a_grown_vocabulary_starts_from_the_mean_of_what_spelled_it():
    table = jnp.asarray(np.random.default_rng(0).standard_normal((5, 3)), jnp.float32)
    grown = grow_vocabulary(table, [[0, 2], [4], [1, 1, 3]])
    np.testing.assert_array_equal(grown[:5], table)
    old = np.asarray(table, np.float64)
    expected = [(old[0] + old[2]) / 2, old[4], (2 * old[1] + old[3]) / 3]
    np.testing.assert_allclose(grown[5:], expected, rtol=1e-6)
    assert grow_vocabulary(table.astype(jnp.bfloat16), [[0]]).dtype == jnp.bfloat16
    with pytest.raises(ValueError, match="new piece 1 has no old pieces"):
        grow_vocabulary(table, [[0], [], [1]])


def test_the_recipe_from_4k_to_32k():
    long = extend_context(LLAMA2_7B, 32_768)
    assert (long.rope_scaling, long.rope_factor, long.max_seq_len) == ("yarn", 8.0, 32_768)
    assert long.pretrained_seq_len == 4096
    assert replace(long, rope_scaling="none", rope_factor=1.0, max_seq_len=4096) == LLAMA2_7B
    assert extend_context(LLAMA2_7B, 8192, "linear").rope_scaling == "linear"
    assert parameter_count(long) == parameter_count(LLAMA2_7B)


def test_what_cannot_be_extended_is_refused_with_its_values():
    with pytest.raises(InputError, match=r"context of 4096 \(rope_scaling none\) to 2048"):
        extend_context(LLAMA2_7B, 2048)
    with pytest.raises(InputError, match=r"of 4096.* to 4096"):
        extend_context(LLAMA2_7B, 4096)
    with pytest.raises(InputError, match=r"of 8192 \(rope_scaling yarn\) to 16384"):
        extend_context(extend_context(LLAMA2_7B, 8192), 16_384)
    with pytest.raises(InputError, match="rope_scaling=none does not go with"):
        extend_context(LLAMA2_7B, 8192, "none")
