"""The engine against lone requests and against full forward passes."""

import random
from dataclasses import replace

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_jax.config import InputError, Quantization, QuantizedModel
from llama_jax.infer.engine.engine import Engine
from llama_jax.infer.engine.programs import CompileCounter
from llama_jax.infer.engine.request import Busy, Request
from llama_jax.infer.engine.sizes import layout_of
from llama_jax.infer.generate import generate_tokens
from llama_jax.infer.sampling_params import SamplingParams
from llama_jax.model.cache import prepare
from llama_jax.model.llama import init_params
from llama_jax.model.presets import STORIES_15M
from llama_jax.model.quantize import quantized
from tests.infer.engine.tiny import LAYOUT, Heard, all_free, alone, request
from tests.infer.small import SMALL, full, params_of
from tests.infer.test_decoding import greedy_oracle


@pytest.mark.parametrize("length", [1, 2, 4, 5, 8, 9, 20])
def test_greedy_tokens_and_their_scores_are_those_of_full_forward_passes(engine, length):
    prompt = list(range(1, length + 1))
    tokens, scores, prompt_scores, finish = alone(
        engine, request(prompt, 10, scored=True, prompt_scored=True)
    )
    assert tokens == greedy_oracle(prompt, SMALL, 10)
    assert finish == "length"
    row = np.asarray([prompt + tokens + [0] * (48 - length - 10)])
    logits = np.asarray(full(row), np.float64)[0]
    logp = logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))
    expected = [logp[i, t] for i, t in enumerate(row[0, 1 : length + 10])]
    given_ = [s.logp for s in prompt_scores + scores]
    np.testing.assert_allclose(given_, expected, atol=1e-3)
    for at, score in enumerate(prompt_scores + scores):
        ids, values = zip(*score.top, strict=True)
        np.testing.assert_allclose(values, logp[at, list(ids)], rtol=2e-4, atol=1e-3)
        np.testing.assert_allclose(values, np.sort(logp[at])[::-1][:20], rtol=2e-4, atol=1e-3)
    assert all(score.logp == max(p for _, p in score.top) for score in scores)


@pytest.mark.parametrize("setting", [(0.0, 0, 1.0), (1.0, 0, 1.0), (0.8, 5, 1.0), (1.3, 0, 0.7)])
def test_the_whole_loop_of_generate_draws_the_same(engine, setting):
    """Which commands use that have the device for themselves: one program, no step to the host."""
    temperature, top_k, top_p = setting
    prompts = [list(range(1, n)) for n in (2, 5, 9, 20)]
    sampling = SamplingParams(
        max_new_tokens=14, temperature=temperature, top_k=top_k, top_p=top_p, stop_ids=(7, 33)
    )
    whole = generate_tokens(
        params_of(SMALL), prompts, sampling, config=SMALL, seeds=range(len(prompts))
    )
    for seed, (prompt, expected) in enumerate(zip(prompts, whole, strict=True)):
        wanted = Request(prompt=prompt, sampling=sampling, seed=seed)
        tokens, _, _, finish = alone(engine, wanted)
        assert tokens[: len(expected)] == expected
        assert finish == ("stop" if len(expected) < 14 else "length")


def test_rows_that_only_pad_the_table_are_never_drawn(engine):
    """31 of the rows have a piece; at this temperature any of the 62 would be drawn otherwise."""
    w = prepare(params_of(SMALL), SMALL)
    padded = Engine(w, config=SMALL, layout=LAYOUT, queue=1, vocab_limit=31)
    asked = {"temperature": 9.0, "scored": True, "seed": 3}
    free, *_ = alone(engine, request([1, 5], 20, **asked))
    assert max(free) >= 31
    tokens, scores, _, _ = alone(padded, request([1, 5], 20, **asked))
    assert len(tokens) == 20
    assert max(tokens) < 31
    assert all(i < 31 for score in scores for i, _ in score.top)


PROMPTS = st.one_of(
    st.lists(st.integers(1, 60), min_size=1, max_size=20),
    st.builds(
        lambda n, tail: [*range(1, n + 1), *tail],
        st.integers(8, 20),
        st.lists(st.integers(1, 60), max_size=6),
    ),
)
# Requests are made in the test: beartype draws random numbers, which no strategy may.
REQUESTS = st.fixed_dictionaries(
    {
        "prompt": PROMPTS,
        "new": st.integers(0, 12),
        "setting": st.sampled_from([(0.0, 0, 1.0), (1.0, 0, 1.0), (0.8, 5, 1.0), (1.3, 0, 0.7)]),
        "seed": st.integers(0, 2**32 - 1),
        "scored": st.booleans(),
        "prompt_scored": st.sampled_from([False, False, True]),
        "bias": st.sampled_from([{}, {}, {5: 4.0, 9: -100.0}]),
        "presence_penalty": st.sampled_from([0.0, 0.0, 1.5]),
    }
)


def drawn_request(setting, presence_penalty, **rest):
    temperature, top_k, top_p = setting
    return request(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        stop_ids=(7, 33),
        presence_penalty=presence_penalty,
        frequency_penalty=presence_penalty / 2,
        **rest,
    )


@pytest.mark.parametrize("examples", [12, pytest.param(200, marks=pytest.mark.slow)])
def test_a_request_is_bit_equal_alone_and_among_others(engine, examples):
    """Arrivals at any moment, neighbours of any kind, prefixes that are known or not, cancelled
    neighbours: identifiers, log-probabilities and their order are those of the lone request."""
    require_equal_bits(engine, examples)


