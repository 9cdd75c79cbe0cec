"""The TPU kernels, interpreted, against the float64 oracle: values, gradients, masks, errors."""

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from llama_jax.kernels import block_sizes
from llama_jax.kernels.block_sizes import BlockSizes, Held
from llama_jax.kernels.flash_attention_vjp import (
    flash_attention,
    flash_attention_with_lse,
    validate,
)
from tests.kernels import oracle

# The interpreted kernels run for milliseconds and compile for seconds: skip LLVM's optimizations.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

SMALL = (BlockSizes(128, 128, 128), BlockSizes(128, 128, 128))
COLUMNS = (BlockSizes(256, 256, 128), BlockSizes(256, 256, 128))
OBLONG = (BlockSizes(128, 256, 128), BlockSizes(256, 128, 128))
# One rounding of an operand is half an ulp. The longest path rounds q, P and dS and sums over at
# most 512 keys of which the largest weigh most; gradients add three products of the same kind.
ULP = {"float32": 2.0**-24, "bfloat16": 2.0**-9}


def inputs(B, T, S, N, K, H, dtype="float32", seed=0):
    rng = np.random.default_rng(seed)
    shapes = (B, T, N, H), (B, S, K, H), (B, S, K, H), (B, T, N, H)
    return [jnp.asarray(rng.standard_normal(s), dtype) for s in shapes]


def check(got, want, dtype, what):
    """Within 32 roundings of the largest value; bfloat16 results are rounded once more."""
    got = np.asarray(got, np.float64)
    limit = 32 * ULP[dtype] * max(1.0, np.abs(want).max())
    worst = np.abs(got - want).max()
    assert np.isfinite(got).all(), what
    assert worst <= limit, f"{what}: off by {worst:.2e}, allowed {limit:.2e}"


def run(q, k, v, do, *, blocks, **mask):
    def attend(q, k, v):
        return flash_attention_with_lse(q, k, v, block_sizes=blocks, interpret=True, **mask)

    @jit
    def everything(q, k, v, do):
        (out, lse), pull = jax.vjp(attend, q, k, v)
        return out, lse, *pull((do, jnp.zeros_like(lse)))

    return everything(q, k, v, do)


def compare(arrays, blocks, dtype="float32", **mask):
    q, k, v, do = arrays
    out, lse, *grads = run(*arrays, blocks=blocks, **mask)
    oracle_mask = {"causal": True, **mask}
    scale = oracle_mask.pop("scale", None)
    seen = oracle.visible(q.shape[1], k.shape[1], B=q.shape[0], **oracle_mask)
    want = oracle.attention(q, k, v, seen, do=do, scale=scale)
    check(out, want[0], dtype, "out")
    empty = ~seen.any(2)[:, None, :] & np.ones_like(want[1], bool)
    lse = np.asarray(lse)
    assert (lse[empty] < -1e29).all()
    check(lse[~empty], want[1][~empty], dtype, "lse")
    for name, got, grad in zip(("dq", "dk", "dv"), grads, want[2:], strict=True):
        check(got, grad, dtype, name)
    return out, grads, seen


@pytest.mark.parametrize(
    ("B", "T", "S", "N", "K", "H", "dtype", "blocks", "mask"),
    [
        pytest.param(1, 384, 384, 2, 2, 128, "bfloat16", SMALL, {}, id="mha-bf16"),
        pytest.param(2, 300, 300, 4, 2, 64, "float32", COLUMNS, {}, id="gqa-padded-triangle"),
        pytest.param(1, 200, 330, 2, 1, 64, "float32", OBLONG, {"causal": False}, id="full"),
        pytest.param(1, 128, 600, 2, 1, 64, "float32", SMALL, {"q_offset": 256}, id="prefill"),
        pytest.param(1, 200, 150, 2, 1, 64, "float32", SMALL, {"q_offset": -70}, id="empty-rows"),
        pytest.param(1, 130, 130, 1, 1, 64, "float32", SMALL, {"scale": 0.5}, id="scale"),
    ],
)
def test_matches_the_oracle(B, T, S, N, K, H, dtype, blocks, mask):
    compare(inputs(B, T, S, N, K, H, dtype), blocks, dtype, **mask)


@functools.cache
def compiled(causal, crossed):
    """One compilation serves all examples: segments and offsets are known at run time only."""

    @jit
    def everything(q, k, v, do, segment_ids, kv_segment_ids, q_offset):
        def attend(q, k, v):
            return flash_attention(
                q,
                k,
                v,
                causal=causal,
                segment_ids=segment_ids,
                kv_segment_ids=kv_segment_ids if crossed else None,
                q_offset=q_offset if crossed else 0,
                block_sizes=SMALL if crossed else COLUMNS,
                interpret=True,
            )

        out, pull = jax.vjp(attend, q, k, v)
        return out, *pull(do)

    return everything


def segments(draw, length):
    """Documents one after another: ids need not be sorted, only stay together."""
    cuts = sorted(draw(st.lists(st.integers(1, length - 1), max_size=5, unique=True)))
    ids = draw(st.permutations(range(6)))
    return np.repeat(np.asarray(ids[: len(cuts) + 1]), np.diff([0, *cuts, length]))[None]


