"""Generation against the full forward pass; rows that do not know their neighbours."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_jax.config import InputError, MeshConfig
from llama_jax.infer import decode_loop
from llama_jax.infer.generate import _start, generate_tokens
from llama_jax.infer.sampling_params import SamplingParams
from llama_jax.model.cache import empty_cache, prepare
from llama_jax.ops import cached_attention
from llama_jax.parallel.mesh import make_mesh
from tests.infer.small import SMALL, full, params_of

CONFIGS = {
    "GQA, untied": SMALL,
    "MHA, tied": replace(SMALL, num_kv_heads=4, tie_embeddings=True),
    "YaRN": replace(SMALL, rope_scaling="yarn", rope_factor=4.0),
}


def run(prompts, config=SMALL, max_new_tokens=8, seeds=None, **sampling):
    sampling = {"temperature": 0.0, "max_new_tokens": max_new_tokens, **sampling}
    seeds = list(seeds if seeds is not None else range(len(prompts)))
    params = SamplingParams(**sampling)
    return generate_tokens(params_of(config), prompts, params, config=config, seeds=seeds)


def greedy_oracle(prompt, config, n):
    """Append the argmax of the last position's logits, n times, with full forward passes."""
    ids = list(prompt)
    while len(ids) < min(len(prompt) + n, config.max_seq_len):
        padded = jnp.asarray([ids + [0] * (config.max_seq_len - len(ids))])
        logits = full(padded, config)
        ids.append(int(np.argmax(np.asarray(logits[0, len(ids) - 1]))))
    return ids[len(prompt) :]


@pytest.mark.parametrize("name", CONFIGS)
def test_greedy_decoding_is_the_argmax_of_full_forward_passes(name):
    config = CONFIGS[name]
    prompts = [[1, 5, 9], [1], list(range(1, 20))]
    expected = [greedy_oracle(p, config, 10) for p in prompts]
    assert len({tuple(e) for e in expected}) == 3
    assert run(prompts, config, 10) == expected


@pytest.mark.slow
@pytest.mark.parametrize("chunked", [False, True], ids=["decode kernel", "chunked prefill"])
def test_the_kernels_read_a_cache_of_their_own_order(chunked, monkeypatch):
    """Interpreted, ragged rows: the tokens that XLA attention gives."""
    # Programs are kept by configuration: each case has its own.
    xla = replace(SMALL, head_dim=64, num_layers=1, max_seq_len=47 + chunked, attention="xla")
    pallas = replace(xla, attention="pallas")
    assert [empty_cache(c, 2, 48)[0][0].shape[1] for c in (xla, pallas)] == [2, 48]
    if chunked:
        monkeypatch.setattr(cached_attention, "DECODE_QUERIES", 0)
    prompts = [[1, 5, 9], list(range(1, 20))]
    expected = run(prompts, xla, 6)
    assert len({*expected[0], *expected[1]}) > 3
    assert run(prompts, pallas, 6) == expected


def test_on_a_mesh_no_device_holds_more_than_its_rows_and_heads():
    """Rows over four devices, the two key heads over two; the text is that of one device."""
    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2))
    prompts = [[1, 5, 9], [1], [3, 4], list(range(1, 20))]
    expected = run(prompts)
    with jax.set_mesh(mesh):
        for array, rest in zip(empty_cache(SMALL, 4, 48)[0], ((8, 48), (48, 8)), strict=True):
            shards = [shard.data.shape for shard in array.addressable_shards]
            assert (array.shape, shards) == ((4, 2, *rest), [(1, 1, *rest)] * 8)
        assert run(prompts) == expected
        assert empty_cache(SMALL, 1, 48)[0][0].addressable_shards[0].data.shape[:2] == (1, 1)


