"""Selects the model files of a Hugging Face folder, and reads their tensors.

A folder may have been saved into twice, or hold the same weights in several formats, an adapter
beside its base model, or an index of files that are gone. The order is that of transformers:
model.safetensors, then the files that model.safetensors.index.json names, then any others.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from llama_jax.config import InputError, require
from llama_jax.convert import safetensors
from llama_jax.runtime.files import is_file_name, read_json, shown

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
_SHARD = re.compile(r"(.*)-([0-9]{5})-of-([0-9]{5})\.safetensors")
_OTHERS = (
    "*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", "pytorch_model*.index.json",
    "consolidated*.pth", "*.gguf", "tf_model.h5", "flax_model.msgpack",
)  # fmt: skip
_BUFFERS = ("rotary_emb.inv_freq", "rotary_emb.cos_cached", "rotary_emb.sin_cached")
_SHOWN = 4


def map_tensors(path: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    """Every tensor of a folder's model by name, and notes on what was not read.

    Buffers that are computed from the configuration are ignored. Raises InputError for files that
    are missing, damaged, or hold a tensor twice.
    """
    files, named = _chosen(path)
    stored: dict[str, np.ndarray] = {}
    for file in files:
        here = safetensors.map_tensors(path / file)
        twice = next((name for name in here if name in stored), None)
        require(twice is None, f"{path / file}: {shown(twice)} is in another file as well")
        stored |= here
    stored = {name: array for name, array in stored.items() if not name.endswith(_BUFFERS)}
    notes = _ignored(path, files)
    if named is not None:
        differ = sorted({n for n in named if not n.endswith(_BUFFERS)} ^ set(stored))
        if differ:
            notes.append(
                f"{INDEX} and its files disagree about {len(differ)} tensors, such as "
                f"{shown(differ[0])}: the files were taken at their word."
            )
    return stored, notes


def _chosen(path: Path) -> tuple[list[str], list[str] | None]:
    """Names of the files that are the model; and what the index names, if it was asked."""
    if (path / SINGLE).exists():
        return [SINGLE], None
    if (path / INDEX).exists():
        index = read_json(path / INDEX).get("weight_map")
        sound = isinstance(index, dict) and all(isinstance(f, str) for f in index.values())
        if not sound or not index:
            raise InputError(f"{path / INDEX} has no weight_map of names to files")
        files = sorted({*index.values()})
        for file in files:
            plain = is_file_name(file) and file.endswith(".safetensors")
            require(plain, f"{path / INDEX} names {shown(file)}, which is not a file of the folder")
            _require_there(path, file, "which the index names")
        return files, list(index)
    files = sorted(f.name for f in path.glob("*.safetensors") if not _is_aside(f.name))
    if not files:
        raise InputError(_nothing(path))
    for shard in filter(None, map(_SHARD.fullmatch, files)):
        for i in range(min(int(shard[3]), 1000)):
            file = f"{shard[1]}-{i + 1:05}-of-{shard[3]}.safetensors"
            _require_there(path, file, f"one of the {int(shard[3])} that {shard[0]} is of")
    return files, None


def _is_aside(name: str) -> bool:
    """Files that lie in folders of models and are none."""
    return name.startswith(("adapter", "consolidated", "optimizer", "training"))


def _require_there(path: Path, file: str, why: str) -> None:
    if not (path / file).is_file():
        begun = any(path.glob(".cache/huggingface/**/*.incomplete"))
        more = " (a download was begun and not ended)" if begun else ""
        raise InputError(f"{path / file} is missing, {why}{more}: download the folder again")


def _nothing(path: Path) -> str:
    """Why a folder without safetensors is not read, and what to do."""
    if (path / ADAPTER_CONFIG).exists():
        return adapter(path)
    pickles = sorted(f.name for f in path.glob("pytorch_model*.bin"))
    if pickles:
        return (
            f"{path} has no *.safetensors; {pickles[0]} is a pickle, which is never loaded: save "
            'the model with safe serialization, as with AutoModelForCausalLM.from_pretrained("'
            f'{path.name}").save_pretrained("NEW", safe_serialization=True)'
        )
    return (
        f"{path} has no *.safetensors: the weights are missing. Download all files of the model; "
        "of a gated one, after accepting its licence and logging in"
    )


def adapter(path: Path) -> str:
    """Advice for the folder of a LoRA adapter."""
    base = "its base model"
    try:
        name = read_json(path / ADAPTER_CONFIG).get("base_model_name_or_path")
        base = name if isinstance(name, str) and name else base
    except InputError:
        pass
    return (
        f"{path} is a LoRA adapter (PEFT) of {shown(base)} and no whole model: merge it first, as "
        "with PeftModel.from_pretrained(BASE, ADAPTER).merge_and_unload().save_pretrained(NEW), "
        "and name the new folder"
    )


def _ignored(path: Path, chosen: Sequence[str]) -> list[str]:
    """Notes on the weights that lie beside the chosen ones."""
    found = sorted({f.name for pattern in _OTHERS for f in path.glob(pattern)} - {*chosen})
    notes = []
    if ADAPTER in found:
        notes.append(f"{ADAPTER} is a LoRA adapter (PEFT) and was not read: the base model was.")
    rest = [name for name in found if not name.startswith("adapter")]
    if SINGLE not in chosen:
        rest = [name for name in rest if name != INDEX]
    if rest:
        more = f" and {len(rest) - _SHOWN} more" if len(rest) > _SHOWN else ""
        beside = chosen[0] + (f" and {len(chosen) - 1} more that were" * (len(chosen) > 1))
        notes.append(f"Not read: {', '.join(rest[:_SHOWN])}{more}, beside {beside}.")
    return notes
