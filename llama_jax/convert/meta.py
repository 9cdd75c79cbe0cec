"""Meta's model folders: params.json, tokenizer, one consolidated.NN.pth per tensor-parallel part.

Every part holds its rows of what Meta multiplies column-parallel (wq, wk, wv, w1, w3, output), its
columns of what is row-parallel (wo, w2), a slice of the embedding, and all of the norms. Planes of
the rotary embedding are interleaved.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from llama_jax.config import InputError, ModelConfig, require
from llama_jax.convert import pth
from llama_jax.convert.hf import check_names
from llama_jax.convert.source import Lazy, Source, from_rows, rows_shape, tensors
from llama_jax.convert.usage import INSTEAD, Named, unusable
from llama_jax.data.sentencepiece_proto import UnusableTokenizer
from llama_jax.data.tokenizer import MAX_BYTES, MODEL_FILE, Tokenizer
from llama_jax.runtime.files import read_bytes, read_json, shown

OUTER = {"embed": "tok_embeddings", "norm": "norm", "head": "output"}
LAYER = {
    "attn_norm": "attention_norm",
    "q": "attention.wq",
    "k": "attention.wk",
    "v": "attention.wv",
    "o": "attention.wo",
    "mlp_norm": "ffn_norm",
    "gate": "feed_forward.w1",
    "up": "feed_forward.w3",
    "down": "feed_forward.w2",
}
_ROW_PARALLEL = ("o", "down")
_KNOWN = {
    "dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "multiple_of", "ffn_dim_multiplier",
    "norm_eps", "rope_theta", "max_seq_len", "max_batch_size",
}  # fmt: skip
PERMUTED = "The rotary planes of q and k were permuted between interleaved and half-split."


def their_name(name: str, layer: int | None) -> str:
    """Meta's name of our tensor."""
    if layer is None:
        return f"{OUTER[name]}.weight"
    return f"layers.{layer}.{LAYER[name]}.weight"


def is_format(path: Path) -> bool:
    """Whether a folder has params.json and weights beside it."""
    return (path / "params.json").is_file() and any(path.glob("consolidated.*.pth"))


@dataclass(frozen=True)
class _Joined:
    """Parts of a matrix side by side along an axis, read when indexed."""

    parts: tuple[np.ndarray, ...]
    axis: int

    @property
    def dtype(self) -> Any:
        return self.parts[0].dtype

    @property
    def shape(self) -> tuple[int, ...]:
        shape = list(self.parts[0].shape)
        shape[self.axis] = sum(part.shape[self.axis] for part in self.parts)
        return tuple(shape)

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        start, stop, _ = index[self.axis].indices(self.shape[self.axis])
        found, before = [], 0
        for part in self.parts:
            size = part.shape[self.axis]
            cut = slice(max(start - before, 0), max(min(stop - before, size), 0))
            if cut.start < cut.stop:
                where = list(index)
                where[self.axis] = cut
                found.append(part[tuple(where)])
            before += size
        return np.concatenate(found, self.axis) if found else self.parts[0][:0, :0]


def read(path: Path, named: Named = "own") -> Source:
    """Read a folder, once all parts hold all tensors in the right shapes.

    Raises InputError that names the settings, tensors or files that do not fit.
    """
    files = sorted(path.glob("consolidated.*.pth"))
    expected = [f"consolidated.{i:02}.pth" for i in range(len(files))]
    require(
        [f.name for f in files] == expected,
        f"{path} has {[f.name for f in files][:9]}, not {expected[:9]}: a part is missing",
    )
    shards = [pth.map_tensors(file) for file in files]
    for shard in shards:
        shard.pop("rope.freqs", None)  # computed from the configuration
    for file, shard in zip(files, shards, strict=True):
        differ = sorted({*shard} ^ {*shards[0]})
        require(not differ, f"only one of {file} and {files[0].name} holds {differ[:4]}")
        ranks = [n for n in shard if shard[n].ndim != shards[0][n].ndim]
        require(not ranks, f"{file}: {ranks[:4]} have other ranks than in {files[0].name}")
    model, of_tokenizer = _tokenizer(path) if named == "own" else (named, [])
    config, more = _config(path, shards)
    if model is not None and of_tokenizer:
        pieces = Tokenizer.from_bytes(model).vocab_size
        if pieces > config.vocab_size:  # the folder above is of other models
            model, of_tokenizer = None, [f"{of_tokenizer[0]} It is left out: it has more pieces."]
    changes = [PERMUTED]
    stored = {name: _joined(path, name, shards, config.d_model) for name in shards[0]}
    embed, head = stored.get(their_name("embed", None)), stored.get(their_name("head", None))
    check_names(path, stored, config, their_name)
    assert embed is not None
    assert head is not None
    if _same(embed, head):
        config = replace(config, tie_embeddings=True)
        changes.append("output.weight equals tok_embeddings.weight: the two are tied.")

    def tensor(name: str, layer: int | None) -> Lazy:
        return from_rows(name, stored[their_name(name, layer)], config, interleaved=True)

    return Source(
        format="meta",
        path=path,
        config=config,
        tokenizer=model,
        tensor=tensor,
        changes=tuple(changes),
        origin={"name": path.name, "parts": len(files)},
        notes=(*more, *of_tokenizer),
    )


