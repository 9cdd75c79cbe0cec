"""The contract of `dot_product_attention`, run over every implementation that this machine has."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_jax.ops.attention import dot_product_attention
from tests import oracle
from tests.comparison import assert_close, epsilon, quick_jit

# Those that compute float32 on a CPU; an implementation for other hardware joins on that hardware.
IMPLEMENTATIONS = ("xla",)

# Three documents and padding; queries of document 9 have no key at all.
PACKED = ((1, 1, 1, 2, 2, 2, 2, 3, 0), (1, 2, 2, 2, 2, 2, 3, 3, 3))
LONELY = ((1, 1, 9, 2, 2, 9, 2, 3, 0), (9, 9, 9, 9, 9, 9, 9, 9, 9))


def documents(B, T, seed=0):
    """Random ascending segment ids, a new document every 40 tokens or so."""
    starts = np.random.default_rng(seed).random((B, T)) < 1 / 40
    return tuple(map(tuple, 1 + np.cumsum(starts, axis=1)))


@dataclass(frozen=True)
class Case:
    """One call; arrays as tuples."""

    B: int = 2
    T: int = 9
    S: int = 9
    N: int = 4
    K: int = 2
    H: int = 8
    causal: bool = True
    segment_ids: tuple | None = None
    kv_segment_ids: tuple | None = None
    q_offset: int | tuple = 0
    scale: float | None = None

    def arrays(self, dtype=np.float32, seed=0):
        """q, k, v and the cotangent of the output."""
        rng = np.random.default_rng(seed)
        queries, keys = (self.B, self.T, self.N, self.H), (self.B, self.S, self.K, self.H)
        shapes = (queries, keys, keys, queries)
        return tuple(jnp.asarray(rng.standard_normal(s), dtype) for s in shapes)

    def options(self):
        """Keyword arguments of the call."""
        keys = ("segment_ids", "kv_segment_ids", "q_offset")
        arrays = {k: getattr(self, k) for k in keys}
        arrays = {k: jnp.asarray(v) if isinstance(v, tuple) else v for k, v in arrays.items()}
        return {"causal": self.causal, "scale": self.scale, **arrays}


CASES = {
    "multi-head": Case(N=2, K=2),
    "grouped": Case(),
    "multi-query": Case(N=4, K=1),
    "one position": Case(T=1, S=1),
    "all keys": Case(causal=False, T=5),
    "other scale": Case(scale=0.7),
    "packed": Case(segment_ids=PACKED),
    "packed, all of a document": Case(segment_ids=PACKED, causal=False),
    "rows that see nothing": Case(segment_ids=LONELY, kv_segment_ids=PACKED),
    "queries after a prefix": Case(T=4, q_offset=5),
    "queries before the last key": Case(T=4, q_offset=2),
    "queries after every key": Case(T=4, q_offset=50),
    "queries before the first key": Case(q_offset=-4),
    "several blocks before the first key": Case(B=1, T=300, S=300, N=2, K=1, H=4, q_offset=-150),
    "queries in one row's middle": Case(T=3, q_offset=(6, 2)),
    "decoding": Case(T=1, q_offset=(8, 3)),
    "decoding, documents": Case(
        T=1, q_offset=(8, 3), segment_ids=((2,), (1,)), kv_segment_ids=PACKED
    ),
    "several blocks": Case(B=1, T=300, S=300, N=2, K=1, H=4),
    "several blocks, documents": Case(
        B=2, T=300, S=300, N=2, K=1, H=4, segment_ids=documents(2, 300)
    ),
    "several blocks, not causal": Case(B=1, T=300, S=290, N=2, K=2, H=4, causal=False),
    "several blocks after a prefix": Case(B=1, T=290, S=310, N=2, K=1, H=4, q_offset=20),
    "several blocks, per row": Case(B=2, T=300, S=310, N=2, K=1, H=4, q_offset=(10, 3)),
    "more queries than keys": Case(B=1, T=300, S=40, N=2, K=1, H=4),
}


def computed(case, arrays, implementation):
    """Output and gradients of ours, compiled."""

    @quick_jit
    def run(q, k, v, cotangent):
        attend = partial(dot_product_attention, implementation=implementation, **case.options())
        out, pullback = jax.vjp(attend, q, k, v)
        return out, pullback(cotangent)

    return run(*arrays)


def check_against_oracle(case, implementation, dtype):
    arrays = case.arrays(dtype)
    out, gradients = computed(case, arrays, implementation)
    assert {out.dtype, *(g.dtype for g in gradients)} == {jnp.dtype(dtype)}
    # The logits of unit-variance inputs amplify a rounding a few times; bfloat16 rounds the
    # weights, the output and the gradient of the weights once each.
    tolerance = 1e-5 if dtype == jnp.float32 else 2 * epsilon(dtype)
    assert_close(out, oracle.attention(*arrays[:3], **case.options()), tolerance, "output")
    expected = oracle.attention_gradients(*arrays, **case.options())
    # One scale for the three: where only one key is seen, those of q and k are sheer rounding.
    scale = max(np.abs(e).max() for e in expected)
    for letter, actual, wanted in zip("qkv", gradients, expected, strict=True):
        assert_close(actual, wanted, tolerance, f"gradient of {letter}", scale)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_agree_with_float64(name, implementation):
    check_against_oracle(CASES[name], implementation, jnp.float32)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", ["grouped", "rows that see nothing", "several blocks, documents"])
def test_bfloat16_agrees_within_its_roundings(name, implementation):
    check_against_oracle(CASES[name], implementation, jnp.bfloat16)


def test_the_oracle_differentiates_itself_rightly():
    case = CASES["packed"]
    q, k, v, cotangent = (np.asarray(a, np.float64) for a in case.arrays())
    rng = np.random.default_rng(1)
    inputs = [q, k, v]
    for i, gradient in enumerate(oracle.attention_gradients(*inputs, cotangent, **case.options())):
        direction = rng.standard_normal(gradient.shape)
        ahead, behind = (
            oracle.attention(
                *(a + sign * 1e-6 * direction if i == j else a for j, a in enumerate(inputs)),
                **case.options(),
            )
            for sign in (1, -1)
        )
        slope = ((ahead - behind) * cotangent).sum() / 2e-6
        assert (gradient * direction).sum() == pytest.approx(slope, rel=1e-7)


def test_unnamed_is_one_of_the_named():
    case = CASES["several blocks, documents"]
    arrays = case.arrays()
    named = computed(case, arrays, "xla")
    jax.tree.map(np.testing.assert_array_equal, computed(case, arrays, None), named)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_query_that_sees_nothing_gives_zeros_and_passes_no_gradient(implementation):
    case = CASES["rows that see nothing"]
    out, gradients = computed(case, case.arrays(), implementation)
    nothing = np.asarray(LONELY) == 9
    assert not np.asarray(out)[nothing].any()
    assert not np.asarray(gradients[0])[nothing].any()
    assert np.asarray(out)[~nothing].any(axis=-1).all()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("T", [9, 290])
def test_offsets_agree_however_they_are_given(implementation, T):
    case = Case(T=T, S=300)
    *arrays, _ = case.arrays()
    attend = jax.jit(
        partial(dot_product_attention, implementation=implementation), static_argnames="q_offset"
    )
    static = attend(*arrays, q_offset=7)
    traced = quick_jit(
        lambda offset: dot_product_attention(
            *arrays, q_offset=offset, implementation=implementation
        )
    )
    assert_close(traced(jnp.int32(7)), static, 1e-6)
    assert_close(traced(jnp.asarray([7, 7])), static, 1e-6)


@settings(deadline=None, max_examples=15)
@given(
    seed=st.integers(0, 10_000),
    T=st.sampled_from([9, 150]),
    implementation=st.sampled_from(IMPLEMENTATIONS),
)
def test_what_is_not_seen_changes_no_bit(seed, T, implementation):
    case = Case(T=T, S=T)
    rng = np.random.default_rng(seed)
    segment_ids = jnp.asarray(documents(case.B, T, seed))
    q, k, v, _ = case.arrays(seed=seed)
    t, row = int(rng.integers(T)), int(rng.integers(case.B))
    segments = np.asarray(segment_ids)[row]
    seen = np.asarray([s <= t and segments[s] == segments[t] for s in range(T)])
    unseen = jnp.asarray(~seen)[:, None, None]
    attend = attend_segments(implementation)
    before = attend(q, k, v, segment_ids)[row, t]
    k = k.at[row].set(jnp.where(unseen, 1e3, k[row]))
    v = v.at[row].set(jnp.where(unseen, 1e30, v[row]))
    np.testing.assert_array_equal(attend(q, k, v, segment_ids)[row, t], before)


def attend_segments(implementation, cache={}):  # noqa: B006
    """One compiled function for all examples of the property above."""
    if implementation not in cache:
        cache[implementation] = quick_jit(
            lambda q, k, v, segment_ids: dot_product_attention(
                q, k, v, segment_ids=segment_ids, implementation=implementation
            )
        )
    return cache[implementation]


@pytest.mark.parametrize(
    ("case", "options", "message"),
    [
        (Case(N=3), {}, "query heads N=3 must be divisible by key/value heads K=2"),
        (Case(), {"implementation": "flash"}, "implementation='flash' must be None or one of"),
        (Case(), {"implementation": "cudnn"}, "it is made for gpu, not cpu"),
        (Case(), {"kv_segment_ids": jnp.asarray(PACKED)}, "kv_segment_ids needs segment_ids"),
        (Case(S=12), {"segment_ids": jnp.asarray(PACKED)}, "T=9 queries, S=12 keys"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_values(case, options, message):
    with pytest.raises(ValueError, match=message):
        dot_product_attention(*case.arrays()[:3], **options)


def test_one_dtype_is_needed():
    q, k, v, _ = Case().arrays()
    with pytest.raises(ValueError, match=r"not q.dtype=.*float32.*bfloat16"):
        dot_product_attention(q, k.astype(jnp.bfloat16), v)
