"""Engines for all tests of them."""

import jax
import pytest

from llama_jax.config import Quantization, QuantizedModel
from llama_jax.infer.engine.engine import Engine
from llama_jax.model.cache import prepare
from llama_jax.model.quantize import quantized
from tests.infer.engine.tiny import LAYOUT, alone, request
from tests.infer.small import SMALL, params_of
from tests.optimized import optimizing


def warm_engine(params, config):
    """An engine for this model, whose programs are those that users have."""
    # Committed to a device, as weights are that come from a file.
    params = jax.device_put(params, jax.devices()[0])
    engine = Engine(prepare(params, config), config=config, layout=LAYOUT, queue=100)
    with optimizing():  # equal bits are promised of these programs
        engine.warm_up()
    return engine


@pytest.fixture(scope="session")
def engine():
    engine = warm_engine(params_of(SMALL), SMALL)
    # The first requests after the warm-up, before any other test compiles something.
    alone(engine, request(range(1, 22), scored=True, prompt_scored=True, bias={5: 1.0}))
    alone(engine, request([1, 2], temperature=1.0, top_k=3))
    assert engine.compiled.count == 0
    return engine


@pytest.fixture(scope="session", params=[pytest.param("int8", marks=pytest.mark.slow), "int4"])
def rounded(request):
    """An engine whose weights have fewer bits, in groups of 32 where they have four."""
    small = QuantizedModel.of(SMALL, Quantization.of(request.param))
    return warm_engine(quantized(params_of(SMALL), small), small)
