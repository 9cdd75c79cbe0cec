"""The engine's programs compiled for chips that are not here: memory and traffic."""

import dataclasses

import jax
import numpy as np
import pytest

from llama_jax.config import MeshConfig, Quantization, QuantizedModel
from llama_jax.infer.engine import programs
from llama_jax.infer.engine.sizes import DEVICE_SIZES
from llama_jax.model.cache import prepare, prepared_axes
from llama_jax.model.presets import PRESETS
from llama_jax.model.weights import abstract_params
from llama_jax.parallel.arrays import abstract_with, replicated
from llama_jax.parallel.rules import named_sharding
from llama_jax.tpu.collectives import collectives
from llama_jax.tpu.command import preset_experiment
from llama_jax.tpu.compile_step import local_bytes, topology_mesh
from llama_jax.tpu.hlo import Program
from llama_jax.tpu.topology import parse

ROWS, CONTEXT = 32, 4096
PAGE, (*_, CHUNK), _ = DEVICE_SIZES
WIDTH = CONTEXT // PAGE
PAGES = ROWS * WIDTH // 4


def lowered(program, config, mesh, kv):
    """`draw_steps` for all rows, or `prefill` of a long chunk; the weights, and the state."""

    def split(tree, axes):
        places = jax.tree.map(lambda a, names: named_sharding(names, mesh, a.shape), tree, axes)
        return abstract_with(tree, places)

    def whole(tree):
        return abstract_with(tree, jax.tree.map(lambda _: replicated(mesh), tree))

    heads = {3: (None, "kv_heads", None), 4: (None, None, "kv_heads", None)}
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        w = jax.eval_shape(lambda p: prepare(p, config), abstract_params(config))
        w = split(w, prepared_axes(config))
        sizes = {"rows": ROWS, "num_pages": PAGES, "page": PAGE, "kv": kv}
        state = jax.eval_shape(lambda: programs.new_state(config, **sizes))
        pages = split(state.pages, jax.tree.map(lambda a: heads[a.ndim], state.pages))
        state = whole(state)._replace(pages=pages)
        if program == "draw":
            function = programs.draw_steps
            values = programs.idle_rows(ROWS, WIDTH), np.int32(0), np.int32(0)
        else:
            function = programs.prefill
            sizes = (1, CHUNK), (1,), (1, WIDTH), (1,)
            values = tuple(np.zeros(size, np.int32) for size in sizes)
        traced = function.trace(w, state, *whole(values), config=config)
        return traced.lower(lowering_platforms=("tpu",)), w, state


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "model", "bits", "kv"),
    [
        ("draw", "llama2-7b", None, "model"),
        ("draw", "llama2-70b", "int8", "int8"),
        ("prefill", "llama2-70b", "int8", "int8"),
    ],
)
def test_a_model_split_over_a_host_of_v5e_moves_no_weights(program, model, bits, kv, monkeypatch):
    """Each chip reads its own weights and pages. What crosses the network are activations of the
    rows or the chunk, and the rows' logits."""
    pytest.importorskip("libtpu")
    for name in ("ALLOW_MULTIPLE_LIBTPU_LOAD", "TPU_SKIP_MDS_QUERY"):
        monkeypatch.setenv(name, "1")
    slices = parse("v5e-8")
    config = dataclasses.replace(PRESETS[model], max_seq_len=CONTEXT)
    config = QuantizedModel.of(config, Quantization.of(bits)) if bits else config
    split = MeshConfig(fsdp=1, tensor=slices.devices)
    mesh = topology_mesh(dataclasses.replace(preset_experiment(model, slices), mesh=split), slices)
    text, w, state = lowered(program, config, mesh, kv)
    compiled = text.compile()
    memory = compiled.memory_analysis()
    held = local_bytes(w) + local_bytes(state)
    assert memory.argument_size_in_bytes < 1.1 * held
    assert memory.argument_size_in_bytes + memory.temp_size_in_bytes < slices.chip.hbm_bytes
    # The pages are written where they are.
    new = memory.output_size_in_bytes - memory.alias_size_in_bytes
    assert new < 2 * CHUNK * config.d_model * 2
    found = collectives(Program(compiled.as_text()), slices.devices)
    largest = max(ROWS * config.vocab_size * 4, CHUNK * config.d_model * 4)
    assert found
    assert max(one.payload for one in found) <= largest
    assert largest < config.d_model * config.d_ff // slices.devices * 4
