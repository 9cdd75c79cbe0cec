"""GGUF files run by llama.cpp: as it did once (tests/golden/llama_cpp.json), and anew.

In float32 its greedy tokens are ours. With other types it rounds activations as well, to float16,
bfloat16 or int8, where we compute in float32; so greedy tokens can part where two are nearly as
likely, and probabilities agree as closely as those roundings allow.
"""

import json
import subprocess
import sys
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax.convert import gguf
from llama_jax.model.llama import apply
from tests.convert.gguf_bytes import file_bytes, infos_of, settings_of
from tests.convert.models import params_of, source, tokenizer
from tests.golden import make_llama_cpp_goldens
from tests.golden.make_llama_cpp_goldens import CASES, FILE, PROMPTS, TEXTS, write

ROOT = Path(__file__).parents[2]
STORED = json.loads(FILE.read_text())["cases"]
LOGPROB = {"float16": 2e-3, "bfloat16": 2e-2, "q8_0": 5e-2, "q4_k": 5e-2}
EXACT = sorted(set(CASES) - set(LOGPROB))


@cache
def logits_of(config):
    return jax.jit(partial(apply, config=config))


def model_of(name, folder):
    """Our float32 parameters of a case, read from a file that needs no package to be written."""
    config, dtype, variant = CASES[name]
    if variant == "q4_k":  # what is kept in it is the numbers that we compute with
        pytest.importorskip("gguf", reason="gguf, which writes the file, is not installed")
        write(name, folder).rename(folder / "m.gguf")
        params = params_of(gguf.read(folder / "m.gguf"))
        params = jax.tree.map(lambda a: a.astype(jnp.float32), params)
        return replace(config, dtype="float32", param_dtype="float32"), params
    kind = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}[dtype]
    infos = infos_of(source(config, dtype), "Q8_0" if variant else kind)
    (folder / "m.gguf").write_bytes(file_bytes(settings_of(config), infos))
    params = jax.tree.map(lambda a: a.astype(jnp.float32), params_of(gguf.read(folder / "m.gguf")))
    return replace(config, dtype="float32", param_dtype="float32"), params


def check(name, found, folder):
    """What llama.cpp found agrees with what we compute of the same tokens."""
    config, params = model_of(name, folder)
    rows = [[*prompt, *tokens] for prompt, tokens in zip(PROMPTS, found["tokens"], strict=True)]
    tokens = np.zeros((len(rows), max(map(len, rows))), np.int32)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = row
    logprobs = np.asarray(jax.nn.log_softmax(logits_of(config)(params, jnp.asarray(tokens))))
    for i, prompt in enumerate(PROMPTS):
        ours = logprobs[i, len(prompt) - 1 :]
        for token, logprob in found["top"][i]:
            assert abs(ours[0, token] - logprob) < LOGPROB.get(name, 1e-4)
        if name in EXACT:
            greedy = ours[: len(found["tokens"][i])].argmax(axis=-1)
            assert greedy.tolist() == found["tokens"][i]
    assert found["ids"] == [tokenizer().encode(text, bos=True) for text in TEXTS]


@pytest.mark.parametrize("name", CASES)
def test_llama_cpp_computed_the_same(tmp_path, name):
    check(name, STORED[name], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_llama_cpp_computes_the_same(tmp_path, name):
    for package in ("gguf", "xllamacpp"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    command = [sys.executable, "-m", make_llama_cpp_goldens.__name__, write(name, tmp_path)]
    # In a process of its own: llama.cpp ends the process if it cannot load a file.
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    check(name, json.loads(done.stdout.splitlines()[-1]), tmp_path)