@pytest.mark.parametrize("examples", [12, pytest.param(200, marks=pytest.mark.slow)])
def test_a_request_is_bit_equal_with_weights_of_fewer_bits(rounded, examples):
    require_equal_bits(rounded, examples)


def require_equal_bits(engine, examples):
    """See `test_a_request_is_bit_equal_alone_and_among_others`."""

    @given(st.lists(REQUESTS, min_size=2, max_size=8), st.randoms(use_true_random=False))
    @settings(deadline=None, max_examples=examples)
    def check(drawn, chance):
        requests = [drawn_request(**r) for r in drawn]
        expected = [alone(engine, r) for r in requests]
        if chance.random() < 0.5:
            engine.scheduler.pool.forget()
        heard, tickets, cancelled = Heard(), {}, set()
        waiting = list(enumerate(requests))
        chance.shuffle(waiting)
        while waiting or not engine.idle:
            while waiting and chance.random() < 0.6:
                number, wanted = waiting.pop()
                (tickets[number],) = engine.submit([wanted], heard)
            if tickets and chance.random() < 0.05:
                number = chance.choice(sorted(tickets))
                cancelled.add(number)
                engine.cancel(tickets[number])
            engine.step()
        for number, ticket in tickets.items():
            if number not in cancelled:
                assert heard.result(ticket) == expected[number]
        assert all_free(engine)

    compiled = CompileCounter()
    check()
    assert engine.scheduler.hits > 0
    assert compiled.count == 0


def test_answers_to_one_prompt_share_its_pages_and_draw_for_themselves(engine):
    prompt = range(1, 22)
    wanted = [request(prompt, 6, temperature=1.0, seed=3, sample=j, scored=True) for j in range(3)]
    expected = [alone(engine, r) for r in wanted]
    engine.scheduler.pool.forget()
    heard = Heard()
    tickets = engine.submit(wanted, heard)
    most = 0
    while not engine.idle:
        engine.step()
        most = max(most, engine.scheduler.pool.held)
    assert [heard.result(t) for t in tickets] == expected
    assert len({tuple(r[0]) for r in expected}) == 3
    assert [t.cached_tokens for t in tickets] == [0, 16, 16]
    # Seven pages each, of which four are shared.
    assert most == 7 + 2 * 3


def test_prefixes_are_not_shared_between_scopes_and_are_counted(engine):
    prompt = range(20, 40)
    alone(engine, request(prompt, 1, scope=b"a"))
    counted = engine.scheduler.hits
    found = []
    for scope in (b"b", b"a"):
        heard = Heard()
        (ticket,) = engine.submit([request(prompt, 1, scope=scope)], heard)
        while not engine.idle:
            engine.step()
        found.append(ticket.cached_tokens)
    assert found == [0, 16]
    assert engine.scheduler.hits == counted + 16


def test_a_cancelled_request_frees_its_row_and_pages_at_once(engine):
    chance = random.Random(0)
    for _ in range(60):
        heard = Heard()
        tickets = [
            engine.submit([request(range(1, chance.randrange(2, 30)), 18)], heard)[0]
            for _ in range(5)
        ]
        for _ in range(chance.randrange(6)):
            engine.step()
        for ticket in tickets:
            engine.cancel(ticket)
        engine.step()
        assert all_free(engine)
        for ticket in tickets:
            assert heard.result(ticket)[3] in ("cancelled", "length")


def test_a_full_queue_refuses_and_takes_again(engine, monkeypatch):
    monkeypatch.setattr(engine, "queue", 2)
    heard = Heard()
    engine.submit([request([1, 2], 4), request([1, 2], 4, sample=1)], heard)
    with pytest.raises(Busy, match="2 requests are waiting, of 2 at most"):
        engine.submit([request([1], 4)], heard)
    while not engine.idle:
        engine.step()
    engine.submit([request([1], 4)], heard)
    while not engine.idle:
        engine.step()
    assert all_free(engine)


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (request([]), "prompt 0 is empty"),
        (request([62]), "token id 62, outside the vocabulary of 62"),
        (request([1] * 49), "49 tokens but the model's context is 48"),
        (request([1], seed=-1), "seed=-1 is out of range"),
        (request([1], bias={62: 1.0}), "a bias names token 62"),
        (request([1], stop_ids=tuple(range(17))), "17 stop tokens are more than 16"),
    ],
)
def test_what_can_never_run_is_refused(engine, wanted, said):
    with pytest.raises(InputError, match=said):
        engine.submit([wanted], Heard())
    assert all_free(engine)


def test_a_sequence_that_the_cache_cannot_hold_is_refused():
    layout = replace(LAYOUT, num_pages=4)
    small = Engine(prepare(params_of(SMALL), SMALL), config=SMALL, layout=layout)
    with pytest.raises(InputError, match="takes 4 pages and the cache has 3"):
        small.submit([request([1, 2], 12)], Heard())


@pytest.mark.parametrize("bits", [None, pytest.param("int8", marks=pytest.mark.slow)])
def test_few_rows_draw_in_programs_for_few(optimized, bits):
    """At widths that no power of two divides, as stories-15m has them: if a sum were added in
    another order for one row than for sixteen, a lone request would pay for sixteen."""
    config = replace(STORIES_15M, vocab_size=500, num_layers=2, max_seq_len=64)
    params = init_params(jax.random.key(0), config)
    if bits:
        config = QuantizedModel.of(config, Quantization.of(bits))
        params = quantized(params, config)
    layout = layout_of(config, rows=16)
    w = prepare(jax.device_put(params, jax.devices()[0]), config)
    engine = Engine(w, config=config, layout=layout)
    engine.warm_up()
    assert engine._device.row_counts == [1, 4, 16]