def test_a_row_stops_before_a_stop_id_and_at_the_end_of_the_context():
    free = run([[1, 5, 9]], max_new_tokens=8)[0]
    for stop_ids in ((free[3],), (60, free[5], free[2])):
        first = min(free.index(stop) for stop in stop_ids if stop in free)
        assert 0 < first < 8
        assert run([[1, 5, 9]], stop_ids=stop_ids)[0] == free[:first]
    long = list(range(1, 45))
    assert len(run([long], max_new_tokens=20)[0]) == 48 - 44
    assert run([[1, 2]], max_new_tokens=0) == [[]]


@given(
    st.lists(st.lists(st.integers(1, 60), min_size=1, max_size=30), min_size=2, max_size=6),
    st.integers(0, 2**32 - 1),
    st.sampled_from([(0.0, 0, 1.0), (1.0, 0, 1.0), (0.8, 5, 1.0), (1.3, 0, 0.7)]),
)
@settings(deadline=None, max_examples=15)
def test_a_rows_tokens_depend_on_its_own_prompt_and_seed_alone(prompts, seed, setting):
    temperature, top_k, top_p = setting
    options = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "max_new_tokens": 6}
    seeds = [(seed + 17 * b) % 2**32 for b in range(len(prompts))]
    together = run(prompts, seeds=seeds, **options)
    alone = [run([p], seeds=[s], **options)[0] for p, s in zip(prompts, seeds, strict=True)]
    assert together == alone


def test_seeds_matter_only_when_something_is_drawn():
    prompts = [[1, 5, 9]] * 4
    assert len({tuple(r) for r in run(prompts, temperature=1.0)}) > 1
    assert len({tuple(r) for r in run(prompts, temperature=1.0, seeds=[7] * 4)}) == 1
    assert len({tuple(r) for r in run(prompts)}) == 1
    assert run(prompts, temperature=1.0, top_k=1) == run(prompts)


def test_prompts_of_one_bucket_share_a_program():
    run([[1, 2, 3]], max_new_tokens=4)
    before = decode_loop.prefill._cache_size(), decode_loop.advance._cache_size()
    for n in range(1, 12):
        run([list(range(1, n + 1))], max_new_tokens=4)
    assert (decode_loop.prefill._cache_size(), decode_loop.advance._cache_size()) == before


def test_the_program_for_many_rows_is_not_longer():
    def size(B):
        greedy = SamplingParams(max_new_tokens=8, temperature=0.0)
        state, rows, _ = _start([[1, 2]] * B, greedy, SMALL, range(B))
        w = jax.eval_shape(lambda p: prepare(p, SMALL), params_of(SMALL))
        steps = np.int32(8), np.int32(B - 1)
        lowered = decode_loop.advance.lower(w, state, rows, *steps, config=SMALL)
        return lowered.as_text().count("\n")

    assert size(1024) == size(64)


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([[]], {}, "prompt 0 is empty"),
        ([[1], [1] * 49], {}, "prompt 1 has 49 tokens but the model's context is 48"),
        ([[1, 62]], {}, "token id 62, outside the vocabulary of 62"),
        ([[1, -1]], {}, "token id -1"),
        ([[1]], {"seeds": [-1]}, "seed=-1"),
        ([[1]], {"seeds": [1, 2]}, "1 prompts need as many seeds, not 2"),
    ],
)
def test_bad_requests_are_refused_with_their_values(prompts, options, message):
    with pytest.raises(InputError, match=message):
        run(prompts, **options)


@pytest.mark.parametrize(
    "setting",
    [
        lambda: jax.enable_x64(True),
        lambda: jax.numpy_dtype_promotion("strict"),
        lambda: jax.debug_nans(True),
    ],
    ids=["x64", "strict promotion", "debug nans"],
)
def test_settings_of_jax_that_change_defaults_change_nothing(setting):
    """All types are named: what is drawn is the same."""
    settings = {"temperature": 1.0, "top_k": 5, "top_p": 0.9}
    prompts = [[1, 5, 9], [1]]
    expected = run(prompts, **settings), run(prompts)
    with setting():
        assert (run(prompts, **settings), run(prompts)) == expected
