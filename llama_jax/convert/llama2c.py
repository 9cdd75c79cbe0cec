"""The .bin files of llama2.c (github.com/karpathy/llama2.c, export.py, run.c and runq.c).

    version 0  7 int32; float32 tensors, all layers of one kind together; `run` reads it
    version 1  magic, version, 7 int32, shared, zeros to byte 256; float32 tensors
    version 2  as 1 with the group size; norms float32, matrices int8 in groups; `runq` reads it

The 7 int32 are D, F, L, N, K, V and the context length; in version 0 a negative V says that the
head is a tensor of its own. All numbers are little-endian, matrices are rows [out, in], rotary
planes interleaved. norm_eps 1e-5 and rope_theta 10000 are constants of those programs, as are
heads of width D/N. Tokenizers lie beside the model in tokenizer.bin (llama2c_tokenizer.py).
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from llama_jax.config import InputError, ModelConfig, require
from llama_jax.convert.int8 import Dequantized, quantize
from llama_jax.convert.llama2c_tokenizer import TOKENIZER_FILE, read_tokenizer, write_tokenizer
from llama_jax.convert.source import Lazy, Source, from_rows, map_file, rows_shape, to_rows
from llama_jax.convert.usage import INSTEAD, Named, unusable
from llama_jax.data.sentencepiece_proto import UnusableTokenizer
from llama_jax.data.tokenizer import Tokenizer
from llama_jax.model.weights import layer_weights
from llama_jax.runtime.files import head

MAGIC = 0x616B3432
HEADER_BYTES = 256
"""In versions 1 and 2."""
VERSIONS = ("0", "1", "2")
"""Variants of `--to llama2c:`; `run` reads only the first."""
GROUP = 64
"""Largest group of version 2 that is written, as in export.py."""
NORM_EPS, ROPE_THETA = 1e-5, 10_000.0
_COUNTS = struct.Struct("<7i")
_BEFORE_COUNTS = struct.Struct("<Ii")
_SANE = 1 << 20  # D, F, N and K of a file that has no magic: far above every model's
_ROPE = "rope"  # the cosines and sines of version 0
_MATRICES = ("q", "k", "v", "o", "gate", "down", "up")


class _Header(NamedTuple):
    version: int
    config: ModelConfig
    group: int
    """Numbers that share a scale; 0 unless the version is 2."""


class _Place(NamedTuple):
    """Where a kind of tensor lies: the first layer's begins at `start`, each has `size` bytes."""

    start: int
    size: int


def is_format(path: Path) -> bool:
    """Whether a file begins with the magic number, or with seven numbers that can describe a
    model."""
    begin = head(path, _COUNTS.size)
    if len(begin) < _COUNTS.size:
        return False
    if struct.unpack_from("<I", begin)[0] == MAGIC:
        return True
    D, F, L, N, K, V, T = _COUNTS.unpack(begin)
    widths = all(0 < n < _SANE for n in (D, F, N, K))
    return widths and L > 0 and V != 0 and T > 0 and D % N == 0 and N % K == 0


def read(path: Path, named: Named = "own") -> Source:
    """The model in a .bin file, and its tokenizer if a tokenizer.bin lies beside it.

    Raises InputError unless the size of the file is the one that its header implies.
    """
    file_bytes = map_file(path)
    size = len(file_bytes)
    header = _parse(file_bytes[:HEADER_BYTES].tobytes(), str(path))
    config = header.config
    places, end = _places(header)
    require(
        size == end,
        f"{path} has {size} bytes and its header asks for {end}: it is cut short, or no model of "
        "llama2.c; copy it again",
    )

    def tensor(name: str, layer: int | None) -> Lazy:
        start, size = places[name]
        start += size * (layer or 0)
        rows = _rows(file_bytes[start : start + size], name, header)
        return from_rows(name, rows, config, interleaved=True)

    changes = ["rotary rows of q and k permuted from interleaved to half-split"]
    if header.version == 2:
        changes.append(f"int8 in groups of {header.group} multiplied out to float32, exactly")
    tokenizer, said = _tokenizer(path, config.vocab_size) if named == "own" else (named, [])
    origin = {"program": "llama2.c", "version": header.version}
    return Source(
        "llama2c",
        path,
        config,
        tokenizer,
        tensor,
        changes=tuple(changes),
        origin=origin,
        notes=tuple(said),
    )