def _tokenizer(path: Path) -> tuple[bytes | None, list[str]]:
    """The tokenizer of a folder, or of the one above, where Meta's download script puts it once
    for all sizes; and notes. Raises InputError if it is damaged."""
    for folder in (path, path.parent):
        file = folder / MODEL_FILE
        if not file.exists():
            continue
        try:
            model = read_bytes(file, limit=MAX_BYTES)
            Tokenizer.from_bytes(model, where=str(file))
        except UnusableTokenizer as error:
            return None, [unusable(error)]
        except InputError as error:
            raise InputError(f"{error}; or name another with `{INSTEAD}`") from error
        return model, [f"The tokenizer is {file}, of the folder above."] * (folder != path)
    return None, []


def _same(a: Lazy, b: Lazy) -> bool:
    """Whether two matrices [V,D] are equal, bit for bit, read in blocks until they differ."""
    for i in range(0, a.shape[0], 1024):
        x, y = (np.ascontiguousarray(m[i : i + 1024, :]).view(np.uint8) for m in (a, b))
        if not np.array_equal(x, y):
            return False
    return True


def _joined(path: Path, name: str, shards: list[dict[str, np.ndarray]], width: int) -> Lazy:
    parts = tuple(shard[name] for shard in shards)
    if len(parts) == 1:
        return parts[0]
    if parts[0].ndim != 2:
        same = all(np.array_equal(p.view(np.uint8), parts[0].view(np.uint8)) for p in parts)
        require(same, f"{path}: {name} differs between the parts, though each holds all of it")
        return parts[0]
    ours = {theirs: our for our, theirs in LAYER.items()}.get(".".join(name.split(".")[2:-1]))
    if name == their_name("embed", None):  # cut by columns for Llama 2, by rows for later ones
        axis = 0 if parts[0].shape[1] == width else 1
    else:
        axis = 1 if ours in _ROW_PARALLEL else 0
    return _Joined(parts, axis)


