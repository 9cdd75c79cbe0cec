"""An engine whose model is split over devices answers as one on a single device does."""

from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest

from llama_jax.config import Quantization, QuantizedModel
from llama_jax.infer.engine.draft_model import DraftModel
from llama_jax.infer.engine.engine import Engine
from llama_jax.infer.engine.programs import CompileCounter
from llama_jax.infer.engine.sizes import tensor_mesh
from llama_jax.model.cache import prepare
from llama_jax.model.quantize import quantized
from llama_jax.train.state import param_shardings
from tests.infer.engine.tiny import LAYOUT, Heard, all_free, alone, request, together
from tests.infer.small import SMALL, params_of
from tests.model.test_by_row import ADAPTERS
from tests.serve.server import wait_until

PROMPTS = [list(range(1, n)) for n in (2, 5, 9, 20)]
INT8, INT4 = (QuantizedModel.of(SMALL, Quantization.of(bits)) for bits in ("int8", "int4"))
KERNELS = replace(SMALL, head_dim=64, attention="pallas")
TPU_LAYOUT = replace(LAYOUT, kv="int8", page=128, chunks=(8, 128), budget=128)
CASES = {
    "float32": (SMALL, LAYOUT, ()),
    "int8 keys and values": (SMALL, replace(LAYOUT, kv="int8"), ()),
    "int8": (INT8, LAYOUT, ()),
    "int4": (INT4, LAYOUT, ()),
    "adapters": (SMALL, LAYOUT, ADAPTERS),
    "kernels": (KERNELS, LAYOUT, ()),
    "kernels, int8 keys and values": (KERNELS, TPU_LAYOUT, ()),
}


def engine_of(config, layout, adapters=(), *, draft=False, drafts=0):
    """An engine on the mesh in context, or on one device."""
    params = params_of(SMALL if config.quant else config)
    params = quantized(params, config) if config.quant else params
    mesh = jax.sharding.get_mesh()
    place = jax.devices()[0] if mesh.empty else param_shardings(config, mesh)
    w = prepare(jax.device_put(params, place), config)
    model = DraftModel(w, config=config, layout=layout, vocab_limit=60) if draft else None
    engine = Engine(
        w,
        config=config,
        layout=layout,
        vocab_limit=60,
        queue=100,
        adapters=adapters,
        drafts=drafts,
        draft_model=model,
    )
    engine.warm_up()
    return engine


def requests(adapters=()):
    """Of every kind that has a program, or a branch of one, of its own."""
    number = len(adapters)
    return [
        request(PROMPTS[0], 9, scored=True, adapter=number),
        request(PROMPTS[1], 9, temperature=1.0, top_k=9, seed=3, bias={5: 2.0}),
        request(PROMPTS[2], 9, temperature=0.8, top_p=0.9, seed=4, presence_penalty=1.0),
        request(PROMPTS[3], 9, temperature=1.0, seed=5, scored=True, prompt_scored=True),
        request(PROMPTS[3], 9, stop_ids=(7, 33), adapter=number),
    ]


def assert_alike(found, expected):
    """Tokens and ends are equal, log-probabilities nearly: sums are split over devices."""
    assert found[0] == expected[0]
    assert found[3] == expected[3]
    for part in (1, 2):
        assert len(found[part]) == len(expected[part])
        for one, other in zip(found[part], expected[part], strict=True):
            np.testing.assert_allclose(one.logp, other.logp, rtol=1e-4, atol=1e-4)
            values = ([p for _, p in score.top] for score in (one, other))
            np.testing.assert_allclose(*values, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "case", ["float32", *(pytest.param(c, marks=pytest.mark.slow) for c in list(CASES)[1:])]
)
def test_answers_are_those_of_one_device(case):
    config, layout, adapters = CASES[case]
    single = engine_of(config, layout, adapters)
    expected = [alone(single, wanted) for wanted in requests(adapters)]
    with jax.set_mesh(tensor_mesh(2, [SMALL])):
        engine = engine_of(config, layout, adapters)
        compiled = CompileCounter()
        found = [alone(engine, wanted) for wanted in requests(adapters)]
        for one, other in zip(found, expected, strict=True):
            assert_alike(one, other)
        engine.scheduler.pool.forget()
        heard = Heard()
        tickets = together(engine, requests(adapters), heard)
        assert [heard.result(ticket) for ticket in tickets] == found, "bit by bit, among others"
        assert compiled.count == 0
    assert all_free(engine)
    # Weights and pages lie in halves; each device has its own heads.
    for array in jax.tree.leaves(engine._device.state.pages):
        own = array.addressable_shards[0].data.size
        assert own == array.size // 2
    head = jax.tree.leaves(engine._device.w["head"])[0]
    assert head.addressable_shards[0].data.size == head.size // 2


def test_the_engines_own_thread_works_on_the_mesh():
    with jax.set_mesh(tensor_mesh(2, [SMALL])):
        engine = engine_of(SMALL, LAYOUT)
        expected = [alone(engine, wanted) for wanted in requests()]
        engine.scheduler.pool.forget()
        compiled = CompileCounter()
    heard = Heard()
    engine.start()
    try:
        tickets = engine.submit(requests(), heard)
        wait_until(partial(heard.all_ended, tickets))
    finally:
        engine.stop()
    assert [heard.result(ticket) for ticket in tickets] == expected
    assert compiled.count == 0


def test_guesses_of_a_draft_model_change_no_bit_on_a_mesh():
    layout = replace(LAYOUT, rows=6, num_pages=70)
    wanted = request(PROMPTS[2], 12, temperature=1.0, seed=8, scored=True)
    with jax.set_mesh(tensor_mesh(2, [SMALL])):
        plain = alone(engine_of(SMALL, layout), wanted)
        engine = engine_of(SMALL, layout, draft=True, drafts=3)
        compiled = CompileCounter()
        assert alone(engine, wanted) == plain
        assert compiled.count == 0
    assert engine.totals.accepted > 0
