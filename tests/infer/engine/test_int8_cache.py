"""An engine whose keys and values are in int8."""

from dataclasses import replace

import jax
import pytest

from llama_jax.config import Quantization, QuantizedModel
from llama_jax.infer.engine.engine import Engine
from llama_jax.infer.engine.programs import CompileCounter
from llama_jax.infer.engine.request import Request
from llama_jax.infer.engine.sizes import layout_of
from llama_jax.infer.generate import generate_tokens
from llama_jax.infer.sampling_params import SamplingParams
from llama_jax.model.cache import cache_bytes, prepare
from llama_jax.model.quantize import quantized
from tests.infer.engine.tiny import LAYOUT, Heard, all_free, alone, request, together
from tests.infer.small import SMALL, params_of

INT8 = replace(LAYOUT, kv="int8")
PROMPTS = [list(range(1, n)) for n in (2, 5, 9, 20)]


@pytest.fixture(scope="module")
def engine():
    params = jax.device_put(params_of(SMALL), jax.devices()[0])
    engine = Engine(prepare(params, SMALL), config=SMALL, layout=INT8, queue=100)
    engine.warm_up()
    return engine


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_answers_are_those_of_a_model_that_rounds_keys_and_values(temperature):
    """The whole loop of generate, whose cache has the compute type."""
    small = QuantizedModel.of(SMALL, Quantization.of("int8", kv="int8"))
    params = quantized(params_of(SMALL), small)
    engine = Engine(prepare(params, small), config=small, layout=INT8, queue=100)
    sampling = SamplingParams(max_new_tokens=14, temperature=temperature)
    whole = generate_tokens(params, PROMPTS, sampling, config=small, seeds=range(len(PROMPTS)))
    for seed, (prompt, expected) in enumerate(zip(PROMPTS, whole, strict=True)):
        wanted = Request(prompt=tuple(prompt), sampling=sampling, seed=seed)
        assert alone(engine, wanted)[0] == expected


def test_a_request_is_bit_equal_alone_and_among_others(engine):
    wanted = [
        request(prompt, 9, temperature=1.0, seed=seed, scored=True, prompt_scored=seed == 2)
        for seed, prompt in enumerate((*PROMPTS, PROMPTS[-1]))
    ]
    expected = [alone(engine, r) for r in wanted]
    heard, compiled = Heard(), CompileCounter()
    tickets = together(engine, wanted, heard)
    assert [heard.result(ticket) for ticket in tickets] == expected
    assert compiled.count == 0
    assert all_free(engine)


def test_more_rows_fit():
    H = SMALL.head_dim
    assert cache_bytes(SMALL) / cache_bytes(SMALL, "int8") == pytest.approx(4 * H / (H + 4))
    sizes = {"rows": 200, "context": 48, "cache_gib": 140 * 48 * cache_bytes(SMALL) / 2**30}
    pages = [layout_of(SMALL, kv=kv, **sizes).num_pages for kv in ("model", "int8")]
    assert pages[1] > 1.5 * pages[0]
