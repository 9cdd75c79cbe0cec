"""Hugging Face folders of LlamaForCausalLM: config.json and *.safetensors."""

import itertools
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from llama_jax.config import InputError, ModelConfig, require
from llama_jax.convert import hf_config, hf_tokenizer, safetensors
from llama_jax.convert.source import Lazy, Source, from_rows, rows_shape, tensors
from llama_jax.data.tokenizer import MODEL_FILE, Tokenizer

INDEX = "model.safetensors.index.json"
SHARD_BYTES = 5 * 10**9
_JSON_BYTES = 64 << 20
OUTER = {"embed": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}
LAYER = {
    "attn_norm": "input_layernorm",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "mlp_norm": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}


def their_name(name: str, layer: int | None) -> str:
    """Hugging Face's name of our tensor."""
    if layer is None:
        return f"{OUTER[name]}.weight"
    return f"model.layers.{layer}.{LAYER[name]}.weight"


def is_format(path: Path) -> bool:
    """Whether a folder has the config.json of a Hugging Face model."""
    try:
        values = json.loads((path / "config.json").read_bytes())
        return "model_type" in values or "architectures" in values
    except (OSError, ValueError, TypeError, RecursionError):
        return False


def read(path: Path) -> Source:
    """A folder, once every tensor is there with the right shape and none is left over.

    Raises InputError that names the settings, tensors or files that do not fit.
    """
    values = read_json(path / "config.json")
    stored = _map_all(path)
    tied = bool(values.get("tie_word_embeddings", False))
    notes = []
    head = their_name("head", None)
    if tied and head in stored:  # some programs store it all the same
        embed = stored.get(their_name("embed", None))
        same = embed is not None and np.array_equal(_bits(embed), _bits(stored[head]))
        require(same, f"{path}: {head} is another than the embedding, yet tie_word_embeddings=true")
        notes.append(f"{head} equals the embedding that it is tied to and is not kept twice.")
        del stored[head]
    for name in [n for n in stored if n.endswith("rotary_emb.inv_freq")]:
        del stored[name]  # computed from the configuration, stored by old versions
    dtypes = {str(array.dtype) for array in stored.values()}
    dtype = dtypes.pop() if len(dtypes) == 1 else "float32"
    config, more = hf_config.from_hf(values, path / "config.json", dtype)
    check_names(path, stored, config, their_name)

    def tensor(name: str, layer: int | None) -> Lazy:
        return from_rows(name, stored[their_name(name, layer)], config, interleaved=False)

    tokenizer = path / MODEL_FILE
    return Source(
        format="hf",
        path=path,
        config=config,
        tokenizer=tokenizer.read_bytes() if tokenizer.exists() else None,
        tensor=tensor,
        notes=(*notes, *more),
        origin={"transformers": values.get("transformers_version"), "name": path.name},
    )


