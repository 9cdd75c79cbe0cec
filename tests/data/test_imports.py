"""The package runs where neither jax, tensorflow nor torch is wanted."""

import subprocess
import sys

CODE = """
import sys
class Blocked:
    def find_spec(name, path=None, target=None):
        if name.split(".")[0] in ("tensorflow", "torch"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocked)
import {modules}
print(sorted({{m.split(".")[0] for m in sys.modules}} & {{{heavy}}}))
"""


def loaded(modules: str, heavy: str) -> str:
    code = CODE.format(modules=modules, heavy=heavy)
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()


def test_no_module_brings_in_jax():
    names = (
        "tokenizer grow packing textfiles sources shards prepare loader corpora.builders formats"
    )
    modules = ", ".join(f"llama_jax.data.{name}" for name in names.split())
    assert loaded(modules, "'jax', 'jaxlib', 'flax'") == "[]"


def test_the_tokenizer_is_light():
    heavy = "'jax', 'grain', 'tensorflow_datasets', 'apache_beam', 'etils', 'google'"
    modules = "llama_jax.data.tokenizer, llama_jax.data.prepare, llama_jax.data.loader"
    assert loaded(modules, heavy) == "[]"
