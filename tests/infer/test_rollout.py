"""Rollouts against full forward passes; answers that do not know what is drawn beside them."""

import contextlib
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_jax.config import InputError, MeshConfig
from llama_jax.infer import decode_loop, rollout
from llama_jax.infer.generate import generate_tokens
from llama_jax.infer.rollout import (
    PREFILL_ROWS,
    UNKNOWN_ROWS,
    Work,
    _Wave,
    fitting_rows,
    rows_that_fit,
    sample_answers,
    stream_answers,
)
from llama_jax.infer.samples import batch_rows, drift
from llama_jax.infer.sampling_params import SamplingParams
from llama_jax.model.cache import cache_bytes, gather, prepare
from llama_jax.model.presets import LLAMA2_7B, LLAMA2_70B
from llama_jax.model.weights import map_weights
from llama_jax.parallel.mesh import make_mesh
from llama_jax.parallel.rules import named_sharding
from tests.infer.small import SMALL, full, params_of

PROMPTS = [[1, 5, 9], [1], list(range(1, 20)), [1, 5, 8], [7, 7]]
SEEDS = [(7, 3, number) for number in range(len(PROMPTS))]
STOPS = (13, 16, 26, 31)


def run(prompts=PROMPTS, seeds=SEEDS, *, n=3, new=8, wave_rows=8, w=None, work=None, **params):
    return sample_answers(
        params_of(SMALL) if w is None else w,
        prompts,
        SamplingParams(**{"max_new_tokens": new, "stop_ids": STOPS, **params}),
        config=SMALL,
        n=n,
        seeds=seeds,
        wave_rows=wave_rows,
        prompt_len=20,
        work=work,
    )


def assert_same(ours, theirs, atol=0.0):
    np.testing.assert_array_equal(ours.tokens, theirs.tokens)
    np.testing.assert_array_equal(ours.length, theirs.length)
    np.testing.assert_array_equal(ours.stopped, theirs.stopped)
    np.testing.assert_allclose(ours.logp, theirs.logp, atol=atol, rtol=0)


def take(samples, prompts, n):
    """The first n samples of some prompts."""
    at = np.ix_(prompts, range(n))
    return type(samples)(*(getattr(samples, name)[at] for name in samples.__dataclass_fields__))


@pytest.fixture(scope="module")
def drawn():
    return run()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_each_token_is_what_its_key_draws_from_the_full_forward_pass(temperature):
    """Gumbel-max on float64 logits; log-probabilities to 1e-4 in float32."""
    samples = run(temperature=temperature, n=3)
    rows = batch_rows(PROMPTS, samples, 48)
    logits = np.asarray(full(jnp.asarray(rows.tokens)), np.float64) / temperature
    logp = logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))
    following = np.roll(rows.tokens, -1, axis=1)[..., None]
    exact = np.take_along_axis(logp, following, axis=-1)[..., 0]
    apart = drift(exact.astype(np.float32), rows.logp, mask=rows.answer)
    assert 0 < apart.mean < apart.largest < 1e-4
    assert len({len(samples.answer(p, j).tokens) for p, j in product(range(5), range(3))}) > 2
    for r, t in zip(*np.nonzero(rows.answer), strict=True):
        prompt, sample = divmod(r, 3)
        key = jax.random.key(SEEDS[prompt][0])
        for number in (*SEEDS[prompt][1:], sample, t + 1):
            key = jax.random.fold_in(key, number)
        noise = np.asarray(jax.random.gumbel(key, (62,)), np.float64)
        assert int(np.argmax(logits[r, t] + noise)) == rows.tokens[r, t + 1]


def test_the_log_probability_at_temperature_0_is_that_of_temperature_1():
    samples = run(temperature=0.0, n=2)
    np.testing.assert_array_equal(samples.tokens[:, 0], samples.tokens[:, 1])
    rows = batch_rows(PROMPTS, samples, 48)
    logp = jax.nn.log_softmax(full(jnp.asarray(rows.tokens)))
    following = np.roll(rows.tokens, -1, axis=1)[..., None]
    exact = jnp.take_along_axis(logp, following, axis=-1)[..., 0]
    assert drift(exact, rows.logp, mask=rows.answer).largest < 1e-4


@given(st.permutations(range(5)), st.integers(1, 5), st.integers(1, 6))
@settings(deadline=None, max_examples=10)
def test_an_answer_depends_on_its_prompt_seeds_and_number_alone(drawn, order, count, n):
    """Whatever is drawn beside it, before it, or more of: bit by bit."""
    order, common = order[:count], min(n, 3)
    ours = run([PROMPTS[p] for p in order], [SEEDS[p] for p in order], n=n)
    assert_same(take(ours, range(count), common), take(drawn, order, common))


