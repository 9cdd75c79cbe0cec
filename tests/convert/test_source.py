"""Layouts: our axes and heads against rows [out, in], interleaved planes against half-split."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_jax.config import InputError
from llama_jax.convert.source import from_rows, rows_shape, tensors, to_rows
from llama_jax.ops.rope import apply_rope, rope_frequencies
from tests.convert.models import BASE

SHAPES = {name: weight.shape for name, _, weight in tensors(BASE)}


def rows_of(name, seed=0):
    return np.random.default_rng(seed).standard_normal(rows_shape(name, BASE), np.float32)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("name", SHAPES)
def test_rows_and_tensors_are_inverse(name, interleaved):
    rows = rows_of(name)
    tensor = from_rows(name, rows, BASE, interleaved=interleaved)
    assert tensor[...].shape == tensor.shape == SHAPES[name]
    assert np.array_equal(to_rows(name, tensor[...], interleaved=interleaved), rows)


@settings(deadline=None)
@given(st.sampled_from(sorted(SHAPES)), st.booleans(), st.data())
def test_any_part_is_that_part_of_the_whole(name, interleaved, data):
    tensor = from_rows(name, rows_of(name), BASE, interleaved=interleaved)
    index = []
    for n in SHAPES[name]:
        a, b = sorted(data.draw(st.tuples(st.integers(0, n), st.integers(0, n))))
        index.append(slice(a, b))
    assert np.array_equal(tensor[tuple(index)], tensor[...][tuple(index)])


@pytest.mark.parametrize(("name", "inputs"), [("q", 1), ("o", 2), ("gate", 1), ("head", 1)])
def test_a_product_with_rows_is_a_product_with_the_tensor(name, inputs):
    rows = rows_of(name)
    tensor = from_rows(name, rows, BASE, interleaved=False)[...]
    x = np.random.default_rng(1).standard_normal(rows.shape[1], np.float32)
    found = np.tensordot(x.reshape(tensor.shape[:inputs]), tensor, axes=inputs)
    np.testing.assert_allclose(found.reshape(-1), rows @ x, rtol=1e-4, atol=1e-5)


def test_interleaved_rotation_is_ours_after_the_permutation():
    """Meta's model.py: neighbouring numbers are the parts of a complex number that is turned."""
    N, H, D = BASE.num_heads, BASE.head_dim, BASE.d_model
    rows, rng, position = rows_of("q"), np.random.default_rng(2), 5
    x = rng.standard_normal(D).astype(np.float32)
    angles = position * BASE.rope_theta ** (-np.arange(0, H, 2) / H)
    theirs = (rows @ x).reshape(N, H // 2, 2)
    turned = (theirs[..., 0] + 1j * theirs[..., 1]) * np.exp(1j * angles)  # [N, H/2]
    q = np.einsum("D,DNH->NH", x, from_rows("q", rows, BASE, interleaved=True)[...])
    frequencies = rope_frequencies(
        H, theta=BASE.rope_theta, scaling="none", factor=1.0, pretrained_len=64.0
    )
    ours = apply_rope(jnp.asarray(q)[None, None], jnp.full((1, 1), position), *frequencies)[0, 0]
    np.testing.assert_allclose(ours[:, : H // 2], turned.real, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(ours[:, H // 2 :], turned.imag, rtol=1e-4, atol=1e-4)


def test_another_shape_is_bad_input():
    with pytest.raises(InputError, match=r"q is \[24, 25\], not \[24, 24\]"):
        from_rows("q", np.zeros((24, 25), np.float32), BASE, interleaved=False)


def test_tensors_come_name_by_name_and_all_of_them():
    names = [(name, layer) for name, layer, _ in tensors(BASE)]
    assert names[:4] == [("embed", None), ("norm", None), ("head", None), ("attn_norm", 0)]
    assert len(set(names)) == len(names) == 3 + 9 * BASE.num_layers