def _bits(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1).view(np.uint8)


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises InputError if it is none."""
    try:
        require(file.stat().st_size <= _JSON_BYTES, f"{file} is too large to be a description")
        values = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file} cannot be read: {error!s:.120}") from error
    require(isinstance(values, dict), f"{file} must hold a JSON object")
    return values


def check_names(path: Path, stored: Mapping[str, Lazy], config: ModelConfig, named: Any) -> None:
    """Raise one InputError that lists what is missing, left over or of another shape.

    `named(name, layer)` is the name in `stored` of our tensor.
    """
    # A hostile config may ask for 2^31 layers: nothing is listed beyond what can be there.
    most = len(stored) + 1
    wanted: dict[str, tuple[int, ...]] = {}
    for name, layer, _ in tensors(config):
        if len(wanted) > most:
            break
        wanted[named(name, layer)] = rows_shape(name, config)
    problems = [f"{name} is missing" for name in wanted if name not in stored]
    problems += [f"{name!r:.80} is not part of a Llama" for name in stored if name not in wanted]
    problems += [
        f"{name} is {list(stored[name].shape)}, not {list(shape)}"
        for name, shape in wanted.items()
        if name in stored and tuple(stored[name].shape) != shape
    ]
    shown = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" * (len(problems) > 8))
    require(not problems, f"{path} does not fit its configuration: {shown}")


def _map_all(path: Path) -> dict[str, np.ndarray]:
    """Every tensor of every file of the folder, by name."""
    if (path / INDEX).exists():
        index = read_json(path / INDEX).get("weight_map")
        require(
            isinstance(index, dict) and all(isinstance(f, str) for f in index.values()),
            f"{path / INDEX} has no weight_map of names to files",
        )
        files: Iterable[str] = sorted({*index.values()})  # pyrefly: ignore[missing-attribute]
        for file in files:
            plain = Path(file).name == file and file.endswith(".safetensors") and "\\" not in file
            require(plain, f"{path / INDEX} names {file!r:.80}, which is no file of the folder")
            require((path / file).is_file(), f"{path / file} is missing, which the index names")
    else:
        index, files = None, sorted(f.name for f in path.glob("*.safetensors"))
        others = sorted(f.name for f in path.glob("pytorch_model*.bin"))
        require(
            files,
            f"{path} has no *.safetensors"
            + (
                f"; {others[0]} is not read: save the model with safe serialization"
                if others
                else ""
            ),
        )
    stored: dict[str, np.ndarray] = {}
    for file in files:
        here = safetensors.map_tensors(path / file)
        twice = next((name for name in here if name in stored), None)
        require(twice is None, f"{path / file}: {twice!r:.80} is in another file as well")
        stored |= here
        if index is not None:
            astray = next((name for name in here if index.get(name) != file), None)
            require(astray is None, f"{path / file} holds {astray!r:.80}, unlike {INDEX} says")
    if index is not None:
        gone = next((name for name in index if name not in stored), None)
        require(gone is None, f"{path / INDEX} names {gone!r:.80}, which no file holds")
    return stored


def write(source: Source, folder: Path, name: str, variant: str) -> list[str]:
    """A folder that transformers loads: weights in shards, configuration, tokenizer files.

    Returns notes for the report.
    """
    config = source.config
    tokenizer = None if source.tokenizer is None else Tokenizer.from_bytes(source.tokenizer)
    ids = None if tokenizer is None else (tokenizer.bos_id, tokenizer.eos_id)
    values, notes = hf_config.to_hf(config, ids)
    dtype = {v.name: k for k, v in safetensors.DTYPES.items()}[config.param_dtype]
    item = jnp.dtype(config.param_dtype).itemsize
    shards: list[dict[str, tuple[tuple[int, ...], str]]] = [{}]
    size = total = 0
    for tensor, layer, weight in tensors(config):
        count = math.prod(weight.shape) * item
        if shards[-1] and size + count > SHARD_BYTES:
            shards.append({})
            size = 0
        size, total = size + count, total + count
        shards[-1][their_name(tensor, layer)] = (rows_shape(tensor, config), dtype)
    files = ["model.safetensors"]
    if len(shards) > 1:
        files = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
        index = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
        _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": index})
    stream = itertools.groupby(source.stream(interleaved=False), key=lambda part: part[:2])
    for file, shard in zip(files, shards, strict=True):
        with safetensors.Writer(folder / file, shard) as writer:
            for (tensor, layer), parts in itertools.islice(stream, len(shard)):
                writer.write(their_name(tensor, layer), (rows for _, _, rows in parts))
    _write_json(folder / "config.json", values)
    generation = {"bos_token_id": values["bos_token_id"], "eos_token_id": values["eos_token_id"]}
    _write_json(folder / "generation_config.json", generation | {"do_sample": False})
    if tokenizer is not None:
        for file, content in hf_tokenizer.files(tokenizer, config.max_seq_len).items():
            (folder / file).write_bytes(content)
    return notes


def _write_json(file: Path, values: Any) -> None:
    file.write_text(json.dumps(values, indent=2) + "\n")
