"""Hugging Face folders of LlamaForCausalLM: config.json and *.safetensors."""

import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from llama_jax.config import InputError, ModelConfig, require
from llama_jax.convert import hf_config, hf_files, hf_text, hf_tokenizer, safetensors
from llama_jax.convert.hf_files import INDEX, SINGLE
from llama_jax.convert.source import Lazy, Source, from_rows, rows_shape, tensors
from llama_jax.convert.usage import Named
from llama_jax.data.tokenizer import Tokenizer
from llama_jax.runtime.files import AnyPath, json_text, read_json, shown

SHARD_BYTES = 5 * 10**9
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


def is_format(path: AnyPath) -> bool:
    """Whether a folder has the config.json of a Hugging Face model."""
    try:
        values = read_json(path / "config.json")
    except InputError:
        return False
    return "model_type" in values or "architectures" in values


def read(path: Path, named: Named = "own") -> Source:
    """Read a folder, once every tensor is there with the right shape and there are no others.

    Raises InputError that names the settings, tensors or files that do not fit.
    """
    values = read_json(path / "config.json")
    stored, notes = hf_files.map_tensors(path)
    for name in [n for n in stored if n.startswith("v_head.")]:
        notes.append(f"Left out: {name}, of a value head (TRL).")
        del stored[name]
    tied = bool(values.get("tie_word_embeddings", False))
    changes = []
    head = their_name("head", None)
    if tied and head in stored:  # some programs store it all the same
        embed = stored.get(their_name("embed", None))
        same = embed is not None and np.array_equal(_bits(embed), _bits(stored[head]))
        require(same, f"{path}: {head} differs from the embedding, yet tie_word_embeddings=true")
        changes.append(f"{head} equals the embedding that it is tied to and is not kept twice.")
        del stored[head]
    dtypes = {str(array.dtype) for array in stored.values()}
    dtype = dtypes.pop() if len(dtypes) == 1 else "float32"
    notes += _corrected(values, stored)
    config, more = hf_config.from_hf(values, path / "config.json", dtype)
    check_names(path, stored, config, their_name)

    def tensor(name: str, layer: int | None) -> Lazy:
        return from_rows(name, stored[their_name(name, layer)], config, interleaved=False)

    words = hf_text.read(path, values, config.vocab_size, named).own_ends
    return Source(
        format="hf",
        path=path,
        config=config,
        tokenizer=words.tokenizer,
        tensor=tensor,
        changes=tuple(changes),
        origin={"transformers": values.get("transformers_version"), "name": path.name},
        usage=words.usage,
        notes=(*notes, *more, *words.notes),
    )


def _corrected(values: dict[str, Any], stored: Mapping[str, np.ndarray]) -> list[str]:
    """Put right what a config.json that was not kept up says of the weights; and notes."""
    notes = []
    embed, head = (stored.get(their_name(name, None)) for name in ("embed", "head"))
    said = values.get("vocab_size")
    rows = next(iter(embed.shape), None) if embed is not None else None
    both = head is None or head.shape[:1] == (rows,)
    if type(said) is int and rows is not None and rows != said and both:
        values["vocab_size"] = rows
        notes.append(f"config.json says vocab_size={said}: the weights' {rows} rows were taken.")
    if values.get("quantization_config"):
        notes.append("Left out: quantization_config, since the weights here are not quantised.")
    return notes


def _bits(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1).view(np.uint8)


def check_names(path: Path, stored: Mapping[str, Lazy], config: ModelConfig, named: Any) -> None:
    """Raise one InputError that lists missing, extra and wrongly shaped tensors.

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
    problems += [f"{shown(name)} is not part of a Llama" for name in stored if name not in wanted]
    problems += [
        f"{name} is {list(stored[name].shape)}, not {list(shape)}"
        for name, shape in wanted.items()
        if name in stored and tuple(stored[name].shape) != shape
    ]
    listed = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" * (len(problems) > 8))
    require(not problems, f"{path} does not fit its configuration: {listed}")


def write(source: Source, folder: Path, name: str, variant: str) -> list[str]:
    """Write a folder that transformers loads: weights in shards, configuration, tokenizer files.

    Returns notes for the report.
    """
    config = source.config
    tokenizer = None if source.tokenizer is None else Tokenizer.from_bytes(source.tokenizer)
    bos, ends = 1, [*source.usage.end_ids] or [2]
    texts = {}
    if tokenizer is not None:  # refused before the first tensor is written
        bos, ends = tokenizer.bos_id, [tokenizer.eos_id, *source.usage.end_ids]
        texts = hf_tokenizer.files(tokenizer, config.max_seq_len, source.usage)
    values, notes = hf_config.to_hf(config, bos, ends if len(ends) > 1 else ends[0])
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
    files = [SINGLE]
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
    ids = {name: values[name] for name in ("bos_token_id", "eos_token_id")}
    generation = dict(source.usage.generation) or {"do_sample": False}
    _write_json(folder / hf_text.GENERATION, ids | generation)
    for file, content in texts.items():
        (folder / file).write_bytes(content)
    if texts:
        return notes
    kept = ("end_ids", "generation")
    return notes + source.usage.left_out(kept, "a Hugging Face folder without a tokenizer")


def _write_json(file: Path, values: Any) -> None:
    file.write_text(json_text(values, indent=2) + "\n")