@hypothesis.given(data=st.data(), causal=st.booleans())
@hypothesis.settings(deadline=None, max_examples=12, derandomize=True)
def test_packed_documents(data, causal):
    """The same mask as the oracle's, whatever the cuts; nothing leaks between documents."""
    ids = segments(data.draw, 400).astype(np.int32)
    arrays = inputs(1, 400, 400, 2, 1, 64, seed=data.draw(st.integers(0, 99)))
    got = compiled(causal, False)(*arrays, ids, ids, 0)
    seen = oracle.visible(400, 400, causal=causal, segment_ids=ids)
    q, k, v, do = arrays
    want = oracle.attention(q, k, v, seen, do=do)
    for name, a, b in zip(("out", "dq", "dk", "dv"), got, (want[0], *want[2:]), strict=True):
        check(a, b, "float32", name)


@hypothesis.given(data=st.data(), offset=st.integers(-150, 350))
@hypothesis.settings(deadline=None, max_examples=12, derandomize=True)
def test_traced_offset_and_foreign_segments(data, offset):
    """Chunked prefill: queries at a traced offset of keys that carry their own ids."""
    ids, keys = (segments(data.draw, n).astype(np.int32) for n in (150, 300))
    arrays = inputs(1, 150, 300, 2, 1, 64)
    got = compiled(True, True)(*arrays, ids, keys, np.int32(offset))
    seen = oracle.visible(150, 300, segment_ids=ids, kv_segment_ids=keys, q_offset=offset)
    q, k, v, do = arrays
    want = oracle.attention(q, k, v, seen, do=do)
    for name, a, b in zip(("out", "dq", "dk", "dv"), got, (want[0], *want[2:]), strict=True):
        check(a, b, "float32", name)
    blind = ~seen[0].any(1)
    assert not np.asarray(got[0])[0, blind].any()
    assert not np.asarray(got[1])[0, blind].any()


@pytest.mark.parametrize("packed", [False, True])
def test_tiles_that_no_query_sees_are_not_visited(packed):
    """They hold NaN, which a weight of zero would let through: the future, or another document."""
    q, k, v, do = inputs(1, 384, 384, 2, 1, 64)
    ids = jnp.asarray(np.repeat(np.arange(2, dtype=np.int32), [128, 256])[None])
    blind, seeing = (slice(128), slice(128, None)) if packed else (slice(128, None), slice(128))
    k, v = (x.at[:, blind].set(jnp.nan) for x in (k, v))
    out, _, dq, *_ = run(q, k, v, do, blocks=SMALL, segment_ids=ids if packed else None)
    assert jnp.isfinite(out[:, seeing]).all()
    assert jnp.isfinite(dq[:, seeing]).all()


@pytest.mark.parametrize("packed", [False, True])
def test_queries_in_several_spans(packed, monkeypatch):
    """Two blocks a step of the grid: the second step starts in the middle of what it may see."""
    monkeypatch.setattr(block_sizes, "SPAN", 256)
    ids = np.repeat(np.arange(3, dtype=np.int32), [100, 290, 122])[None]
    mask = {"segment_ids": jnp.asarray(ids)} if packed else {}
    compare(inputs(1, 512, 512, 2, 1, 64), SMALL, **mask)


def test_keys_in_several_chunks(monkeypatch):
    """With VMEM for a few tiles only, state is carried from chunk to chunk and dq is added up."""
    arrays = inputs(1, 256, 640, 2, 1, 64)
    whole = run(*arrays, blocks=SMALL, q_offset=300)
    tile = Held(span=128, chunk=128, chunks=5, buffers=2)
    limit = block_sizes.HEADROOM * block_sizes.backward_bytes(SMALL[1], tile, 64, 4)
    monkeypatch.setitem(block_sizes.VMEM, "v4", int(limit) + 1)
    parts = run(*arrays, blocks=SMALL, q_offset=300)
    for a, b in zip(whole, parts, strict=True):
        check(a, np.asarray(b, np.float64), "float32", "chunks")
    compare(arrays, SMALL, q_offset=300)


def test_gradient_through_the_log_sum_exp():
    q, k, v, _ = inputs(1, 128, 128, 1, 1, 64)
    weights = jnp.asarray(np.random.default_rng(1).standard_normal((1, 1, 128)), jnp.float32)

    def of_kernel(q, k):
        _, lse = flash_attention_with_lse(q, k, v, block_sizes=SMALL, interpret=True)
        return (weights * lse).sum()

    def plain(q, k):
        s = jnp.einsum("BTNH,BSKH->BNTS", q, k, precision="highest") / 8
        s = jnp.where(jnp.tri(128, dtype=bool)[None, None], s, -jnp.inf)
        return (weights * jax.nn.logsumexp(s, axis=-1)).sum()

    for a, b in zip(jax.grad(of_kernel, (0, 1))(q, k), jax.grad(plain, (0, 1))(q, k), strict=True):
        check(a, np.asarray(b, np.float64), "float32", "gradient through lse")