def hidden_size(dim: int, multiple_of: int, multiplier: float | None) -> int:
    """F by the formula of Meta's model.py."""
    size = int(2 * (4 * dim) / 3)
    if multiplier is not None:
        size = int(multiplier * size)
    return multiple_of * ((size + multiple_of - 1) // multiple_of)


def _config(path: Path, shards: list[dict[str, np.ndarray]]) -> tuple[ModelConfig, list[str]]:
    file = path / "params.json"
    values = read_json(file)
    unknown = {k: v for k, v in values.items() if k not in _KNOWN}
    effective = {k: v for k, v in unknown.items() if v is not None and v is not False}
    later = " (Llama 3.1 has it)" if "use_scaled_rope" in effective else ""
    require(
        not effective, f"{file} has settings {shown(effective, 120)} that are not supported{later}"
    )

    def number(name: str, kind: Any, default: Any = None) -> Any:
        value = values.get(name, default)
        require(value is not None, f"{file}: {name} is missing")
        fits = isinstance(value, kind) and not isinstance(value, bool) and 0 < value < 2**31
        require(fits, f"{file}: {name}={shown(value)} must be a positive number")
        return value

    D, N = number("dim", int), number("n_heads", int)
    require(D % N == 0, f"{file}: dim={D} is not a multiple of n_heads={N}")
    multiplier = values.get("ffn_dim_multiplier")
    F = hidden_size(
        D,
        number("multiple_of", int, 256),
        None if multiplier is None else float(number("ffn_dim_multiplier", (int, float))),
    )
    eps = float(number("norm_eps", (int, float), 1e-5))
    notes = [f"Left out: settings {shown(unknown, 120)} of params.json."] * bool(unknown)
    # The released files say -1 and leave it to the tokenizer; the embedding says the same.
    told = values.get("vocab_size", -1) != -1
    vocab_size = number("vocab_size", int) if told else _rows(path, shards, D)
    context = number("max_seq_len", int, 2048 if eps < 5e-6 else 4096)
    if "max_seq_len" not in values:
        notes.append(f"The context is taken as {context}: Meta's files do not say, norm_eps does.")
    dtypes = {str(array.dtype) for shard in shards for array in shard.values()}
    dtype: Any = dtypes.pop() if len(dtypes) == 1 else "float32"
    try:
        config = ModelConfig(
            vocab_size=vocab_size,
            d_model=D,
            num_layers=number("n_layers", int),
            num_heads=N,
            num_kv_heads=number("n_kv_heads", int, N) if values.get("n_kv_heads") else N,
            head_dim=D // N,
            d_ff=F,
            max_seq_len=context,
            norm_eps=eps,
            rope_theta=float(number("rope_theta", (int, float), 10_000.0)),
            dtype="float32" if dtype == "float32" else "bfloat16",
            param_dtype=dtype,
        )
    except InputError as error:
        raise InputError(f"{file}: {error}") from error
    return config, notes


def _rows(path: Path, shards: list[dict[str, np.ndarray]], width: int) -> int:
    """Rows of the embedding, which the parts hold some columns or some rows of."""
    parts = [shard.get(their_name("embed", None)) for shard in shards]
    found = [part for part in parts if part is not None and part.ndim == 2]
    require(len(found) == len(parts), f"{path} lacks {their_name('embed', None)}")
    if found[0].shape[1] == width:
        return sum(part.shape[0] for part in found)
    return found[0].shape[0]


def _multiples(config: ModelConfig) -> dict[str, Any]:
    """multiple_of, and ffn_dim_multiplier where needed, that give the configuration's F."""
    D, F = config.d_model, config.d_ff
    for multiple in (256, 64, 32, 1):
        if hidden_size(D, multiple, None) == F:
            return {"multiple_of": multiple}
    if hidden_size(D, 4096, 1.3) == F:
        return {"multiple_of": 4096, "ffn_dim_multiplier": 1.3}
    return {"multiple_of": 1, "ffn_dim_multiplier": (F + 0.5) / int(2 * (4 * D) / 3)}


def write(source: Source, folder: Path, name: str, variant: str) -> list[str]:
    """Write a folder that Meta's code loads in one process: one part. Returns notes for the
    report."""
    c = source.config
    require(
        c.rope_scaling == "none",
        f"Meta's format has no rope_scaling={c.rope_scaling}: convert to Hugging Face instead",
    )
    require(
        c.head_dim * c.num_heads == c.d_model,
        f"Meta's format has no head_dim={c.head_dim} beside d_model={c.d_model} and "
        f"num_heads={c.num_heads}: it divides the two",
    )
    params = {
        "dim": c.d_model,
        "n_layers": c.num_layers,
        "n_heads": c.num_heads,
        "n_kv_heads": c.num_kv_heads,
        "vocab_size": c.vocab_size,
        **_multiples(c),
        "norm_eps": c.norm_eps,
        **({} if c.rope_theta == 10_000 else {"rope_theta": c.rope_theta}),
    }
    order = [(n, layer) for n, layer, _ in tensors(c)]
    shapes = {their_name(n, layer): rows_shape(n, c) for n, layer in order}
    if c.tie_embeddings:
        order.append(("embed", None))
        shapes[their_name("head", None)] = shapes[their_name("embed", None)]
    parts = (rows for _, _, rows in source.stream(order, interleaved=True))
    pth.write(folder / "consolidated.00.pth", shapes, jnp.dtype(c.param_dtype), parts)
    (folder / "params.json").write_text(json.dumps(params) + "\n")
    if source.tokenizer is not None:
        (folder / MODEL_FILE).write_bytes(source.tokenizer)
    return source.usage.left_out((), "Meta's format")