def _tokenizer(path: Path, rows: int) -> tuple[bytes | None, list[str]]:
    """The tokenizer.bin beside a model, and notes; another model's is left out.

    Raises InputError if it is damaged.
    """
    beside = path.parent / TOKENIZER_FILE
    if not beside.exists():
        return None, []
    try:
        model, said = read_tokenizer(beside)
    except UnusableTokenizer as error:
        return None, [unusable(error)]
    except InputError as error:
        raise InputError(f"{error}; or name another with `{INSTEAD}`") from error
    pieces = Tokenizer.from_bytes(model).vocab_size
    if pieces > rows:
        other = (
            f"{beside} has {pieces} tokens but the model's embedding has {rows} rows: it belongs "
            "to a different model"
        )
        return None, [unusable(InputError(other))]
    return model, said


def write(source: Source, folder: Path, name: str, variant: str) -> list[str]:
    """Write the model as `name` and its tokenizer as tokenizer.bin; `variant` is the version.

    Returns notes for the report.

    Raises InputError if llama2.c cannot express the configuration or the tokenizer.
    """
    header = _Header(int(variant), source.config, _check(source.config, int(variant)))
    said = ["rotary rows of q and k permuted from half-split to interleaved"]
    if header.group:
        said.append(f"matrices rounded to int8 in groups of {header.group}")
    if source.tokenizer is not None:
        beside = folder / TOKENIZER_FILE
        said += write_tokenizer(beside, source.tokenizer, source.config.vocab_size)
    said += source.usage.left_out((), "llama2.c")
    with (folder / name).open("wb") as file:
        file.write(_pack(header))
        for kind, layer in _order(header):
            if kind == _ROPE:
                _rope_tables(source.config).tofile(file)
            else:
                rows = to_rows(kind, source.read(kind, layer), interleaved=True)
                _write_rows(file, np.ascontiguousarray(rows, "<f4"), kind, header)
    return said


# ---- Header


def _parse(head: bytes, where: str) -> _Header:
    require(len(head) >= _COUNTS.size, f"{where} is too short for a model: {len(head)} bytes")
    version = offset = group = 0
    if struct.unpack_from("<I", head)[0] == MAGIC:
        require(
            len(head) == HEADER_BYTES, f"{where} is cut short: its header has {len(head)} bytes"
        )
        version = _BEFORE_COUNTS.unpack_from(head)[1]
        offset = _BEFORE_COUNTS.size
        require(version in (1, 2), f"{where} has version {version} of llama2.c; 0, 1, 2 are known")
    D, F, L, N, K, V, T = _COUNTS.unpack_from(head, offset)
    shared = V > 0
    if version:
        shared_byte, group = struct.unpack_from("<Bi", head, offset + _COUNTS.size)
        require(shared_byte in (0, 1), f"{where}: shared classifier is {shared_byte}, not 0 or 1")
        require(V > 0, f"{where}: vocabulary is {V}; only version 0 has negative ones")
        shared = bool(shared_byte)
    require(N > 0 and D > 0 and D % N == 0, f"{where}: heads {N} must divide the width {D}")
    try:
        config = ModelConfig(
            vocab_size=abs(V),
            d_model=D,
            num_layers=L,
            num_heads=N,
            num_kv_heads=K,
            head_dim=D // N,
            d_ff=F,
            max_seq_len=T,
            norm_eps=NORM_EPS,
            rope_theta=ROPE_THETA,
            tie_embeddings=shared,
            dtype="float32",  # as run computes
        )
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    header = _Header(version, config, group if version == 2 else 0)
    if version == 2:
        require(group > 0, f"{where}: group size {group} must be positive")
        for kind in ("embed", *_MATRICES):
            count = _count(kind, config)
            require(
                count % group == 0, f"{where}: {kind} has {count} numbers, no groups of {group}"
            )
    return header


def _pack(header: _Header) -> bytes:
    c = header.config
    V = c.vocab_size if header.version or c.tie_embeddings else -c.vocab_size
    counts = _COUNTS.pack(
        c.d_model, c.d_ff, c.num_layers, c.num_heads, c.num_kv_heads, V, c.max_seq_len
    )
    if header.version == 0:
        return counts
    head = _BEFORE_COUNTS.pack(MAGIC, header.version) + counts + bytes([c.tie_embeddings])
    if header.version == 2:
        head += struct.pack("<i", header.group)
    return head.ljust(HEADER_BYTES, b"\0")