def test_fewer_rows_at_a_time_draw_the_same_tokens(drawn):
    assert_same(run(wave_rows=2), drawn, atol=3e-4)


def test_wanted_answers_alone_are_drawn(drawn):
    wanted = [(4, 2), (1, 0), (4, 0)]
    params = SamplingParams(max_new_tokens=8, stop_ids=STOPS)
    found = stream_answers(
        params_of(SMALL), PROMPTS, params, config=SMALL, wanted=wanted, seeds=SEEDS, wave_rows=8
    )
    answers = {(a.prompt, a.sample): a for a in found}
    assert set(answers) == set(wanted)
    for at, answer in answers.items():
        expected = drawn.answer(*at)
        np.testing.assert_array_equal(answer.tokens, expected.tokens)
        assert answer.finish == expected.finish


def test_generation_draws_what_the_first_sample_is():
    samples = run(seeds=[(b,) for b in range(5)], n=1, stop_ids=())
    params = SamplingParams(max_new_tokens=8)
    tokens = generate_tokens(params_of(SMALL), PROMPTS, params, config=SMALL, seeds=range(5))
    assert samples.tokens[:, 0].tolist() == tokens


def test_an_answer_ends_with_its_stop_id_or_is_cut(drawn):
    seen = set()
    for p, j in product(range(5), range(3)):
        answer = drawn.answer(p, j)
        tokens = answer.tokens.tolist()
        assert not set(STOPS) & set(tokens[:-1])
        assert (tokens[-1] in STOPS) == (answer.finish == "stop")
        assert answer.finish == "stop" or len(tokens) == 8
        assert drawn.tokens[p, j].tolist() == tokens + [0] * (8 - len(tokens))
        assert drawn.logp[p, j, len(tokens) :].tolist() == [0] * (8 - len(tokens))
        seen.add(answer.finish)
    assert seen == {"stop", "length"}


def test_the_end_of_the_context_cuts_an_answer():
    prompts = [list(range(1, 47)), list(range(1, 49)), [1, 2]]
    params = SamplingParams(max_new_tokens=8)
    samples = sample_answers(
        params_of(SMALL), prompts, params, config=SMALL, n=2, seeds=[(0,)] * 3, wave_rows=4
    )
    assert samples.length.tolist() == [[2, 2], [0, 0], [8, 8]]
    assert not samples.stopped.any()
    assert run(new=0).length.tolist() == [[0] * 3] * 5


@pytest.mark.parametrize("temperature", [0.0, 3.0])
def test_rows_without_a_piece_are_never_drawn(temperature):
    free = run(temperature=temperature, new=12)
    assert free.tokens.max() >= 40
    samples = run(temperature=temperature, new=12, vocab_limit=40)
    assert samples.tokens.max() < 40


def test_a_prompt_is_put_into_the_cache_once_and_rows_are_not_left_idle():
    work = Work()
    samples = run(n=20, work=work)
    tokens = int(samples.length.sum())
    assert (work.prompts, work.prompt_tokens) == (5, sum(len(p) for p in PROMPTS))
    assert (work.answers, work.tokens, work.row_steps) == (100, tokens, 8 * work.steps)
    # Waves that wait for their longest answer take 82 steps.
    assert tokens / 8 <= work.steps < 1.2 * tokens / 8 < 70
    assert work.compiled_seconds > 0
    run(n=20, work=work)
    assert work.answers == 200


def test_rows_end_early_when_all_are_done():
    work = Work()
    samples = run([[1, 5, 9]], SEEDS[:1], n=8, new=25, stop_ids=tuple(range(30)), work=work)
    assert work.steps == samples.length.max() < 25


@contextlib.contextmanager
def compilations():
    """A list of what is compiled in the block."""
    events = []

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            events.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield events
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def test_nothing_is_compiled_after_the_second_call():
    """Other prompts, lengths and numbers of them, other seeds, samples and temperatures."""
    rng = np.random.default_rng(0)

    def call(lengths, n, temperature):
        prompts = [rng.integers(1, 61, length).tolist() for length in lengths]
        seeds = [(int(rng.integers(2**32)), 0, p) for p in range(len(lengths))]
        run(prompts, seeds, n=n, w=params_of(SMALL), temperature=temperature)

    call([1, 20, 3], 2, 1.0)
    call([18, 5], 5, 0.8)
    with compilations() as compiled:
        call(range(1, 12), 3, 1.2)
        call([1], 1, 1.0)
        call([20], 1, 1.0)
        assert not compiled
        jax.jit(lambda x: 3 * x + 7)(np.ones(61))
        assert compiled  # it hears


