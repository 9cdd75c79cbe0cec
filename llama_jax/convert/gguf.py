"""GGUF with the architecture "llama", as llama.cpp reads and writes it, the tokenizer inside.

Matrices are rows [out, in] under llama.cpp's names, rotary planes interleaved, norms F32. Reading
needs nothing but NumPy (gguf_file.py); gguf_writer.py writes.
"""

import math
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from llama_jax.config import InputError, ModelConfig, require
from llama_jax.convert.gguf_file import MAGIC, GgufFile, read_file
from llama_jax.convert.source import Lazy, Source, from_rows, rows_shape, tensors
from llama_jax.data.sentencepiece_proto import KIND_NUMBERS, Piece, Vocabulary
from llama_jax.data.tokenizer import Tokenizer

NAMES = {
    "embed": "token_embd.weight",
    "attn_norm": "blk.{}.attn_norm.weight",
    "q": "blk.{}.attn_q.weight",
    "k": "blk.{}.attn_k.weight",
    "v": "blk.{}.attn_v.weight",
    "o": "blk.{}.attn_output.weight",
    "mlp_norm": "blk.{}.ffn_norm.weight",
    "gate": "blk.{}.ffn_gate.weight",
    "up": "blk.{}.ffn_up.weight",
    "down": "blk.{}.ffn_down.weight",
    "norm": "output_norm.weight",
    "head": "output.weight",
}
"""Of our tensors in llama.cpp; {} is the layer."""

_WITHOUT_EFFECT = {"vocab_size", "rope.scaling.finetuned", "tensor_data_layout"}
_KINDS = {number: kind for kind, number in KIND_NUMBERS.items()}


def is_format(path: Path) -> bool:
    """A file that begins with "GGUF"."""
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def read(path: Path) -> Source:
    """The model and the tokenizer in a GGUF file.

    Raises InputError for a damaged file, another architecture, a setting that we do not have, and
    for missing, additional or wrongly shaped tensors, which it lists.
    """
    file = read_file(path)
    config = _config(file)
    _require_tensors(file, config)

    def tensor(name: str, layer: int | None) -> Lazy:
        rows = file.tensor(NAMES[name].format(layer))
        return from_rows(name, rows, config, interleaved=True)

    tokenizer, notes = _tokenizer(file, config)
    notes.append("rotary rows of q and k permuted from interleaved to half-split")
    if any(info.type == "Q8_0" for info in file.tensors.values()):
        notes.append("Q8_0 multiplied out to float32, exactly")
    general = {k: v for k, v in file.values.items() if k.startswith("general.")}
    origin = {k: v for k, v in general.items() if isinstance(v, str | int | float)}
    return Source("gguf", path, config, tokenizer, tensor, tuple(notes), origin)


class _Settings:
    """The keys of one file, each taken once, so that what nobody took can be named."""

    def __init__(self, file: GgufFile):
        self.where = str(file.path)
        found = file.values.get("general.architecture")
        require(found == "llama", f"{self.where}: architecture {found!r:.40} is not llama")
        self._values = {
            key.removeprefix("llama."): value
            for key, value in file.values.items()
            if key.startswith("llama.")
        }

    def number(self, key: str, default: int | float | None = None) -> Any:
        """An integer or a float, but no list, which would give each layer its own."""
        value = self._values.pop(key, default)
        require(value is not None, f"{self.where} lacks llama.{key}")
        fits = isinstance(value, int | float) and not isinstance(value, bool)
        fits = fits and math.isfinite(value)
        require(fits, f"{self.where}: llama.{key}={value!r:.40} must be a finite number")
        return value

    def count(self, key: str, default: int | None = None) -> int:
        """A whole number."""
        value = self.number(key, default)
        require(isinstance(value, int), f"{self.where}: llama.{key}={value} must be whole")
        return value

    def text(self, key: str, default: str) -> str:
        """A string."""
        value = self._values.pop(key, default)
        require(isinstance(value, str), f"{self.where}: llama.{key}={value!r:.40} must be a string")
        return value

    def same(self, key: str, value: int) -> None:
        """Refuse any other value than this one; the key may be absent."""
        found = self.number(key, value)
        require(found == value, f"{self.where}: llama.{key}={found} is not supported, only {value}")

    def require_all_taken(self) -> None:
        """Refuse the keys that nobody asked for, which may change what the model computes."""
        left = sorted(set(self._values) - _WITHOUT_EFFECT)
        require(not left, f"{self.where}: settings {', '.join(left)} of llama are not supported")


