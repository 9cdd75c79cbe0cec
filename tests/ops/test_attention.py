"""The contract of attention, run over every implementation that computes on this machine."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, Mesh, PartitionSpec

from llama_jax.ops.attention import dot_product_attention
from llama_jax.ops.cached_attention import cached_attention
from llama_jax.ops.ring_attention import unzigzag, zigzag
from tests import oracle
from tests.comparison import assert_close, epsilon, quick_jit

# Three documents and padding; queries of document 9 have no key at all.
PACKED = ((1,) * 3 + (2,) * 6 + (3,) * 5 + (0,) * 2, (1,) * 1 + (2,) * 9 + (3,) * 6)
LONELY = ((1, 1, 9) + (2,) * 2 + (9,) + (2,) * 3 + (3,) * 5 + (0,) * 2, (9,) * 16)


def documents(B, T, seed=0):
    """Random ascending segment ids, a new document every 40 tokens or so."""
    starts = np.random.default_rng(seed).random((B, T)) < 1 / 40
    return tuple(map(tuple, 1 + np.cumsum(starts, axis=1)))


@dataclass(frozen=True)
class Case:
    """One call; arrays as tuples."""

    B: int = 2
    T: int = 16
    S: int = 16
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
    "queries after a prefix": Case(T=4, q_offset=12),
    "queries before the last key": Case(T=4, q_offset=2),
    "queries after every key": Case(T=4, q_offset=50),
    "queries before the first key": Case(q_offset=-4),
    "several blocks before the first key": Case(B=1, T=304, S=304, N=2, K=1, H=4, q_offset=-150),
    "queries in one row's middle": Case(T=3, q_offset=(13, 2)),
    "decoding": Case(T=1, q_offset=(15, 3)),
    "decoding, documents": Case(
        T=1, q_offset=(8, 3), segment_ids=((2,), (2,)), kv_segment_ids=PACKED
    ),
    "several blocks": Case(B=1, T=304, S=304, N=2, K=1, H=4),
    "several blocks, documents": Case(
        B=2, T=304, S=304, N=2, K=1, H=4, segment_ids=documents(2, 304)
    ),
    "several blocks, not causal": Case(B=1, T=300, S=290, N=2, K=2, H=4, causal=False),
    "several blocks after a prefix": Case(B=1, T=290, S=310, N=2, K=1, H=4, q_offset=20),
    "several blocks, per row": Case(B=2, T=300, S=310, N=2, K=1, H=4, q_offset=(10, 3)),
    "more queries than keys": Case(B=1, T=300, S=40, N=2, K=1, H=4),
}


@dataclass(frozen=True)
class Implementation:
    """How to call one, and what it is for."""

    attend: Callable
    H: int = 8
    """Of its cases."""
    takes: Callable[[Case], bool] = lambda case: True
    gradients: bool = True
    devices: int = 1
    quick: tuple[str, ...] = ()
    """Cases that are not slow; empty for all."""


def around_the_ring(
    q, k, v, segment_ids=None, causal=True, kv_segment_ids=None, q_offset=0, **options
):
    """Natural order in and out; zigzag order and eight shards in between."""
    n = jax.sharding.get_abstract_mesh().shape["sequence"]
    *arrays, ids = [None if a is None else zigzag(a, n) for a in (q, k, v, segment_ids)]
    spec = PartitionSpec(None, "sequence", None, None)
    out = dot_product_attention(*arrays, segment_ids=ids, spec=spec, zigzag=True, **options)
    return unzigzag(out, n)


def from_a_cache(q, k, v, *, q_offset, **options):
    """The keys as a cache that is longer and holds garbage beyond them."""
    start = jnp.broadcast_to(jnp.asarray(q_offset), q.shape[:1])
    k, v = (jnp.pad(a, ((0, 0), (0, 100), (0, 0), (0, 0)), constant_values=1e30) for a in (k, v))
    return cached_attention(q, k, v, start, order="BSKH")


def fits_the_ring(case):
    own = case.kv_segment_ids is None and case.T == case.S and case.T % 16 == 0
    return case.causal and own and case.q_offset == 0


def fits_a_cache(case):
    held = all(start >= 0 and start + case.T <= case.S for start in np.ravel(case.q_offset))
    return case.causal and case.segment_ids is None and case.scale is None and held and case.T < 300


IMPLEMENTATIONS = {
    "xla": Implementation(partial(dot_product_attention, implementation="xla")),
    "pallas": Implementation(
        partial(dot_product_attention, implementation="pallas"),
        H=64,
        quick=("rows that see nothing", "several blocks, documents"),
    ),
    "ring": Implementation(
        partial(around_the_ring, implementation="xla"),
        takes=fits_the_ring,
        devices=8,
        quick=("packed",),
    ),
    "ring of kernels": Implementation(
        partial(around_the_ring, implementation="pallas"),
        H=64,
        takes=fits_the_ring,
        devices=8,
        quick=("none",),
    ),
    "decode": Implementation(
        from_a_cache, H=64, takes=fits_a_cache, gradients=False, quick=("decoding",)
    ),
}


def every(names=None, gradients=False, quick=True):
    """Parameters (implementation, case name): all pairs that go together, the long ones slow."""
    pairs = []
    for implementation, i in IMPLEMENTATIONS.items():
        for name in names or CASES:
            if i.takes(CASES[name]) and (i.gradients or not gradients):
                slow = i.quick and not (quick and name in i.quick)
                pairs.append(
                    pytest.param(implementation, name, marks=[pytest.mark.slow] if slow else [])
                )
    return pytest.mark.parametrize(("implementation", "name"), pairs)


def scope(i: Implementation):
    """The mesh that it runs on."""
    devices = np.array(jax.devices()[: i.devices])
    return jax.set_mesh(Mesh(devices, ("sequence",), axis_types=(AxisType.Auto,)))


@cache
def program(i: Implementation, case):
    """Output and gradients of ours, compiled once; no gradients where there are none."""

    def run(q, k, v, cotangent):
        attend = partial(i.attend, **case.options())
        if not i.gradients:
            return attend(q, k, v), ()
        out, pullback = jax.vjp(attend, q, k, v)
        return out, pullback(cotangent)

    return quick_jit(run)


def computed(i: Implementation, case, arrays):
    """Output and gradients, on the host."""
    with scope(i):
        return jax.device_get(program(i, case)(*arrays))


def tolerance(dtype):
    """Sums are float32 and rounded some dozens of times in a row; what is kept, is rounded to the
    dtype: logits' inputs, weights, output, and the gradient of the weights."""
    return 64 * epsilon(jnp.float32) + 2 * epsilon(dtype)


