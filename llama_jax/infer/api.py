"""The Python interface: load a model folder or a run folder, compute logits, continue text."""

import json
from dataclasses import dataclass
from typing import Any

from etils import epath

from llama_jax.checkpoint import load_params
from llama_jax.config import InputError, ModelConfig, TrainConfig, from_dict, require
from llama_jax.data.tokenizer import Tokenizer
from llama_jax.infer.generate import generate_tokens
from llama_jax.model.llama import apply
from llama_jax.model.weights import abstract_params

__all__ = ["Model", "apply", "generate", "load"]


@dataclass(frozen=True)
class Model:
    """What generates text: a configuration, the parameter tree, and the tokenizer."""

    config: ModelConfig
    params: dict[str, Any]
    tokenizer: Tokenizer


def load(path: epath.PathLike) -> Model:
    """Read a model folder, or a run folder: its newest checkpoint that verifies.

    Parameters are float32 or bfloat16 as the configuration says, on the default device.

    Raises:
      InputError: `path` is neither, its config.json or tokenizer.model cannot be used, or they do
        not fit each other.
      CheckpointError: no checkpoint verifies.
    """
    folder = epath.Path(path)
    config = read_config(folder)
    tokenizer = Tokenizer.load(folder)
    require(
        tokenizer.vocab_size <= config.vocab_size,
        f"{folder}: tokenizer.model has {tokenizer.vocab_size} pieces and the model "
        f"{config.vocab_size} rows; the tokenizer is another model's",
    )
    return Model(config, load_params(folder, abstract_params(config)), tokenizer)


def read_config(folder: epath.Path) -> ModelConfig:
    """The model of a model folder's or a run folder's config.json; InputError if it has none."""
    file = folder / "config.json"
    require(file.exists(), f"{folder} is no model folder and no run folder: it has no config.json")
    try:
        values = json.loads(file.read_text())
    except ValueError as error:
        raise InputError(f"{file} is not JSON: {error}") from error
    if isinstance(values, dict) and "model" in values:
        return from_dict(TrainConfig, values, where=str(file)).model
    if isinstance(values, dict):
        values.pop("format_version", None)
    return from_dict(ModelConfig, values, where=str(file))


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
        model.params,
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
