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
from llama_jax.convert import gguf_tokenizer
from llama_jax.convert.gguf_file import MAGIC, GgufFile, read_model
from llama_jax.convert.gguf_quants import QUANTS
from llama_jax.convert.source import Lazy, Source, from_rows, rows_shape, tensors
from llama_jax.convert.usage import Named
from llama_jax.runtime.files import head, shown

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
"""Names of our tensors in llama.cpp; {} is the layer."""

FACTORS = "rope_freqs.weight"
_WITHOUT_EFFECT = {
    "vocab_size", "rope.scaling.finetuned", "tensor_data_layout", "attention.causal",
    "use_parallel_residual",
}  # fmt: skip
_USUAL = {
    "rope.scaling.attn_factor": 1.0, "rope.scaling.yarn_ext_factor": 1.0,
    "rope.scaling.yarn_attn_factor": 1.0, "rope.scaling.yarn_beta_fast": 32.0,
    "rope.scaling.yarn_beta_slow": 1.0, "attention.scale": 0.0, "logit_scale": 1.0,
    "embedding_scale": 1.0, "residual_scale": 1.0, "expert_count": 0, "expert_used_count": 0,
}  # fmt: skip
"""Settings that may have this value and no other."""


def is_format(path: Path) -> bool:
    """A file that begins with "GGUF"."""
    return head(path, len(MAGIC)) == MAGIC


def read(path: Path, named: Named = "own") -> Source:
    """The model and the tokenizer in a GGUF file, or in all parts of one that is split.

    Raises InputError for a damaged file, another architecture, a setting that we do not have, and
    for missing, additional or wrongly shaped tensors, which it lists.
    """
    file = read_model(path)
    frequencies = _factors(file)
    config = _config(file)
    _require_tensors(file, config)

    def tensor(name: str, layer: int | None) -> Lazy:
        rows = file.tensor(NAMES[name].format(layer))
        return from_rows(name, rows, config, interleaved=True)

    words = gguf_tokenizer.read(file.values, config.vocab_size, named).own_ends
    changes = ["rotary rows of q and k permuted from interleaved to half-split"]
    if quantised := sorted({info.type for info in file.tensors.values()} & set(QUANTS)):
        changes.append(f"{', '.join(quantised)} multiplied out to float32, exactly")
    general = {k: v for k, v in file.values.items() if k.startswith("general.")}
    origin = {k: v for k, v in general.items() if isinstance(v, str | int | float)}
    return Source(
        "gguf",
        file.path,
        config,
        words.tokenizer,
        tensor,
        changes=tuple(changes),
        origin=origin,
        usage=words.usage,
        notes=(*frequencies, *file.notes, *words.notes),
    )


def _factors(file: GgufFile) -> list[str]:
    """Take away the factors of rotary frequencies, where they change nothing."""
    if FACTORS not in file.tensors:
        return []
    values = np.asarray(file.tensor(FACTORS)[...], np.float32)
    require(
        np.all(values == 1),
        f"{file.path}: {FACTORS} ({file.tensors[FACTORS].type}) scales the rotary frequencies, as "
        "Llama 3.1 does, which is not supported",
    )
    del file.tensors[FACTORS]
    return [f"Left out: {FACTORS}, which are all 1 and change nothing."]


class _Settings:
    """The keys of one file, each taken once, so that what nobody took can be named."""

    def __init__(self, file: GgufFile):
        self.where = str(file.path)
        found = file.values.get("general.architecture")
        require(found == "llama", f"{self.where}: architecture {shown(found)} is not llama")
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
        require(fits, f"{self.where}: llama.{key}={shown(value)} must be a finite number")
        return value

    def count(self, key: str, default: int | None = None) -> int:
        """A whole number."""
        value = self.number(key, default)
        require(isinstance(value, int), f"{self.where}: llama.{key}={value} must be a whole number")
        return value

    def text(self, key: str, default: str) -> str:
        """A string."""
        value = self._values.pop(key, default)
        require(
            isinstance(value, str), f"{self.where}: llama.{key}={shown(value)} must be a string"
        )
        return value

    def same(self, key: str, value: int | float) -> None:
        """Refuse any other value than this one; the key may be absent."""
        found = self.number(key, value)
        require(found == value, f"{self.where}: llama.{key}={found} is not supported, only {value}")

    def require_all_taken(self) -> None:
        """Refuse the keys that nobody asked for, which may change what the model computes."""
        left = sorted(set(self._values) - _WITHOUT_EFFECT)
        names = ", ".join(shown(name) for name in left[:8])
        require(not left, f"{self.where}: settings {names} of llama are not supported")


def _config(file: GgufFile) -> ModelConfig:
    s = _Settings(file)
    D, N = s.count("embedding_length"), s.count("attention.head_count")
    require(N > 0, f"{s.where}: llama.attention.head_count={N} must be positive")
    H = s.count("attention.key_length", D // N)
    s.same("attention.value_length", H)
    s.same("rope.dimension_count", H)
    for key, value in _USUAL.items():
        s.same(key, value)
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
        norm_eps=_shortest(s.number("attention.layer_norm_rms_epsilon"), s.where),
        rope_theta=_shortest(s.number("rope.freq_base", 10_000.0), s.where),
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
    factor = _shortest(s.number("rope.scaling.factor", 1.0), s.where)
    linear = _shortest(s.number("rope.scale_linear", 1.0), s.where)  # the older spelling
    scaling = s.text("rope.scaling.type", "none" if linear == 1 else "linear")
    known = scaling in ("none", "linear", "yarn")
    require(known, f"{s.where}: llama.rope.scaling.type={shown(scaling)} is not supported")
    if linear != 1:
        both = scaling == "linear" and factor in (1, linear)
        require(both, f"{s.where}: llama.rope.scale_linear={linear} contradicts rope.scaling")
        factor = linear
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


def _shortest(value: int | float, where: str) -> float:
    """The shortest decimal that is this float32: 1e-05 and not 9.999999747378752e-06."""
    require(abs(value) < 1e30, f"{where} holds the setting {value:g}, which is out of range")
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
    listed = "; ".join(wrong[:8]) + (f"; and {len(wrong) - 8} more" if len(wrong) > 8 else "")
    require(not wrong, f"{file.path}: {listed}")