class TestContract:
    """What every implementation promises."""

    def check_against_oracle(self, implementation, case, dtype, seed=0):
        case = replace(case, H=max(case.H, IMPLEMENTATIONS[implementation].H))
        arrays = case.arrays(dtype, seed)
        out, gradients = computed(IMPLEMENTATIONS[implementation], case, arrays)
        assert {out.dtype, *(g.dtype for g in gradients)} == {jnp.dtype(dtype)}
        limit = tolerance(dtype)
        assert_close(out, oracle.attention(*arrays[:3], **case.options()), limit, "output")
        if not gradients:
            return
        expected = oracle.attention_gradients(*arrays, **case.options())
        # One scale for the three: where only one key is seen, those of q and k are sheer rounding.
        scale = max(np.abs(e).max() for e in expected)
        for letter, actual, wanted in zip("qkv", gradients, expected, strict=True):
            assert_close(actual, wanted, limit, f"gradient of {letter}", scale)

    @every()
    def test_values_and_gradients_agree_with_float64(self, implementation, name):
        self.check_against_oracle(implementation, CASES[name], jnp.float32)

    @every(["grouped", "several blocks, documents", "decoding"])
    def test_bfloat16_agrees_within_its_roundings(self, implementation, name):
        self.check_against_oracle(implementation, CASES[name], jnp.bfloat16)

    @pytest.mark.parametrize(
        "implementation",
        [pytest.param(i, marks=[pytest.mark.slow] if i != "xla" else []) for i in IMPLEMENTATIONS],
    )
    def test_any_shape(self, implementation):
        few = 8 if IMPLEMENTATIONS[implementation].devices == 1 else 3

        @settings(deadline=None, max_examples=few, derandomize=True)
        @given(st.data())
        def agrees(data):
            case = data.draw(cases(implementation))
            dtype = data.draw(st.sampled_from([jnp.float32, jnp.bfloat16]))
            self.check_against_oracle(implementation, case, dtype, data.draw(st.integers(0, 99)))

        agrees()

    @every(["rows that see nothing"], gradients=True)
    def test_a_query_that_sees_nothing_gives_zeros_and_passes_no_gradient(
        self, implementation, name
    ):
        case = replace(CASES[name], H=IMPLEMENTATIONS[implementation].H)
        out, gradients = computed(IMPLEMENTATIONS[implementation], case, case.arrays())
        nothing = np.asarray(LONELY) == 9
        assert not out[nothing].any()
        assert not gradients[0][nothing].any()
        assert out[~nothing].any(axis=-1).all()

    @every(["packed"], gradients=True, quick=False)
    def test_gradients_flow_from_what_is_seen_alone(self, implementation, name):
        """The cotangent of one query reaches its own document's keys up to itself, and no other."""
        case = replace(CASES[name], H=IMPLEMENTATIONS[implementation].H)
        q, k, v, cotangent = case.arrays()
        row, t = 0, 7
        one = jnp.zeros_like(cotangent).at[row, t].set(cotangent[row, t])
        _, (d_q, d_k, d_v) = computed(IMPLEMENTATIONS[implementation], case, (q, k, v, one))
        ids = np.asarray(PACKED)
        seen = np.zeros(ids.shape, bool)
        seen[row] = (ids[row] == ids[row, t]) & (np.arange(case.T) <= t)
        for gradient in (d_k, d_v):
            np.testing.assert_array_equal(gradient.any(axis=(2, 3)), seen)
        np.testing.assert_array_equal(np.argwhere(d_q.any(axis=(2, 3))), [[row, t]])

    @every(["packed"], gradients=True, quick=False)
    def test_what_is_not_seen_changes_no_bit(self, implementation, name):
        case = replace(CASES[name], H=IMPLEMENTATIONS[implementation].H)
        q, k, v, cotangent = case.arrays()
        before, _ = computed(IMPLEMENTATIONS[implementation], case, (q, k, v, cotangent))
        for row, t in ((0, 7), (1, 0), (1, 15)):
            ids = np.asarray(PACKED)[row]
            unseen = jnp.asarray((ids != ids[t]) | (np.arange(case.T) > t))[:, None, None]
            other_k = k.at[row].set(jnp.where(unseen, 1e3, k[row]))
            other_v = v.at[row].set(jnp.where(unseen, 1e30, v[row]))
            after, _ = computed(
                IMPLEMENTATIONS[implementation], case, (q, other_k, other_v, cotangent)
            )
            np.testing.assert_array_equal(after[row, t], before[row, t])

    @pytest.mark.parametrize("T", [9, 290])
    def test_offsets_agree_however_they_are_given(self, T):
        case = Case(T=T, S=300)
        *arrays, _ = case.arrays()
        attend = jax.jit(dot_product_attention, static_argnames="q_offset")
        static = attend(*arrays, q_offset=7)
        traced = quick_jit(lambda offset: dot_product_attention(*arrays, q_offset=offset))
        assert_close(traced(jnp.int32(7)), static, 1e-6)
        assert_close(traced(jnp.asarray([7, 7])), static, 1e-6)


