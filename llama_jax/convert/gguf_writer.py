"""Writes GGUF files that llama.cpp runs, through the `gguf` package (extra [gguf]).

Tensors are written one at a time behind a head that is complete before the first of them.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from llama_jax.config import InputError, ModelConfig, require
from llama_jax.convert import q4_k
from llama_jax.convert.gguf import NAMES
from llama_jax.convert.gguf_quants import QUANTS
from llama_jax.convert.source import Source, rows_shape, tensors, to_rows
from llama_jax.data.sentencepiece_proto import KIND_NUMBERS, Piece
from llama_jax.data.tokenizer import Tokenizer

VARIANTS = ("", "q8_0", "q4_0", "q4_k")
_TYPES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
_OF_DTYPE = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
BLOCK = QUANTS["Q8_0"].size
"""Numbers in a block of Q8_0 and Q4_0."""
_STEPS = {"Q8_0": 127, "Q4_0": 8, "Q4_K": 15 * 63 / 2}
"""Scales, float16, in the largest number that a block can hold at least."""


_ROUNDED = {
    "q8_0": f"matrices rounded to int8 in blocks of {BLOCK} (Q8_0)",
    "q4_0": f"matrices of the layers rounded to 4 bits in blocks of {BLOCK} (Q4_0), the embedding "
    "and the head to int8 (Q8_0)",
    "q4_k": f"matrices of the layers rounded to 4 bits in blocks of {q4_k.SIZE} (Q4_K), the "
    "embedding and the head to int8 (Q8_0)",
}


class _Planned(NamedTuple):
    """One tensor of the file."""

    name: str
    layer: int | None
    shape: tuple[int, ...]
    """[out, in], or [D] for norms."""
    type: str


def write(source: Source, folder: Path, name: str, variant: str) -> list[str]:
    """Write the model and its tokenizer as one file. The variant "q8_0" rounds the matrices to
    Q8_0; "q4_0" and "q4_k" round those of the layers to that type, the embedding and the head to
    Q8_0.

    Otherwise matrices are written in their own dtype: float32, float16 or bfloat16. Returns notes
    for the report. Raises InputError if the `gguf` package is not installed, or if GGUF cannot
    express the tokenizer.
    """
    gguf = _package()
    plan = list(_plan(source, variant))
    writer = gguf.GGUFWriter(folder / name, "llama")
    try:
        said = _add_settings(writer, source.config)
        writer.add_name(Path(name).stem)
        if source.tokenizer is not None:
            _add_tokenizer(writer, source.tokenizer, source.config.vocab_size)
        said += _add_usage(writer, source)
        for t in plan:
            title = NAMES[t.name].format(t.layer)
            kind = gguf.GGMLQuantizationType[t.type]
            writer.add_tensor_info(title, t.shape, np.dtype(np.float32), _bytes(t), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for t in plan:
            rows = to_rows(t.name, source.read(t.name, t.layer), interleaved=True)
            writer.write_tensor_data(_packed(rows, t, gguf))
    finally:
        writer.close()
    if variant:
        said.append(_ROUNDED[variant])
        halves = sorted({t.name for t in plan if t.type == "F16"})
        if halves:
            said.append(f"{', '.join(halves)} rounded to F16: rows are not a multiple of {BLOCK}")
        small = {t.name for t in plan if t.type == "Q8_0" and t.layer is not None}
        if small and variant == "q4_k":
            names = ", ".join(sorted(small))
            said.append(f"{names} rounded to Q8_0: rows are not a multiple of {q4_k.SIZE}")
    return ["rotary rows of q and k permuted from half-split to interleaved", *said]


def _package() -> Any:
    try:
        import gguf
    except ImportError as error:
        raise InputError("writing GGUF needs the package gguf: pip install gguf") from error
    return gguf


def _plan(source: Source, variant: str) -> Iterator[_Planned]:
    for name, layer, _ in tensors(source.config):
        shape = rows_shape(name, source.config)
        kind = "F32"  # norms: llama.cpp computes with no other type
        if len(shape) == 2 and variant:
            wanted = "Q8_0" if layer is None else variant.upper()
            kind = next(k for k in (wanted, "Q8_0", "F16") if shape[1] % _size(k) == 0)
        elif len(shape) == 2:
            kind = _OF_DTYPE[str(source.tensor(name, layer).dtype)]
        yield _Planned(name, layer, shape, kind)


def _size(kind: str) -> int:
    return QUANTS[kind].size if kind in QUANTS else 1


def _bytes(t: _Planned) -> int:
    count = int(np.prod(t.shape))
    if t.type in _STEPS:
        return count // _size(t.type) * QUANTS[t.type].block.itemsize
    return count * np.dtype(_TYPES[t.type]).itemsize


def _packed(rows: np.ndarray, t: _Planned, gguf: Any) -> np.ndarray:
    """The rows in C order as the file holds them."""
    if t.type not in _STEPS:
        return np.ascontiguousarray(rows, _TYPES[t.type])
    rows = np.ascontiguousarray(rows, np.float32)
    fits = np.abs(rows).max() <= _STEPS[t.type] * float(np.finfo(np.float16).max)
    require(fits, f"{t.name} holds numbers that are not finite, or too large for {t.type}")
    if t.type == "Q4_K":  # which the package only reads
        return q4_k.quantize(rows)
    return gguf.quants.quantize(rows, gguf.GGMLQuantizationType[t.type])


def _add_settings(writer: Any, c: ModelConfig) -> list[str]:
    said = []
    settings: dict[str, int | float | str] = {
        "vocab_size": c.vocab_size,
        "context_length": c.max_seq_len,
        "embedding_length": c.d_model,
        "block_count": c.num_layers,
        "feed_forward_length": c.d_ff,
        "attention.head_count": c.num_heads,
        "attention.head_count_kv": c.num_kv_heads,
        "attention.key_length": c.head_dim,
        "attention.value_length": c.head_dim,
        "attention.layer_norm_rms_epsilon": c.norm_eps,
        "rope.dimension_count": c.head_dim,
        "rope.freq_base": c.rope_theta,
    }
    if c.rope_scaling == "ntk":  # is a larger base and nothing else, and GGUF has no other word
        theta = c.rope_theta * c.rope_factor ** (c.head_dim / (c.head_dim - 2))
        settings["rope.freq_base"] = theta
        said.append(f"NTK-aware scaling written as rotary base {theta:.6g}")
    elif c.rope_scaling != "none":
        settings["rope.scaling.type"] = c.rope_scaling
        settings["rope.scaling.factor"] = c.rope_factor
        settings["rope.scaling.original_context_length"] = round(c.pretrained_seq_len)
    add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    for key, value in settings.items():
        add[type(value)](f"llama.{key}", value)
    return said


def _add_tokenizer(writer: Any, model: bytes, vocab_size: int) -> None:
    """The pieces, filled up to the rows of the model with pieces that are not used."""
    vocabulary = Tokenizer.from_bytes(model).vocabulary
    vocabulary.require_llama("the tokenizer, for GGUF,")
    unused = range(len(vocabulary.pieces), vocab_size)
    pieces = [*vocabulary.pieces, *(Piece(f"[PAD{i}]", 0.0, "unused") for i in unused)]
    require(
        len(pieces) == vocab_size,
        f"the tokenizer has {len(pieces)} pieces and the model {vocab_size} rows",
    )
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([piece.text for piece in pieces])
    writer.add_token_scores([piece.score for piece in pieces])
    writer.add_token_types([KIND_NUMBERS[piece.kind] for piece in pieces])
    writer.add_bos_token_id(vocabulary.bos_id)
    writer.add_eos_token_id(vocabulary.eos_id)
    writer.add_unk_token_id(vocabulary.unk_id)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(vocabulary.add_dummy_prefix)


def _add_usage(writer: Any, source: Source) -> list[str]:
    """How the model is used, and notes on what GGUF has no place for."""
    usage, kept = source.usage, {"add_bos", "chat_template"}
    writer.add_add_bos_token(usage.add_bos)
    if usage.chat_template is not None:
        writer.add_chat_template(usage.chat_template)
    adders = (writer.add_eot_token_id, writer.add_eom_token_id)
    if source.tokenizer is None:
        adders = (writer.add_eos_token_id, *adders)
    for add, token in zip(adders, usage.end_ids, strict=False):
        add(token)
    if len(usage.end_ids) <= len(adders):
        kept.add("end_ids")
    pad = usage.special_tokens.get("pad_token")
    if source.tokenizer is not None and pad is not None:
        pieces = Tokenizer.from_bytes(source.tokenizer).vocabulary.pieces
        token = next((i for i, piece in enumerate(pieces) if piece.text == pad), None)
        if token is not None:
            writer.add_pad_token_id(token)
    if set(usage.special_tokens) <= {"pad_token", "eos_token"}:  # the latter is an end of text
        kept.add("special_tokens")
    said = usage.left_out(kept, "GGUF")
    if "end_ids" not in kept:
        said.append(f"GGUF keeps the first {len(adders)} of {len(usage.end_ids)} ends of text.")
    return said
