"""Exports a model as one LiteRT file (.tflite), for phones and other small machines.

    DST/  model.tflite    weights, and one step: a token in, logits of the next one out
          tokenizer.model
          program.json    the cache's shapes, the ids that end a text
          run.py          continues a text, and prints its speed to stderr; needs ai-edge-litert,
                          numpy and sentencepiece

The converter reads StableHLO's bytecode, which holds weights as bytes and not as text. Keys and
values are inputs and outputs of the step, so it costs the same at every position.
"""

from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp

from llama_jax.config import InputError
from llama_jax.convert.staging import staged
from llama_jax.export import Program, program_of
from llama_jax.runtime.places import expand

LARGEST = 1 << 31
"""Maximum size of a file in bytes: its offsets are signed 32-bit numbers."""
RUNNER = '''\
"""Continue a text, greedily: python run.py "Once upon a time" [TOKENS]"""
import json, sys, time
from pathlib import Path

import numpy as np, sentencepiece
from ai_edge_litert.interpreter import Interpreter

here = Path(__file__).parent
facts = json.loads((here / "program.json").read_text())
program = Interpreter(str(here / "model.tflite"), num_threads=2)
step = program.get_signature_runner("step")
cache = {name: np.zeros(shape, dtype) for name, (shape, dtype) in facts["cache"].items()}
pieces = sentencepiece.SentencePieceProcessor(str(here / "tokenizer.model"))
ids = [*facts["begin"], *pieces.encode(sys.argv[1])] or [pieces.bos_id()]
end = min(len(ids) + int(sys.argv[2] if len(sys.argv) > 2 else 200), facts["context"])
begin, at = time.perf_counter(), 0
for at in range(end - 1):
    if at == 1:  # the first step may have been compiled
        begin = time.perf_counter()
    token, position = np.array([[ids[at]]], np.int32), np.array([at], np.int32)
    found = step(token=token, position=position, **cache)
    cache = {name: found["new_" + name] for name in cache}
    if at + 1 == len(ids):
        ids.append(int(np.argmax(found["logits"][: facts["pieces"]])))
        if ids[-1] in facts["ends"]:
            break
seconds = time.perf_counter() - begin
print(pieces.decode(ids))
print(f"{at / seconds:.1f} tokens/s", file=sys.stderr)
'''


def export_litert(src: str, dst: str) -> list[str]:
    """Write the folder described above for a model in any format, in float32; returns lines for
    people.

    Raises:
      InputError: what `program_of` raises, the converter is not installed, or the model is too
        large for one file.
      CheckpointError: the model's weights do not verify.
    """
    converter, mlir, stablehlo, passes = _converter()
    target = Path(expand(dst)).absolute()
    program = program_of(src, target, "float32")
    size = sum(array.nbytes for array in program.weights)
    if size >= LARGEST:
        raise InputError(
            f"{src} has {size:,} bytes of weights, and a .tflite file holds less than {LARGEST:,}: "
            "use --to gguf:q4_k, or a smaller model"
        )
    names = [f"cache_{number:02d}" for number in range(len(program.cache))]
    context = mlir.Context()
    converter.prepare_mlir_context(context)
    with context:
        module = stablehlo.deserialize_portable_artifact(context, _bytecode(program))
        inputs = [*names, "token", "position"]
        outputs = ["logits", *(f"new_{name}" for name in names)]
        converter.set_signature(module.operation, "step", inputs, outputs)
        manager = passes.PassManager()
        converter.run_convert_to_tfl_passes(module, manager, converter.ConvertToTFLConfig())
        manager.run(module.operation)
        made = converter.export_flatbuffer_to_bytes(module.operation)
    shapes = {
        name: [list(a.shape), a.dtype.name] for name, a in zip(names, program.cache, strict=True)
    }
    with staged(target, is_file=False) as place:
        (place / "model.tflite").write_bytes(made)
        program.write_runner(place, RUNNER, cache=shapes)
    return program.summary(src, target, f"LiteRT, {len(made):,} bytes", "float32")


def _bytecode(program: Program) -> bytes:
    """StableHLO of a step whose weights are constants: (cache, token, position)."""

    def step(cache: Any, token: Any, position: Any) -> tuple[Any, list[Any]]:
        w = jax.tree.unflatten(program.structure, program.weights)
        # LiteRT has matrix products, and makes many operations of the loop that reads int8.
        products = {name: jax.tree.map(_in_float32, part) for name, part in w.items()}
        weights = jax.tree.leaves({**products, "embed": w["embed"]})
        return program.step(weights, cache, token, position)

    exported: Any = jax.export.export(jax.jit(step), platforms=["cpu"])(
        program.cache, *program.token
    )
    return exported.mlir_module_serialized


def _in_float32(array: Any) -> Any:
    return array.astype(jnp.float32) if array.dtype == jnp.int8 else array


def _converter() -> tuple[Any, ModuleType, ModuleType, ModuleType]:
    """The parts of litert-converter that need no other package."""
    try:
        from litert_converter import converter_api_ext
        from litert_converter.mlir import ir, passmanager
        from litert_converter.mlir.dialects import stablehlo
    except ImportError as error:
        raise InputError(
            "--to litert needs two packages: pip install --no-deps litert-converter ai-edge-litert "
            f"({error})"
        ) from error
    return converter_api_ext, ir, stablehlo, passmanager