@st.composite
def cases(draw, implementation):
    """Any call that the implementation takes; documents lie together, some rows see nothing."""
    i = IMPLEMENTATIONS[implementation]
    T, S = draw(st.integers(1, 150)), draw(st.integers(1, 150))
    if i.takes is fits_the_ring:
        T = S = 16 * draw(st.integers(1, 10))
    if i.takes is fits_a_cache:
        T = min(draw(st.integers(1, 4)), S)
    B, K, G = draw(st.integers(1, 2)), draw(st.sampled_from([1, 2])), draw(st.sampled_from([1, 3]))
    H = draw(st.sampled_from([64, 128] if i.H == 64 else [2, 8, 16]))
    case = Case(B=B, T=T, S=S, N=G * K, K=K, H=H)
    if i.takes is fits_a_cache:
        return replace(case, q_offset=tuple(draw(st.integers(0, S - T)) for _ in range(B)))
    documents = draw(st.sampled_from(["none", "own", "foreign"]))

    def ids(length):
        return tuple(np.sort(draw(st.lists(st.integers(0, 4), min_size=length, max_size=length))))

    if documents == "own" and T == S:
        case = replace(case, segment_ids=tuple(ids(T) for _ in range(B)))
    if i.takes is fits_the_ring:
        return case
    if documents == "foreign":
        own, foreign = ([ids(n) for _ in range(B)] for n in (T, S))
        case = replace(case, segment_ids=tuple(own), kv_segment_ids=tuple(foreign))
    offset = draw(st.sampled_from([0, -5, S - T, tuple(range(3, 3 + B))]))
    return replace(case, q_offset=offset, causal=draw(st.booleans()))


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
    named = computed(IMPLEMENTATIONS["xla"], case, arrays)
    unnamed = computed(Implementation(dot_product_attention), case, arrays)
    jax.tree.map(np.testing.assert_array_equal, unnamed, named)


@pytest.mark.parametrize(
    ("case", "options", "message"),
    [
        (Case(N=3), {}, "query heads N=3 must be divisible by key/value heads K=2"),
        (Case(), {"implementation": "flash"}, "implementation='flash' must be None or one of"),
        (Case(), {"implementation": "cudnn"}, "it is made for gpu, not cpu"),
        (Case(), {"kv_segment_ids": jnp.asarray(PACKED)}, "kv_segment_ids needs segment_ids"),
        (Case(S=12), {"segment_ids": jnp.asarray(PACKED)}, "T=16 queries, S=12 keys"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_values(case, options, message):
    with pytest.raises(ValueError, match=message):
        dot_product_attention(*case.arrays()[:3], **options)


def test_one_dtype_is_needed():
    q, k, v, _ = Case().arrays()
    with pytest.raises(ValueError, match=r"not q.dtype=.*float32.*bfloat16"):
        dot_product_attention(q, k.astype(jnp.bfloat16), v)