def _config(file: GgufFile) -> ModelConfig:
    s = _Settings(file)
    D, N = s.count("embedding_length"), s.count("attention.head_count")
    require(N > 0, f"{s.where}: llama.attention.head_count={N} must be positive")
    H = s.count("attention.key_length", D // N)
    s.same("attention.value_length", H)
    s.same("rope.dimension_count", H)
    s.same("expert_count", 0)
    s.same("expert_used_count", 0)
    context = s.count("context_length")
    scaling, factor = _scaling(s, context)
    embedding = file.tensors.get(NAMES["embed"])
    if embedding is None:
        raise InputError(f"{s.where} lacks the tensor {NAMES['embed']}")
    stored = _stored_type(file)
    values = dict(
        vocab_size=embedding.shape[0],
        d_model=D,
        num_layers=s.count("block_count"),
        num_heads=N,
        num_kv_heads=s.count("attention.head_count_kv", N),
        head_dim=H,
        d_ff=s.count("feed_forward_length"),
        max_seq_len=context,
        norm_eps=_shortest(s.number("attention.layer_norm_rms_epsilon")),
        rope_theta=_shortest(s.number("rope.freq_base", 10_000.0)),
        rope_scaling=scaling,
        rope_factor=factor,
        tie_embeddings=NAMES["head"] not in file.tensors,
        dtype="bfloat16" if stored == "bfloat16" else "float32",
        param_dtype=stored,
    )
    s.require_all_taken()
    try:
        return ModelConfig(**values)  # type: ignore[arg-type]
    except InputError as error:
        raise InputError(f"{s.where}: {error}") from error


def _stored_type(file: GgufFile) -> str:
    """The type that holds every number of the file: that of its matrices, if they share one and
    the norms, which are always F32, fit it too; else float32."""
    types = {info.type for info in file.tensors.values() if len(info.shape) == 2}
    narrow = {"BF16": "bfloat16", "F16": "float16"}.get(types.pop()) if len(types) == 1 else None
    if narrow is None:
        return "float32"
    for name, info in file.tensors.items():
        if info.shape[1:] == () and info.type == "F32":
            norm = np.asarray(file.tensor(name)[...])
            with np.errstate(over="ignore"):
                kept = norm.astype(jnp.dtype(narrow)).astype(np.float32)
            if not np.array_equal(kept, norm, equal_nan=True):
                return "float32"
    return narrow


def _scaling(s: _Settings, context: int) -> tuple[str, float]:
    """How the context is extended, and by which factor."""
    scaling = s.text("rope.scaling.type", "none")
    known = scaling in ("none", "linear", "yarn")
    require(known, f"{s.where}: llama.rope.scaling.type={scaling!r:.40} is not supported")
    factor = _shortest(s.number("rope.scaling.factor", 1.0))
    require(factor >= 1, f"{s.where}: llama.rope.scaling.factor={factor} must be 1 or more")
    original = s.count("rope.scaling.original_context_length", round(context / factor))
    if scaling == "none" or factor == 1:
        return "none", 1.0
    require(  # linear interpolation does not depend on it
        scaling == "linear" or round(context / factor) == original,
        f"{s.where}: llama.context_length={context} is not llama.rope.scaling.factor={factor} "
        f"times original_context_length={original}",
    )
    return scaling, factor


def _shortest(value: int | float) -> float:
    """The shortest decimal that is this float32: 1e-05 and not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _require_tensors(file: GgufFile, config: ModelConfig) -> None:
    """InputError listing what is missing, additional, or of another shape than the config says."""
    per_layer = sum("{}" in name for name in NAMES.values())
    expected = per_layer * config.num_layers + len(NAMES) - per_layer - config.tie_embeddings
    if config.num_layers > len(file.tensors):  # before a list is made that grows with the number
        raise InputError(
            f"{file.path} has {len(file.tensors)} tensors and llama.block_count="
            f"{config.num_layers} asks for {expected}"
        )
    wanted = {NAMES[n].format(layer): rows_shape(n, config) for n, layer, _ in tensors(config)}
    wrong = [f"{name} is missing" for name in wanted if name not in file.tensors]
    for name, info in file.tensors.items():
        if name not in wanted:
            wrong.append(f"{name!r} is not part of a Llama")
        elif info.shape != wanted[name]:
            wrong.append(f"{name} is {list(info.shape)}, not {list(wanted[name])}")
    shown = "; ".join(wrong[:8]) + (f"; and {len(wrong) - 8} more" if len(wrong) > 8 else "")
    require(not wrong, f"{file.path}: {shown}")


def _tokenizer(file: GgufFile, config: ModelConfig) -> tuple[bytes | None, list[str]]:
    """A sentencepiece model with the pieces of the file, and what to report."""
    where = str(file.path)
    values = {
        key.removeprefix("tokenizer.ggml."): value
        for key, value in file.values.items()
        if key.startswith("tokenizer.ggml.")
    }
    model = values.get("model", "no")
    if model != "llama":
        return None, [f"the file has {model!r:.40} tokenizer, which is left out: not sentencepiece"]
    texts, V = values.get("tokens"), config.vocab_size
    if not isinstance(texts, list) or len(texts) != V:
        raise InputError(f"{where}: tokenizer.ggml.tokens must be a list of {V} strings, one a row")
    scores = _numbers(values, "scores", V, 0.0, where)
    kinds = _numbers(values, "token_type", V, KIND_NUMBERS["normal"], where)
    pieces = []
    for text, score, kind in zip(texts, scores, kinds, strict=True):
        require(kind in _KINDS, f"{where}: {text!r:.40} has the unknown token_type {kind}")
        pieces.append(Piece(text, score, _KINDS[kind]))
    ids = {}
    for name, key, default in (("unk", "unknown", 0), ("bos", "bos", 1), ("eos", "eos", 2)):
        ids[f"{name}_id"] = values.get(f"{key}_token_id", default)
    rules = {
        "add_dummy_prefix": values.get("add_space_prefix", True),
        "remove_extra_whitespaces": values.get("remove_extra_whitespaces", False),
    }
    for name, value in (*ids.items(), *rules.items()):
        kind = int if name in ids else bool
        require(type(value) is kind, f"{where}: {name} of the tokenizer is {value!r:.40}")
    vocabulary = Vocabulary(pieces=tuple(pieces), **ids, **rules)
    return Tokenizer.from_vocabulary(vocabulary, where).model_bytes, []


def _numbers(
    values: dict[str, Any], key: str, count: int, default: int | float, where: str
) -> list:
    found = values.get(key)
    if found is None:
        return [default] * count
    fits = isinstance(found, np.ndarray) and len(found) == count
    require(fits, f"{where}: tokenizer.ggml.{key} must be a list of {count} numbers")
    return found.tolist()
