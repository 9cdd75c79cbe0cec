"""Exports a model as a StableHLO program with its weights; runs without this project.

    DST/  step.jax        jax.export: one token in, logits of the next one out; for CPUs and TPUs
          step.stablehlo  the same program in StableHLO's portable bytecode, for other compilers
          weights.npz     the arrays that it takes, in their order; bfloat16 as uint16
          tokenizer.model
          program.json    their types, the cache's shapes, the ids that begin and end a text
          run.py          continues a text, and prints its speed to stderr; needs jax, numpy,
                          sentencepiece and flatbuffers

Weights are arguments of the program, not constants in it, so it stays small. Quantised models stay
quantised.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from llama_jax.config import ModelConfig, require
from llama_jax.convert.staging import staged
from llama_jax.model.cache import decode, empty_cache, logits_of, unstack
from llama_jax.model.matrix import Int8Rows, merged
from llama_jax.models import open_model
from llama_jax.runtime.files import json_text
from llama_jax.runtime.places import expand

PLATFORMS = ("cpu", "tpu")
RUNNER = '''\
"""Continue a text, greedily: python run.py "Once upon a time" [TOKENS]"""
import json, sys, time
from pathlib import Path

import jax, numpy as np, sentencepiece
from jax import export

here = Path(__file__).parent
facts = json.loads((here / "program.json").read_text())
program = export.deserialize(bytearray((here / "step.jax").read_bytes()))
step, stored = jax.jit(program.call, donate_argnums=1), np.load(here / "weights.npz")
weights = [jax.numpy.asarray(stored[name].view(dtype)) for name, dtype in facts["weights"]]
empty = [np.zeros(shape, dtype) for shape, dtype in facts["cache"]]
cache = jax.device_put(empty, jax.devices()[0])  # as steps return it: one program for all
pieces = sentencepiece.SentencePieceProcessor(str(here / "tokenizer.model"))
ids = [*facts["begin"], *pieces.encode(sys.argv[1])] or [pieces.bos_id()]
end = min(len(ids) + int(sys.argv[2] if len(sys.argv) > 2 else 200), facts["context"])
begin, at = time.perf_counter(), 0
for at in range(end - 1):
    if at == 1:  # the first step may have been compiled
        begin = time.perf_counter()
    token, position = np.array([[ids[at]]], np.int32), np.array([at], np.int32)
    logits, cache = step(weights, cache, token, position)
    if at + 1 == len(ids):
        ids.append(int(np.argmax(logits[: facts["pieces"]])))
        if ids[-1] in facts["ends"]:
            break
seconds = time.perf_counter() - begin
print(pieces.decode(ids))
print(f"{at / seconds:.1f} tokens/s", file=sys.stderr)
'''


@dataclass(frozen=True)
class Program:
    """One decoding step with its cache, and its inputs."""

    config: ModelConfig
    weights: list[Any]
    structure: Any
    """Tree structure of the weights: a step takes them as a flat list."""
    cache: list[jax.ShapeDtypeStruct]
    """Keys and values of each layer in turn."""
    tokenizer: Any
    begin: tuple[int, ...]
    """Ids that every text begins with."""
    ends: tuple[int, ...]
    """Ids that end a text."""

    @property
    def token(self) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
        """A token [1,1] and its position [1]."""
        return jax.ShapeDtypeStruct((1, 1), jnp.int32), jax.ShapeDtypeStruct((1,), jnp.int32)

    def step(self, weights: Any, cache: Any, token: Any, position: Any) -> tuple[Any, list[Any]]:
        """(weights, cache, token, position) -> (logits [V], cache)."""
        w = jax.tree.unflatten(self.structure, weights)
        pairs = list(zip(cache[::2], cache[1::2], strict=True))
        x, written = decode(w, token, pairs, position, config=self.config)
        logits = logits_of(w, x) if "head" in w else _tied_logits(w["embed"], x)
        return logits[0], jax.tree.leaves(written)

    def write_runner(self, place: Path, runner: str, **more: Any) -> None:
        """Write the tokenizer, the script that continues a text, and its settings as JSON."""
        facts = {
            "format_version": 1,
            "context": self.config.max_seq_len,
            "pieces": self.tokenizer.vocab_size,
            "begin": list(self.begin),
            "ends": list(self.ends),
            **more,
        }
        (place / "tokenizer.model").write_bytes(self.tokenizer.model_bytes)
        (place / "program.json").write_text(json_text(facts, indent=1) + "\n")
        (place / "run.py").write_text(runner)

    def summary(self, src: str, target: Path, form: str, dtype: str) -> list[str]:
        """Lines for people on what was written."""
        size = sum(array.nbytes for array in self.weights)
        return [
            f"from        {src}",
            f"to          {target} ({form})",
            f"weights     {size:,} bytes in {len(self.weights)} arrays, computed with in {dtype}",
            f"context     {self.config.max_seq_len} tokens",
            f'try         python {target / "run.py"} "Once upon a time"',
        ]


def program_of(src: str, target: Path, dtype: Literal["float32", "bfloat16"]) -> Program:
    """The program of a model in any format, which computes in `dtype`.

    Raises:
      InputError: `src` is no language model with a tokenizer, or `target` exists.
      CheckpointError: the model's weights do not verify.
    """
    opened = open_model(src)
    require(opened.config.head == "language", f"{src} is a reward model: it writes no text")
    require(opened.tokenizer is not None, f"{src} has no tokenizer: the program reads token ids")
    require(not target.exists(), f"{target} exists: name a new folder")
    tokenizer: Any = opened.tokenizer
    # Operations that every compiler of StableHLO knows.
    config = replace(opened.config, dtype=dtype, attention="xla", remat="none")
    w = jax.jit(unstack, static_argnames="config")(merged(opened.read(), config), config=config)
    if config.tie_embeddings:
        del w["head"]  # a step reads the embedding: a file holds it once
    weights, structure = jax.tree.flatten(w)
    cache = jax.tree.leaves(jax.eval_shape(lambda: empty_cache(config, 1, config.max_seq_len)))
    begin = (tokenizer.bos_id,) if opened.usage.add_bos else ()
    ends = tuple(dict.fromkeys((tokenizer.eos_id, *opened.usage.end_ids)))
    return Program(config, weights, structure, cache, tokenizer, begin, ends)


def export_program(
    src: str, dst: str, *, dtype: Literal["float32", "bfloat16"] = "float32"
) -> list[str]:
    """Write the folder described above for a model in any format; returns lines for people.

    dtype: compute dtype, and that of the weights that are not quantised. Raises what `program_of`
    raises.
    """
    target = Path(expand(dst)).absolute()
    program = program_of(src, target, dtype)
    shapes = [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in program.weights]
    stepped = jax.jit(program.step, donate_argnums=1)
    exported: Any = jax.export.export(stepped, platforms=PLATFORMS)(
        shapes, program.cache, *program.token
    )
    arrays = {f"w{number:04d}": np.asarray(array) for number, array in enumerate(program.weights)}
    facts = {
        "weights": [[name, array.dtype.name] for name, array in arrays.items()],
        "cache": [[list(array.shape), array.dtype.name] for array in program.cache],
        "platforms": list(PLATFORMS),
    }
    with staged(target, is_file=False) as place:
        (place / "step.jax").write_bytes(exported.serialize())
        (place / "step.stablehlo").write_bytes(exported.mlir_module_serialized)
        with (place / "weights.npz").open("wb") as file:
            plain: dict[str, Any] = {name: _plain(array) for name, array in arrays.items()}
            np.savez(file, **plain)
        program.write_runner(place, RUNNER, **facts)
    return program.summary(src, target, f"StableHLO for {' and '.join(PLATFORMS)}", dtype)


def _tied_logits(embed: Any, x: Float[Array, "1 1 D"]) -> Float[Array, "1 V"]:
    """`logits_of` by the embedding as it lies, without a copy for the head."""
    packed = isinstance(embed, Int8Rows)
    table = (embed.values if packed else embed).astype(jnp.float32)
    logits = jnp.einsum("btd,vd->bv", x.astype(jnp.float32), table)
    return logits * embed.scale[None] if packed else logits


def _plain(array: np.ndarray) -> np.ndarray:
    """Without types that NumPy's files cannot hold."""
    return array.view(np.uint16) if array.dtype.name == "bfloat16" else array
