"""One engine, several adapters: each request is answered by the model that it names."""

import jax
import numpy as np
import pytest

from llama_jax.config import InputError
from llama_jax.infer.engine.engine import Engine
from llama_jax.infer.engine.programs import CompileCounter
from llama_jax.infer.engine.request import Request
from llama_jax.infer.generate import generate_tokens
from llama_jax.infer.sampling_params import SamplingParams
from llama_jax.model.cache import prepare
from tests.infer.engine.tiny import LAYOUT, Heard, all_free, alone, request, together
from tests.infer.small import SMALL, params_of
from tests.model.test_by_row import ADAPTERS, dense

PROMPTS = [list(range(1, n)) for n in (2, 5, 9, 20)]


@pytest.fixture(scope="module")
def engine():
    params = jax.device_put(params_of(SMALL), jax.devices()[0])
    engine = Engine(
        prepare(params, SMALL), config=SMALL, layout=LAYOUT, queue=100, adapters=ADAPTERS
    )
    engine.warm_up()
    return engine


def merged(adapter):
    """The parameters with the adapters in them."""
    params = params_of(SMALL)
    layers = {
        name: np.stack([dense(adapter, name, i, np.float64(w)) for i, w in enumerate(stack)])
        for name, stack in params["layers"].items()
    }
    return {**params, "layers": {name: np.float32(stack) for name, stack in layers.items()}}


@pytest.mark.parametrize("number", [0, 1, 2])
def test_answers_are_those_of_the_merged_model(engine, number):
    sampling = SamplingParams(max_new_tokens=10, temperature=1.0)
    params = params_of(SMALL) if number == 0 else merged(ADAPTERS[number - 1])
    whole = generate_tokens(params, PROMPTS, sampling, config=SMALL, seeds=range(len(PROMPTS)))
    for seed, (prompt, expected) in enumerate(zip(PROMPTS, whole, strict=True)):
        wanted = Request(prompt=tuple(prompt), sampling=sampling, seed=seed, adapter=number)
        assert alone(engine, wanted)[0] == expected


def test_a_request_is_bit_equal_alone_and_among_others_and_shares_no_prefix_with_them(engine):
    """The same prompt three times: its pages are known to one adapter alone."""
    wanted = [
        request(PROMPTS[-1], 9, temperature=1.0, seed=number // 3, adapter=number % 3, scored=True)
        for number in range(6)
    ]
    expected = [alone(engine, r) for r in wanted]
    assert len({tuple(tokens) for tokens, *_ in expected[:3]}) == 3
    engine.scheduler.pool.forget()
    heard, compiled = Heard(), CompileCounter()
    first = together(engine, wanted[:3], heard)
    second = together(engine, wanted[3:], heard)
    assert [heard.result(ticket) for ticket in (*first, *second)] == expected
    # 16 pages are too few for all three to stay known, but no first one may find another's.
    assert [ticket.cached_tokens for ticket in first] == [0, 0, 0]
    assert any(ticket.cached_tokens > 0 for ticket in second)
    assert compiled.count == 0
    assert all_free(engine)


@pytest.mark.parametrize("number", [-1, 3])
def test_an_adapter_that_is_not_there_is_refused(engine, number):
    with pytest.raises(InputError, match=f"adapter={number} is out of range: the engine has 2"):
        engine.submit([request([1], adapter=number)], Heard())
