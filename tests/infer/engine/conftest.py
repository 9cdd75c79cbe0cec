"""One engine for all tests of it."""

import jax
import pytest

from llama_jax.infer.engine.engine import Engine
from llama_jax.model.cache import prepare
from tests.infer.engine.tiny import LAYOUT, alone, request
from tests.infer.small import SMALL, params_of
from tests.optimized import optimizing


@pytest.fixture(scope="session")
def engine():
    # Committed to a device, as weights are that come from a file.
    params = jax.device_put(params_of(SMALL), jax.devices()[0])
    engine = Engine(prepare(params, SMALL), config=SMALL, layout=LAYOUT, queue=100)
    with optimizing():  # equal bits are promised of these programs
        engine.warm_up()
    # The first requests after the warm-up, before any other test compiles something.
    alone(engine, request(range(1, 22), scored=True, prompt_scored=True, bias={5: 1.0}))
    alone(engine, request([1, 2], temperature=1.0, top_k=3))
    assert engine.compiled.count == 0
    return engine