def test_nothing_stays_in_memory(drawn):
    """Neither the prepared copy of the parameters, nor caches."""
    params = params_of(SMALL)
    before = {id(a) for a in jax.live_arrays()}
    run(w=params)
    assert [a.shape for a in jax.live_arrays() if id(a) not in before] == []


@pytest.mark.parametrize("gathered", [False, True])
def test_on_a_mesh_the_answers_are_those_of_one_device(drawn, gathered, monkeypatch):
    """Rows over four devices, heads over two; the weights split over all eight, or gathered. What
    Python reads is whole on each device, so that each of several hosts can."""
    read = []

    def spy(*args, **kwargs):
        state, steps = decode_loop.advance(*args, **kwargs)
        read.extend(a.sharding.is_fully_replicated for a in (*state[:4], steps))
        assert not state.cache[0][0].sharding.is_fully_replicated
        return state, steps

    monkeypatch.setattr(rollout, "advance", spy)
    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2))
    config = SMALL
    params = jax.device_put(
        params_of(config), map_weights(lambda w: named_sharding(w.axes, mesh, w.shape), config)
    )
    with jax.set_mesh(mesh):
        w = prepare(params, config)
        assert {s.data.shape for s in w["layers"][1]["q"].addressable_shards} == {(8, 2, 8)}
        if gathered:
            w = gather(w, config)
            assert {s.data.shape for s in w["layers"][1]["q"].addressable_shards} == {(32, 2, 8)}
            assert {s.data.shape for s in w["layers"][1]["o"].addressable_shards} == {(2, 8, 32)}
        assert_same(run(w=w), drawn, atol=3e-4)
        with compilations() as compiled:
            run(w=w, n=4)
        assert not compiled
    assert all(read)
    assert len(read) > 5


def test_gathering_leaves_one_device_alone():
    w = prepare(params_of(SMALL), SMALL)
    assert gather(w, SMALL) is w


@pytest.mark.parametrize(("prompt_len", "new"), [(20, 8), (32, 48), (5, 0)])
def test_as_many_rows_as_fit(prompt_len, new, monkeypatch):
    """With the prompts that wait, the caches themselves take no more, and one row more would."""
    free, caches = 2_000_000, []

    def spy(*args, **kwargs):
        state = decode_loop.new_state(*args, **kwargs)
        caches.append(state.cache)
        return state

    monkeypatch.setattr(rollout, "new_state", spy)
    fit = {"prompt_len": prompt_len, "max_new_tokens": new}
    rows = rows_that_fit(SMALL, **fit, free_bytes=free)
    w, params = prepare(params_of(SMALL), SMALL), SamplingParams(max_new_tokens=new)
    options = {"config": SMALL, "wanted": [(0, 0)], "seeds": [(0,)], "prompt_len": prompt_len}
    with monkeypatch.context() as context:
        context.setattr(_Wave, "advance", lambda self, *_: self.drawing.clear() or ())
        assert not list(stream_answers(w, [[1]], params, **options, wave_rows=rows))
    taken = [sum(a.nbytes for a in jax.tree.leaves(cache)) for cache in caches]
    drawing = 24 * SMALL.vocab_size  # logits and their sorted copies
    assert 0 <= free - sum(taken) - rows * drawing < taken[0] / rows + drawing
    with pytest.raises(InputError, match=r"1,000 bytes hold no row"):
        rows_that_fit(SMALL, **fit, free_bytes=1000)


def test_rows_of_the_paper(monkeypatch):
    """512 KiB a token for 7B, 320 KiB for 70B with its grouped queries, in bfloat16: 512 answers of
    1,024 positions take 256 and 160 GiB."""
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    for config, gibibytes in ((LLAMA2_7B, 256), (LLAMA2_70B, 160)):
        drawing = 512 * 24 * config.vocab_size  # logits and their sorted copies
        free = gibibytes * 2**30 + PREFILL_ROWS * 512 * cache_bytes(config) + drawing
        fit = {"prompt_len": 512, "max_new_tokens": 512, "free_bytes": free}
        assert rows_that_fit(config, **fit) == 512


@pytest.fixture
def free(monkeypatch):
    """free(bytes): so many are free on each device, or no device tells."""
    rollout.fitting_rows.cache_clear()
    yield lambda found: monkeypatch.setattr(rollout, "free_bytes", lambda: found)
    rollout.fitting_rows.cache_clear()


