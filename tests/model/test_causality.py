"""Who may influence whom, proven by gradients: a zero here is exact, not small."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax.model.llama import apply
from llama_jax.model.weights import abstract_params
from tests.comparison import quick_jit, random_params
from tests.model.small import MULTI_HEAD, SMALL, packed


def influence(cfg, T, segment_ids=None, positions=None):
    """[T,T]: largest |d logits[t] / d embedding of token t'|; every position has its own token."""
    params = random_params(abstract_params(cfg))
    tokens = jnp.arange(T)[None]

    def logits(embed):
        out = apply(
            {**params, "embed": embed},
            tokens,
            config=cfg,
            positions=positions,
            segment_ids=segment_ids,
        )
        # One random reading of each position's logits: zero for certain only if all of them are.
        return out[0] @ jnp.asarray(np.random.default_rng(1).standard_normal(cfg.vocab_size))

    rows = quick_jit(jax.jacrev(logits))(params["embed"])  # [T,V,D]
    return np.abs(np.asarray(rows)).max(axis=-1)[:, :T]


@pytest.mark.parametrize("cfg", [SMALL, MULTI_HEAD], ids=["grouped", "multi-head"])
def test_a_position_depends_on_itself_and_the_past_alone(cfg):
    np.testing.assert_array_equal(influence(cfg, 24) > 0, np.tri(24, dtype=bool))


def test_a_position_depends_on_its_own_document_alone():
    segment_ids, positions = packed((7, 1, 9, 5))
    segments = np.asarray(segment_ids)[0]
    same = segments[:, None] == segments[None]
    seen = influence(SMALL, 22, segment_ids, positions) > 0
    np.testing.assert_array_equal(seen, same & np.tri(22, dtype=bool))


def test_without_segment_ids_the_documents_would_mix():
    _, positions = packed((7, 1, 9, 5))
    assert (influence(SMALL, 22, None, positions)[10, :7] > 0).all()


@pytest.mark.slow
def test_blocks_of_queries_keep_both():
    """Longer than any block that the attention takes at a time on a CPU."""
    cfg = partial(type(SMALL), **{**SMALL.__dict__, "vocab_size": 600, "max_seq_len": 600})()
    segment_ids, positions = packed((300, 290))
    segments = np.asarray(segment_ids)[0]
    same = segments[:, None] == segments[None]
    seen = influence(cfg, 590, segment_ids, positions) > 0
    np.testing.assert_array_equal(seen, same & np.tri(590, dtype=bool))
