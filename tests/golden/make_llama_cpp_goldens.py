"""Write what llama.cpp computes for GGUF files of ours: greedy tokens, their probabilities, ids.

Run once by hand, in an environment with this package and its extra [gguf], and with xllamacpp,
whose wheels hold a built llama.cpp:

    python -m tests.golden.make_llama_cpp_goldens [MODEL.gguf]

With a file it prints what llama.cpp makes of that one, as a line of JSON, and stores nothing.
The stored llama_cpp.json was made with xllamacpp 2026.10.11549 and gguf 0.19.0 on a CPU. For each
case it holds the greedy continuations of PROMPTS, the natural logarithms of the highest
probabilities after each, and the ids of TEXTS. tests/convert/test_llama_cpp.py compares them with
ours everywhere, and runs llama.cpp anew where xllamacpp is installed.
"""

import json
import sys
import tempfile
import urllib.request
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np

from llama_jax.convert import gguf_writer
from llama_jax.data.tokenizer import NUM_RESERVED
from tests.convert.models import GROUPED, SHAPES, V, source

FILE = Path(__file__).with_name("llama_cpp.json")
STEPS, TOP = 40, 5
PROMPTS = [[1], *np.random.default_rng(2).integers(260, V, (3, 20)).tolist()]
"""Token ids; longer than the 12 positions of an unextended context."""
TEXTS = [
    "Once upon a time", "  two  spaces\n\n\ttab ", "hé 日本 😀 \u2028", "<s> </s> [INST] <0x0A>",
    "a" * 50, " ", "",
]  # fmt: skip


def extended(scaling):
    """A model whose context of 48 was 12."""
    return replace(GROUPED, rope_scaling=scaling, rope_factor=4.0)


CASES = {
    **{name: (config, "float32", "") for name, config in SHAPES.items()},
    "linear": (extended("linear"), "float32", ""),
    "ntk": (extended("ntk"), "float32", ""),
    "yarn": (extended("yarn"), "float32", ""),
    "float16": (GROUPED, "float16", ""),
    "bfloat16": (GROUPED, "bfloat16", ""),
    "q8_0": (GROUPED, "float32", "q8_0"),
    "q4_k": (replace(GROUPED, d_model=256, head_dim=64, d_ff=512), "float32", "q4_k"),
}
"""Configuration, type of the tensors, variant of the file."""


def write(name, folder):
    """The GGUF file of a case."""
    config, dtype, variant = CASES[name]
    gguf_writer.write(source(config, dtype), folder, f"{name}.gguf", variant)
    return folder / f"{name}.gguf"


def run(path):
    """What llama.cpp makes of one file; see above."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx = 256
    params.n_parallel = 1
    params.warmup = False
    params.cpuparams.n_threads = 1
    params.verbosity = 0
    # Keys and values as they are: llama.cpp would round them to float16.
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = xllamacpp.Server(params)

    def post(what, body):
        request = urllib.request.Request(
            f"{server.listening_address}/{what}", json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )  # fmt: skip
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())

    def complete(prompt, steps, bias=()):
        return post(
            "completion",
            {
                "prompt": prompt,
                "n_predict": steps,
                "temperature": 0.0,
                "return_tokens": True,
                "n_probs": TOP,
                "cache_prompt": False,
                "logit_bias": bias,
            },
        )

    found = {"tokens": [], "top": [], "ids": []}
    for prompt in PROMPTS:
        found["tokens"].append(complete(prompt, STEPS - len(prompt))["tokens"])
        # It tells probabilities, which no bias changes, with whole characters only.
        no_bytes = [(token, False) for token in range(NUM_RESERVED)]
        (step,) = complete(prompt, 1, no_bytes)["completion_probabilities"]
        found["top"].append([(t["id"], round(t["logprob"], 6)) for t in step["top_logprobs"]])
    for text in TEXTS:
        body = {"content": text, "add_special": True, "parse_special": False}
        found["ids"].append(post("tokenize", body)["tokens"])
    return found


def main(argv):
    """All cases, into FILE; or one file, to stdout."""
    if argv:
        print(json.dumps(run(argv[0])))
        return
    with tempfile.TemporaryDirectory() as folder:
        cases = {name: run(write(name, Path(folder))) for name in CASES}
    versions = {name: version(name) for name in ("xllamacpp", "gguf")}
    FILE.write_text(json.dumps({"versions": versions, "cases": cases}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