@pytest.mark.parametrize(("axes", "devices"), [({}, 1), ({"data": 2, "fsdp": 2, "tensor": 2}, 8)])
def test_waves_are_as_large_as_the_free_memory(free, axes, devices):
    """A power of two, so that a little more or less of it compiles nothing anew."""
    sizes = {"prompt_len": 20, "max_new_tokens": 8}
    mesh = make_mesh(MeshConfig(**axes)) if axes else None
    free(10_000_000 // devices)
    most = rows_that_fit(SMALL, **sizes, free_bytes=8_000_000)
    with jax.set_mesh(mesh) if axes else contextlib.nullcontext():
        found = fitting_rows(SMALL, 20, 8, jax.sharding.get_mesh())
        assert most / 2 < found <= most
        assert found & (found - 1) == 0
        free(2_000)  # asked once: later calls share the programs of the first
        assert fitting_rows(SMALL, 20, 8, jax.sharding.get_mesh()) == found


def test_waves_where_no_memory_is_told(free, drawn):
    free(None)
    assert fitting_rows(SMALL, 20, 8, jax.sharding.get_mesh()) == UNKNOWN_ROWS
    assert_same(run(wave_rows=0), drawn, atol=3e-4)


def test_what_a_stopped_run_lacks_is_drawn_by_the_same_programs(free, monkeypatch):
    """A wave of fewer rows rounds in another way, so a token could differ."""
    free(None)
    rows, real = [], rollout.new_rows

    def spy(params, keys, config):
        rows.append(len(keys))
        return real(params, keys, config)

    monkeypatch.setattr(rollout, "new_rows", spy)
    params = SamplingParams(max_new_tokens=4)
    settings = {"config": SMALL, "seeds": SEEDS, "wave_rows": 0, "prompt_len": 20, "most": 15}
    for wanted in ([(p, j) for p in range(5) for j in range(3)], [(4, 2)]):
        list(stream_answers(params_of(SMALL), PROMPTS, params, wanted=wanted, **settings))
    assert rows == [16, 16]


def test_a_host_without_room_does_not_leave_the_others_waiting(free, monkeypatch):
    free(2_000)
    told = []

    def gather(number):
        told.append(int(number))
        return np.array([64, int(number)])

    monkeypatch.setattr(rollout.multihost_utils, "process_allgather", gather)
    with pytest.raises(InputError, match="hold no row"):
        fitting_rows(SMALL, 20, 8, jax.sharding.get_mesh())
    assert told == [0]
    free(None)
    monkeypatch.setattr(rollout.multihost_utils, "process_allgather", lambda _: np.array([0, 64]))
    with pytest.raises(InputError, match="memory of another host"):
        fitting_rows(SMALL, 20, 8, jax.sharding.get_mesh())


def test_rows_for_training(drawn):
    rows = batch_rows(PROMPTS, drawn, 30)
    for r in range(15):
        prompt, answer = PROMPTS[r // 3], drawn.answer(*divmod(r, 3))
        held = rows.tokens[r][rows.valid[r]].tolist()
        assert held == prompt + answer.tokens.tolist()
        assert np.roll(rows.tokens[r], -1)[rows.answer[r]].tolist() == answer.tokens.tolist()
        assert rows.logp[r][rows.answer[r]].tolist() == answer.logp.tolist()
        assert not rows.logp[r][~rows.answer[r]].any()
        assert np.flatnonzero(rows.answer[r])[0] == len(prompt) - 1
    with pytest.raises(InputError, match=r"prompt 2 and its answer \d take 2\d tokens, more than"):
        batch_rows(PROMPTS, drawn, 20)


def test_drift_counts_the_mask_alone():
    ours = jnp.array([[1.0, 2.0, jnp.nan], [0.0, jnp.inf, 4.0]])
    theirs = jnp.array([[1.5, 2.0, 3.0], [jnp.nan, 1.0, 3.0]])
    mask = jnp.array([[True, True, False], [False, False, True]])
    found = drift(ours, theirs, mask=mask)
    assert (found.mean, found.largest) == (0.5, 1.0)
    assert drift(ours, theirs, mask=jnp.zeros_like(mask)) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": [[]], "seeds": [(1,)]}, "prompt 0 is empty"),
        ({"seeds": SEEDS[:2]}, "5 prompts need as many seeds, not 2"),
        ({"seeds": [*SEEDS[:4], (1, 2)]}, "prompt 4 has 2 seeds and prompt 0 has 3"),
        ({"seeds": [()] * 5}, "prompt 0 has 0 seeds"),
        ({"seeds": [*SEEDS[:4], (1, 2, -1)]}, "a seed of prompt 4=-1"),
        ({"n": 0}, "n=0"),
        ({"wave_rows": -1}, "wave_rows=-1"),
        (
            {"prompts": [[1] * 21], "seeds": [(1,)]},
            "prompt 0 has 21 tokens, more than prompt_len=20",
        ),
    ],
)
def test_bad_requests_are_refused_with_their_values(options, message):
    with pytest.raises(InputError, match=message):
        run(**options)
