"""Llama 2 in JAX and Flax: `load`, `apply`, `generate`, `stream`, and the `llama-jax` command line.

The public names are imported on first use, so that `import llama_jax` and `llama-jax --help`
stay fast and a program that only prepares data never starts jax.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llama_jax.infer.api import generate, stream
    from llama_jax.infer.sampling_params import SamplingParams
    from llama_jax.model.llama import apply
    from llama_jax.models import Model, load

__version__ = "0.1.0"
__all__ = ["Model", "SamplingParams", "__version__", "apply", "generate", "load", "stream"]
_HOME = {
    "Model": "models",
    "SamplingParams": "infer.sampling_params",
    "apply": "model.llama",
    "generate": "infer.api",
    "load": "models",
    "stream": "infer.api",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"llama_jax.{_HOME[name]}"), name)
    raise AttributeError(f"module 'llama_jax' has no attribute {name!r}")