def _check(config: ModelConfig, version: int) -> int:
    """The group size to write with, 0 for none; InputError for what the format cannot express."""
    for name, value in (
        ("norm_eps", NORM_EPS), ("rope_theta", ROPE_THETA), ("rope_scaling", "none"),
        ("head_dim", config.d_model // config.num_heads),
    ):  # fmt: skip
        found = getattr(config, name)
        require(
            found == value,
            f"model.{name}={found} cannot be stored for llama2.c, whose programs use {value}",
        )
    require(
        config.head_dim * config.num_heads == config.d_model,
        f"llama2.c needs model.num_heads={config.num_heads} times model.head_dim="
        f"{config.head_dim} to be model.d_model={config.d_model}",
    )
    group = GROUP if version == 2 else 0
    while group and (config.d_model % group or config.d_ff % group):
        group //= 2  # runq leaves out the rest of a row that is no multiple
    return group


# ---- Layout


def _order(header: _Header) -> Iterator[tuple[str, int | None]]:
    """The tensors as they follow each other."""
    per_layer = layer_weights(header.config)
    for kind in _kinds(header):
        layers = range(header.config.num_layers) if kind in per_layer else (None,)
        yield from ((kind, layer) for layer in layers)


def _kinds(header: _Header) -> Iterator[str]:
    if header.version == 0:
        yield from ("embed", "attn_norm", "q", "k", "v", "o", "mlp_norm", "gate", "down", "up")
        yield from ("norm", _ROPE)
    else:
        yield from ("attn_norm", "mlp_norm", "norm", "embed", *_MATRICES)
    if not header.config.tie_embeddings:
        yield "head"


def _places(header: _Header) -> tuple[dict[str, _Place], int]:
    """Where each kind lies, and the size of the file; no work grows with the header's numbers."""
    per_layer = layer_weights(header.config)
    places, offset = {}, len(_pack(header))
    for kind in _kinds(header):
        count = _count(kind, header.config)
        quantised = header.group and not kind.endswith("norm")
        size = count + 4 * (count // header.group) if quantised else 4 * count
        places[kind] = _Place(offset, size)
        offset += size * (header.config.num_layers if kind in per_layer else 1)
    return places, offset


def _count(kind: str, config: ModelConfig) -> int:
    """Numbers in one tensor, as Python's integers, which do not overflow."""
    if kind == _ROPE:
        return config.max_seq_len * config.head_dim  # [T,H/2] of cosines, then of sines
    shape = rows_shape(kind, config)
    return shape[0] * shape[1] if len(shape) == 2 else shape[0]


def _rows(part: np.ndarray, kind: str, header: _Header) -> Lazy:
    """One tensor out of its bytes."""
    shape = rows_shape(kind, header.config)
    if not header.group or len(shape) == 1:
        return part.view("<f4").reshape(shape)
    count = shape[0] * shape[1]
    values = part[:count].view(np.int8).reshape(-1, header.group)
    return Dequantized(values, part[count:].view("<f4"), (shape[0], shape[1]))


def _write_rows(file: BinaryIO, rows: np.ndarray, kind: str, header: _Header) -> None:
    if not header.group or rows.ndim == 1:
        rows.tofile(file)
        return
    require(
        np.isfinite(rows).all(), f"{kind} holds numbers that are not finite, which int8 cannot hold"
    )
    values, scales = quantize(rows, header.group)
    values.tofile(file)
    scales.astype("<f4").tofile(file)


def _rope_tables(config: ModelConfig) -> np.ndarray:
    """Cosines, then sines, float32 [2,T,H/2], of which old versions of `run` made use."""
    H = config.head_dim
    exponents = np.arange(0, H, 2, dtype=np.float32) / np.float32(H)
    frequencies = np.float32(1) / np.float32(ROPE_THETA) ** exponents  # in float32, as export.py
    angles = np.outer(np.arange(config.max_seq_len, dtype=np.float32), frequencies)
    angles = angles.astype(np.float64)
    return np.stack([np.cos(angles), np.sin(angles)]).astype("<f4")
