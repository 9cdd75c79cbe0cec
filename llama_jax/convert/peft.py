"""LoRA adapter folders in PEFT's format: adapter_config.json, adapter_model.safetensors.

For a matrix of rows [out,in] they hold lora_A [r,in] and lora_B [out,r], which stand for
W + scale B A. Ours are A [*inputs,r] and B [r,*outputs], the same numbers transposed.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from llama_jax.config import MATRICES, InputError, LoraConfig, ModelConfig, require
from llama_jax.convert import safetensors
from llama_jax.convert.hf import LAYER
from llama_jax.convert.hf_files import ADAPTER, ADAPTER_CONFIG
from llama_jax.model.weights import A, B, adapter_inputs, layer_weights
from llama_jax.runtime.files import json_text, read_json, shown

_THEIRS = {A: "lora_A", B: "lora_B"}
_PLAIN = {
    "bias": "none", "use_dora": False, "fan_in_fan_out": False, "rank_pattern": {},
    "alpha_pattern": {}, "modules_to_save": None, "layers_to_transform": None,
    "layer_replication": None, "use_qalora": False, "alora_invocation_tokens": None,
    "target_parameters": None, "lora_bias": False, "trainable_token_indices": None,
    "use_bdlora": None, "kasa_config": None, "arrow_config": None, "monteclora_config": None,
}  # fmt: skip
"""Settings whose other values change what the tensors mean."""


_BASE_AS_IT_IS = (None, "gaussian", "eva", "orthogonal")
"""Names of init_lora_weights that leave the base as it is; others, such as PiSSA's, move a part of
it into the adapters, which then belong to what is left of it."""


class PeftConfig(NamedTuple):
    """The settings of adapter_config.json."""

    rank: int
    alpha: float
    base: str
    """Name or path of the model that the adapters belong to."""


def is_format(path: Path) -> bool:
    """Whether a folder holds adapters and no model of its own."""
    return (path / ADAPTER_CONFIG).is_file() and not (path / "config.json").exists()


def read_config(path: Path) -> PeftConfig:
    """Read adapter_config.json. Raises InputError for damaged settings, or a method other than
    plain LoRA."""
    file = path / ADAPTER_CONFIG
    values = read_json(file)
    kind: Any = values.get("peft_type")
    rank: Any = values.get("r")
    alpha: Any = values.get("lora_alpha")
    base: Any = values.get("base_model_name_or_path")
    require(kind == "LORA", f"{file}: peft_type {shown(kind)} is not supported, only LORA is")
    require(type(rank) is int and rank > 0, f"{file}: r={shown(rank)} must be a positive integer")
    sound = type(alpha) in (int, float) and 0 < alpha < math.inf
    require(sound, f"{file}: lora_alpha={shown(alpha)} must be a positive number")
    require(isinstance(base, str) and base, f"{file} names no base_model_name_or_path")
    for name, plain in _PLAIN.items():
        found = values.get(name, plain)
        require(
            found == plain or not found,
            f"{file}: {name}={shown(found)} is not supported; merge the adapter with PEFT instead",
        )
    begun = values.get("init_lora_weights", True)
    require(
        isinstance(begun, bool) or begun in _BASE_AS_IT_IS,
        f"{file}: init_lora_weights={shown(begun)} also changes the base: with PEFT, save the "
        "adapters for the original base (path_initial_model_for_weight_conversion), or merge them",
    )
    # With rsLoRA the scale is alpha over the root of the rank.
    alpha = float(alpha) * (math.sqrt(rank) if values.get("use_rslora") else 1.0)
    return PeftConfig(rank, alpha, base)


def read(path: Path, model: ModelConfig) -> tuple[LoraConfig, dict[str, np.ndarray]]:
    """The adapters of a folder for a model of this shape: settings, and `q_a`, `q_b`, ... float32
    [L,...] in our layout.

    Raises InputError that lists missing, extra and wrongly shaped tensors.
    """
    config = read_config(path)
    require((path / ADAPTER).is_file(), f"{path / ADAPTER} is missing: save it as safetensors")
    stored = safetensors.map_tensors(path / ADAPTER)
    targets = tuple(n for n in MATRICES if _name(n, 0, A) in stored)
    if not targets:
        raise InputError(f"{path / ADAPTER} has no adapter of a matrix of a Llama's first layer")
    lora, L = LoraConfig(rank=config.rank, alpha=config.alpha, targets=targets), model.num_layers
    shapes = _shapes(model, lora)
    wanted = {_name(n, i, end): shape for (n, end), shape in shapes.items() for i in range(L)}
    problems = [f"{name} is missing" for name in wanted if name not in stored]
    problems += [f"{shown(name, 120)} is not known" for name in stored if name not in wanted]
    problems += [
        f"{name} is {list(stored[name].shape)}, not {list(shape)}"
        for name, shape in wanted.items()
        if name in stored and stored[name].shape != shape
    ]
    more = f"; and {len(problems) - 4} more" * (len(problems) > 4)
    require(
        not problems,
        f"{path} does not fit rank {lora.rank} and the model that it names: "
        f"{'; '.join(problems[:4])}{more}",
    )
    table = layer_weights(model)
    factors = {}
    for name, end in shapes:
        n = adapter_inputs(name)
        sides = table[name].shape[:n] if end == A else table[name].shape[n:]
        whole = [np.asarray(stored[_name(name, i, end)], np.float32).T for i in range(L)]
        shape = (*sides, lora.rank) if end == A else (lora.rank, *sides)
        factors[name + end] = np.stack([w.reshape(shape) for w in whole])
    return lora, factors


def write(
    folder: Path,
    lora: LoraConfig,
    factors: Mapping[str, np.ndarray],
    model: ModelConfig,
    base: str,
) -> None:
    """Write adapter_config.json and adapter_model.safetensors, float32, into an existing folder."""
    shapes = _shapes(model, lora)
    order = [(n, i, end) for i in range(model.num_layers) for n, end in shapes]
    header = {_name(n, i, end): (shapes[n, end], "F32") for n, i, end in order}
    with safetensors.Writer(folder / ADAPTER, header) as writer:
        for n, i, end in order:
            w = np.asarray(factors[n + end][i], np.float32)
            flat = w.reshape(-1, lora.rank) if end == A else w.reshape(lora.rank, -1)
            writer.write(_name(n, i, end), [np.ascontiguousarray(flat.T)])
    values = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.scale * lora.rank,
        "lora_dropout": 0.0,
        "target_modules": [LAYER[n].split(".")[1] for n in lora.targets],
        "inference_mode": True,
        "init_lora_weights": True,
        "use_rslora": False,
        **_PLAIN,
    }
    (folder / ADAPTER_CONFIG).write_text(json_text(values, indent=2) + "\n")


def _name(name: str, layer: int, end: str) -> str:
    return f"base_model.model.model.layers.{layer}.{LAYER[name]}.{_THEIRS[end]}.weight"


def _shapes(model: ModelConfig, lora: LoraConfig) -> dict[tuple[str, str], tuple[int, int]]:
    """Their shape of each factor, by our name and its ending."""
    table, found = layer_weights(model), {}
    for name in lora.targets:
        shape, n = table[name].shape, adapter_inputs(name)
        found[name, A] = (lora.rank, math.prod(shape[:n]))
        found[name, B] = (math.prod(shape[n:]), lora.rank)
    return found
