from dataclasses import replace
from functools import partial
from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax.model.llama import apply, hidden
from llama_jax.model.weights import abstract_params
from llama_jax.ops.loss import cross_entropy, next_token_targets
from tests import oracle
from tests.comparison import assert_close, epsilon, quick_jit, random_params
from tests.model.small import MULTI_HEAD, SMALL, packed, tokens_of


def extended(scaling):
    """Room for 64 positions that come from 16, so that 40 reach beyond the pretrained ones."""
    return replace(SMALL, rope_scaling=scaling, rope_factor=4.0, rope_theta=100.0)


CONFIGS = {
    "grouped": SMALL,
    "grouped, tied": replace(SMALL, tie_embeddings=True),
    "multi-head": MULTI_HEAD,
    "multi-head, tied": replace(MULTI_HEAD, tie_embeddings=True),
    "linear": extended("linear"),
    "ntk": extended("ntk"),
    "yarn": extended("yarn"),
}
LENGTHS = ((17, 3, 20), (1, 29, 6))  # of the documents in two rows; the second ends in padding


def logits_of(cfg, params, tokens, segment_ids=None, positions=None):
    run = jax.jit(partial(apply, config=cfg))
    return run(params, tokens, segment_ids=segment_ids, positions=positions)


@pytest.mark.parametrize("rows", ["unpacked", "packed"])
@pytest.mark.parametrize("name", CONFIGS)
def test_float32_logits_agree_with_float64_to_1e_5(name, rows):
    cfg = CONFIGS[name]
    params, tokens = random_params(abstract_params(cfg)), tokens_of(cfg, 2, 40)
    layout = packed(*LENGTHS) if rows == "packed" else (None, None)
    logits = logits_of(cfg, params, tokens, *layout)
    assert logits.dtype == jnp.float32
    segment_ids, positions = (None if a is None else np.asarray(a) for a in layout)
    expected = oracle.forward(params, tokens, cfg, positions, segment_ids)
    # Relative to the largest |logit|, which for these weights is about 4.
    assert_close(logits, expected, 1e-5)


def test_every_scaling_changes_the_logits():
    plain = replace(SMALL, rope_theta=100.0)
    params, tokens = random_params(abstract_params(plain)), tokens_of(plain, 1, 40)
    configs = (plain, CONFIGS["linear"], CONFIGS["ntk"], CONFIGS["yarn"])
    all_logits = [oracle.forward(params, tokens, cfg) for cfg in configs]
    for one, other in combinations(all_logits, 2):
        assert np.abs(one - other).max() > 0.1


@pytest.mark.parametrize("param_dtype", ["float32", "bfloat16"])
def test_bfloat16_logits_agree_within_their_roundings(param_dtype):
    cfg = replace(SMALL, dtype="bfloat16", param_dtype=param_dtype)
    params, tokens = random_params(abstract_params(cfg)), tokens_of(cfg, 2, 40)
    logits = logits_of(cfg, params, tokens)
    assert logits.dtype == jnp.float32
    expected = oracle.forward(params, tokens, cfg)
    # Some ten roundings a layer of relative size 2^-8 each, which add like a random walk.
    assert_close(logits, expected, 4 * epsilon(jnp.bfloat16))
    assert np.abs(logits - expected).max() > epsilon(jnp.bfloat16) / 8, "computed in float32"


@pytest.mark.parametrize("name", ["grouped", "multi-head, tied", "yarn"])
def test_gradients_of_every_tensor_agree_with_float64(name):
    cfg = CONFIGS[name]
    params, tokens = random_params(abstract_params(cfg)), tokens_of(cfg, 2, 12)
    segment_ids, positions = packed((7, 5), (1, 9))
    targets, mask = next_token_targets(tokens, segment_ids)

    @quick_jit
    @jax.grad
    def gradient(params):
        x, head = hidden(params, tokens, config=cfg, positions=positions, segment_ids=segment_ids)
        return cross_entropy(x, head, targets, mask, z_loss=0.01, chunk=4)[0]

    def exact(params):
        logits = oracle.forward(params, tokens, cfg, np.asarray(positions), segment_ids)
        return oracle.cross_entropy(logits, targets, mask, 0.01)

    # The slope along one random direction a tensor, by central differences in float64.
    rng = np.random.default_rng(1)
    leaves, tree = jax.tree.flatten(params)
    leaves = [np.asarray(leaf, np.float64) for leaf in leaves]
    gradients = jax.tree.leaves_with_path(gradient(params))
    assert len(gradients) == len(leaves)
    for i, (path, actual) in enumerate(gradients):
        direction = rng.standard_normal(actual.shape)
        ahead, behind = (
            exact(tree.unflatten([*leaves[:i], leaves[i] + step * direction, *leaves[i + 1 :]]))
            for step in (1e-5, -1e-5)
        )
        slope = (ahead - behind) / 2e-5
        size = np.linalg.norm(actual) * np.linalg.norm(direction) / np.sqrt(actual.size)
        error = abs((np.asarray(actual, np.float64) * direction).sum() - slope)
        assert error < 1e-4 * size, f"{jax.tree_util.keystr(path)}: {slope}, off by {error}"


def test_a_packed_row_is_its_documents_apart():
    params, tokens = random_params(abstract_params(SMALL)), tokens_of(SMALL, 1, 40)
    segment_ids, positions = packed(LENGTHS[0])
    together = logits_of(SMALL, params, tokens, segment_ids, positions)
    start = 0
    for length in LENGTHS[0]:
        apart = logits_of(SMALL, params, tokens[:, start : start + length])
        assert_close(together[:, start : start + length], apart, 1e-5)
        start += length


def test_positions_default_to_a_row_of_their_own():
    params, tokens = random_params(abstract_params(SMALL)), tokens_of(SMALL, 2, 9)
    given = logits_of(SMALL, params, tokens, None, jnp.tile(jnp.arange(9)[None], (2, 1)))
    np.testing.assert_array_equal(logits_of(SMALL, params, tokens), given)
