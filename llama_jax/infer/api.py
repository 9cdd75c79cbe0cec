"""The Python interface: load a model folder or a run folder, compute logits, continue text."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from etils import epath

from llama_jax.checkpoint import load_params
from llama_jax.config import ModelConfig, read_config, require
from llama_jax.data.tokenizer import Tokenizer
from llama_jax.infer.generate import generate_tokens, prepare
from llama_jax.model.llama import apply
from llama_jax.model.weights import abstract_params

__all__ = ["Model", "apply", "generate", "load"]


@dataclass(frozen=True)
class Model:
    """What generates text: a configuration, the parameter tree, and the tokenizer."""

    config: ModelConfig
    params: dict[str, Any]
    tokenizer: Tokenizer

    @cached_property
    def prepared(self) -> dict[str, Any]:
        """The parameters as generation reads them; kept, so that only the first call copies."""
        return prepare(self.params, self.config)


def load(path: epath.PathLike) -> Model:
    """Read a model folder, or a run folder: its newest checkpoint that verifies.

    Parameters are float32 or bfloat16 as the configuration says, on the default device.

    Raises:
      InputError: `path` is neither, its config.json or tokenizer.model cannot be used, or they do
        not fit each other.
      CheckpointError: no checkpoint verifies.
    """
    folder = epath.Path(path).expanduser()
    config, _ = read_config(folder)
    tokenizer = Tokenizer.load(folder)
    require(
        tokenizer.vocab_size <= config.vocab_size,
        f"{folder}: tokenizer.model has {tokenizer.vocab_size} pieces and the model "
        f"{config.vocab_size} rows; the tokenizer is another model's",
    )
    return Model(config, load_params(folder, abstract_params(config)), tokenizer)


def generate(
    model: Model,
    prompt: str,
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
) -> str:
    """The prompt and its continuation, which ends at EOS, after `max_new_tokens` tokens, or at the
    end of the context. Temperature 0 is greedy; `""` starts from BOS alone.

    Raises:
      InputError: the prompt is longer than the context or no valid text, or a sampling setting is
        out of range.
    """
    tokenizer = model.tokenizer
    ids = tokenizer.encode(prompt, bos=True)
    (new,) = generate_tokens(
        model.prepared,
        [ids],
        config=model.config,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seeds=[seed],
        eos_id=tokenizer.eos_id,
    )
    return prompt + tokenizer.decode(new, after=ids)