def test_same_inputs_same_bytes():
    arrays = inputs(1, 200, 200, 2, 1, 64, "bfloat16")
    for a, b in zip(run(*arrays, blocks=SMALL), run(*arrays, blocks=SMALL), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(H=80), "H=80 must be one of .64, 128.; nearest 64"),
        (dict(N=6, K=4), "N=6 must be a multiple of K=4; nearest 8"),
        (dict(dtype="float16"), "share a dtype of .* not float16"),
        (dict(T=0, S=0), "empty arrays"),
    ],
)
def test_errors_hold_the_values(change, message):
    shape = {"B": 1, "T": 128, "S": 128, "N": 2, "K": 2, "H": 64, **change}
    q, k, v, _ = inputs(**shape)
    with pytest.raises(ValueError, match=message):
        flash_attention(q, k, v, interpret=True)


def test_shapes_that_disagree_are_named():
    """In tests the annotations are checked before; users get these lines."""
    q, k = jnp.zeros((2, 128, 2, 64)), jnp.zeros((2, 256, 1, 64))
    ids = jnp.zeros((2, 100), jnp.int32)
    with pytest.raises(ValueError, match=r"v \(2, 128, 2, 64\) must be \(2, S, K, 64\)"):
        validate(q, k, q, None, None)
    with pytest.raises(ValueError, match=r"segment_ids \(2, 100\) must be \(2, 128\)"):
        validate(q, k, k, ids, ids)
    with pytest.raises(ValueError, match=r"kv_segment_ids \(2, 100\) must be \(2, 256\)"):
        validate(q, k, k, jnp.zeros((2, 128), jnp.int32), ids)


def test_segments_of_keys_are_needed_where_lengths_differ():
    q, k, v, _ = inputs(1, 128, 256, 1, 1, 64)
    ids = jnp.zeros((1, 128), jnp.int32)
    with pytest.raises(ValueError, match="T=128 queries, S=256 keys"):
        flash_attention(q, k, v, segment_ids=ids, interpret=True)
    with pytest.raises(ValueError, match="needs segment_ids"):
        flash_attention(q, k, v, kv_segment_ids=jnp.zeros((1, 256), jnp.int32), interpret=True)


def test_blocks_that_cannot_work_name_the_nearest():
    with pytest.raises(
        ValueError, match="block_q=200 must be a multiple of 128; the nearest is 256"
    ):
        BlockSizes(200, 128, 128)
    with pytest.raises(ValueError, match="sub=256 must divide block_q=384; try 128"):
        BlockSizes(384, 128, 256)
    huge = BlockSizes(8192, 8192, 128)
    q, k, v, _ = inputs(1, 128, 128, 1, 1, 64)
    with pytest.raises(ValueError, match=r"needs .* MiB of VMEM.*block_q=\d+, block_kv=\d+"):
        flash_attention(q, k, v, block_sizes=(huge, huge), interpret=True)


@pytest.mark.parametrize("generation", ["", *block_sizes.VMEM])
@pytest.mark.parametrize("dtype", block_sizes.DTYPES)
@pytest.mark.parametrize("H", block_sizes.HEAD_WIDTHS)
def test_chosen_blocks_fit(generation, dtype, H):
    """Every row of the table fits the VMEM of its generation at any length, in chunks if needed."""
    limit = block_sizes.VMEM[generation or "v4"]
    of_pass = block_sizes.forward_bytes, block_sizes.backward_bytes
    for length in (1, 128, 1000, 2048, 4096, 8192, 32768, 131072):
        for segmented in (False, True):
            pair = block_sizes.choose(length, length, H, dtype, segmented, generation)
            for sizes, bytes_of in zip(pair, of_pass, strict=True):
                item = jnp.dtype(dtype).itemsize
                held = block_sizes.hold(sizes, length, length, H, item, bytes_of, limit)
                assert held.chunk % sizes.block_kv == 0
                assert held.span % sizes.block_q == 0
                assert -(-length // sizes.block_q) % (held.span // sizes.block_q) == 0
                assert held.chunks == -(-length // held.chunk)
                assert held.buffers == 2 or held.chunks == 1
                assert bytes_of(sizes, held, H, item) <= limit


def test_the_table_has_a_row_for_every_case():
    for rows in block_sizes.TUNED.values():
        assert set(rows) == set(block_sizes.HEAD_WIDTHS)
        for table in rows.values():
            keys = [row.keys for row in table]
            assert keys == sorted(set(keys))
            assert keys[-1] == 1 << 31
            # The causal triangle needs square tiles.
            for row in table:
                assert all(sizes.block_q == sizes.block_kv for sizes in row[1:])
    assert block_sizes.TUNED.keys() == block_sizes.VMEM.keys()
    longest = block_sizes.choose(4096, 4096, 128, "bfloat16", False, "v6e")[0]
    assert (
        longest.block_q > block_sizes.choose(2048, 2048, 128, "bfloat16", False, "v6e")[0].block_q
    )
