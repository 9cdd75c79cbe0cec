"""Checkpoint manifests: name, shape, dtype and digest of every array.

The digest of an array is 64 bits, written as 16 hexadecimal digits: two lanes of 32 bits, each a
sum over the elements. So it does not depend on how the array is laid out over devices and hosts,
and each device sums its own part in one pass, fused, without a copy. For every element in C order

    bits   its bits as an unsigned integer (types of 8 and 16 bits are widened)
    index  its linear index
    row    its linear index divided by the length of the last axis, rounded down (0 for scalars)

and, with all arithmetic modulo 2^32,

    h = mix(bits + A * index)          first lane  = sum of h
    g = mix(h ^ (B * row + C))         second lane = sum of g

`mix` is a bijection (the finalizer of MurmurHash3), so h is one in `bits`, and g in h: a change
of one element always changes both lanes. Index and row modulo 2^32 together tell elements apart
in arrays of far more than 2^32 elements. Any other accident, such as two elements exchanged, goes
unseen with a probability of about 2^-64. It is no defence against an adversary. Shape and type
are not in the digest; the manifest holds them beside it.
"""

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax import lax

from llama_jax import __version__
from llama_jax.config import InputError, require
from llama_jax.runtime.files import is_file_name, parse_json, read_bytes, shown

FILENAME = "manifest.json"
FORMAT = 1
FOLDERS = ("state", "params")
"""Folders of arrays: of a checkpoint, of a model folder."""
MAX_AXES = 32
DTYPES = (
    "bool", "int8", "uint8", "int16", "uint16", "int32", "uint32",
    "float8_e4m3fn", "float8_e5m2", "float16", "bfloat16", "float32",
)  # fmt: skip
"""Dtypes that can be saved: whole bytes, at most four, so that jax has them without 64-bit mode."""

_A, _B, _C = np.uint32(0x9E3779B1), np.uint32(0x85EBCA77), np.uint32(0x27D4EB2F)
_M1, _M2 = np.uint32(0x85EBCA6B), np.uint32(0xC2B2AE35)
_CHUNK = 1 << 15  # elements: the work space of one chunk stays in a core's cache


@dataclass(frozen=True, kw_only=True)
class ArrayRecord:
    """One array of a saved tree."""

    shape: tuple[int, ...]
    dtype: str
    digest: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Content of `manifest.json`. The file also holds the SHA-256 of all the rest of it."""

    folder: str
    """Folder beside the manifest in which orbax keeps the arrays: one of FOLDERS."""
    arrays: dict[str, ArrayRecord]
    """By name, such as `params/layers/q` or `opt_state/1/mu/layers/q`."""
    step: int | None = None
    """Training step; None for a model folder."""
    files: dict[str, str] = field(default_factory=dict)
    """SHA-256 of the other files beside the manifest, by name."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Small JSON values of the caller: data fingerprint, origin."""
    versions: dict[str, str] = field(
        default_factory=lambda: {
            "llama-jax": __version__,
            "jax": jax.__version__,
            "orbax-checkpoint": version("orbax-checkpoint"),
        }
    )
    """Versions of the software that wrote the folder."""

    def to_json(self) -> str:
        """The text of `manifest.json`."""
        values = {"format": FORMAT, **asdict(self)}
        return json.dumps(values | {"digest": _canonical_digest(values)}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> "Manifest":
        """Parse `manifest.json`. Raises ValueError if it is damaged or of another format."""
        try:
            values = parse_json(text, FILENAME)
        except InputError as error:
            raise ValueError(f"{FILENAME} is damaged ({error!s:.120})") from error
        if not isinstance(values, dict) or "digest" not in values:
            raise ValueError(f"{FILENAME} is damaged (it is no object with a digest)")
        if values.pop("digest") != _canonical_digest(values):
            raise ValueError(f"{FILENAME} is damaged (its own digest does not agree)")
        written = values.pop("format", None)
        if written != FORMAT:
            raise ValueError(f"{FILENAME} has format {shown(written)}; this version reads {FORMAT}")
        step, folder, files = values.get("step"), values.get("folder"), values.get("files", {})
        _require(step is None or _is_size(step, 2**31), "step", step)
        _require(folder in FOLDERS, "folder", folder)
        _require(isinstance(files, dict) and all(map(is_file_name, files)), "files", files)
        for name in ("files", "versions"):
            texts = values.get(name, {})
            sound = isinstance(texts, dict) and all(isinstance(t, str) for t in texts.values())
            _require(sound, name, texts)
        _require(isinstance(values.get("extra", {}), dict), "extra", values.get("extra"))
        rows = values.pop("arrays", None)
        _require(isinstance(rows, dict), "arrays", rows)
        arrays = {name: _record(row) for name, row in rows.items()}
        return cls(
            arrays=arrays, **{f.name: values[f.name] for f in fields(cls) if f.name in values}
        )

    @classmethod
    def read(cls, folder: epath.Path, step: int | None = None) -> "Manifest":
        """The manifest in `folder`, checked against the files beside it.

        Raises ValueError if anything is missing, damaged or of another step.
        """
        manifest = cls.from_json(_content(folder, FILENAME))
        if step is not None and manifest.step != step:
            raise ValueError(f"{FILENAME} is that of step {manifest.step}")
        for name, digest in manifest.files.items():
            if sha256(_content(folder, name)) != digest:
                raise ValueError(f"{name} is damaged (its SHA-256 does not agree)")
        return manifest

    def require_same(self, wanted: Mapping[str, Any], prefix: str, where: Any) -> None:
        """Raise InputError with the differences between `wanted` and the arrays under `prefix`."""
        saved = {name: a for name, a in self.arrays.items() if name.startswith(prefix)}
        differences = [f"{name} is not in it" for name in wanted if name not in saved]
        for name, array in saved.items():
            if name not in wanted:
                differences.append(f"{name} is in it as well")
            elif _layout(array) != _layout(wanted[name]):
                differences.append(f"{name} is {_layout(array)}, not {_layout(wanted[name])}")
        shown = "; ".join(differences[:8]) + ("; ..." if len(differences) > 8 else "")
        require(not differences, f"{where} does not fit the configuration: {shown}")


def _content(folder: epath.Path, name: str) -> bytes:
    if not (folder / name).exists():
        raise ValueError(f"{name} is missing")
    try:
        return read_bytes(folder / name)
    except InputError as error:  # which would say that the user, and not the folder, is to blame
        raise ValueError(str(error)) from error


def _require(condition: bool, name: str, value: Any) -> None:
    """ValueError naming a value of the manifest that none of ours has."""
    if not condition:
        raise ValueError(f"{FILENAME} is damaged (its {name} is {shown(value)})")


def _record(row: Any) -> ArrayRecord:
    """One array's row, checked."""
    sound = isinstance(row, dict) and set(row) == {f.name for f in fields(ArrayRecord)}
    _require(sound, "array", row)
    shape, dtype, digest = row["shape"], row["dtype"], row["digest"]
    sound = isinstance(shape, list) and len(shape) <= MAX_AXES
    _require(sound and all(_is_size(n, 2**48) for n in shape), "shape", shape)
    _require(dtype in DTYPES, "dtype", dtype)
    _require(isinstance(digest, str), "digest", digest)
    return ArrayRecord(shape=tuple(shape), dtype=dtype, digest=digest)


def _is_size(value: Any, end: int) -> bool:
    return type(value) is int and 0 <= value < end


def _layout(a: Any) -> str:
    return f"{a.dtype}{list(a.shape)}"


def _canonical_digest(values: Mapping[str, Any]) -> str:
    return sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode())


def sha256(data: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def flatten(tree: Any) -> dict[str, Any]:
    """Leaves of any pytree by name: dict keys, attributes and positions joined with `/`.

    Raises InputError if a leaf is no array of a type in DTYPES, or a key holds `/` or `.`, which
    join names here and in orbax.
    """
    leaves: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        parts = [jax.tree_util.keystr((key,), simple=True) for key in path]
        name = "/".join(parts)
        require(
            parts and all(part and not {"/", "."} & set(part) for part in parts),
            f"leaf {name!r} has a key that is empty or holds / or .",
        )
        dtype = str(getattr(leaf, "dtype", type(leaf).__name__))
        require(dtype in DTYPES, f"{name} is {dtype}; only arrays of {', '.join(DTYPES)} are saved")
        leaves[name] = leaf
    require(leaves, "the tree holds no arrays")
    return leaves


def digest(array: Any, start: int = 0, within: tuple[int, ...] | None = None) -> Any:
    """Start to compute the digest of one array; `as_text` waits for it.

    A jax array is digested on its devices (every host must call), a NumPy array at once. For a part
    of a larger array, `start` is the linear index of its first element there: the digests of all
    parts add up to that of the whole. `within` is the shape of the whole without the leading axes
    that the part lacks; by default the part consists of whole rows, and NumPy arrays must do so.
    """
    if not isinstance(array, jax.Array):
        assert within is None or within[1:] == array.shape[1:]
        return _host_digest(np.asarray(array), start)
    within = array.shape if within is None else within
    row = start // max(within[-1] if within else 1, 1)
    return _device_digest(array, np.uint32(start % 2**32), np.uint32(row % 2**32), within)


def as_text(*parts: Any) -> str:
    """16 hexadecimal digits from what `digest` returned for an array, or for all its parts."""
    first, second = (sum(map(int, lane)) % 2**32 for lane in zip(*parts, strict=True))
    return f"{first:08x}{second:08x}"


def _mix(h: Any) -> Any:
    h = (h ^ (h >> np.uint32(16))) * _M1
    h = (h ^ (h >> np.uint32(13))) * _M2
    return h ^ (h >> np.uint32(16))


@partial(jax.jit, static_argnums=3)
def _device_digest(
    x: jax.Array, index: Any, row: Any, within: tuple[int, ...]
) -> tuple[jax.Array, jax.Array]:
    if x.dtype == jnp.bool_:
        bits = x.astype(jnp.uint32)
    else:
        unsigned = jnp.dtype(f"uint{8 * x.dtype.itemsize}")
        bits = lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)
    # A sum of one iota per axis, so that every device makes just its own part of the indices.
    index, row = jnp.full_like(bits, index), jnp.full_like(bits, row)
    stride = 1
    for axis in reversed(range(x.ndim)):
        i = lax.broadcasted_iota(jnp.uint32, x.shape, axis)
        index += i * np.uint32(stride % 2**32)
        if axis < x.ndim - 1:
            row += i * np.uint32(stride // max(within[-1], 1) % 2**32)
        stride *= within[axis]
    first = _mix(bits + _A * index)
    second = _mix(first ^ (_B * row + _C))

    def add(a: Any, b: Any) -> Any:
        return a[0] + b[0], a[1] + b[1]

    # One reduction of the pair reads the array once; two sums would read it twice.
    return lax.reduce((first, second), (np.uint32(0),) * 2, add, tuple(range(x.ndim)))


def _host_digest(x: np.ndarray, base: int) -> tuple[int, int]:
    columns = max(x.shape[-1] if x.ndim else 1, 1)
    flat = np.ascontiguousarray(x).reshape(-1).view(f"uint{8 * x.dtype.itemsize}")

    def lanes(start: int) -> tuple[int, int]:
        bits = flat[start : start + _CHUNK].astype(np.uint32)
        offset = np.arange(bits.size, dtype=np.uint32)
        index = base + start
        first = _mix(bits + (offset + np.uint32(index % 2**32)) * _A)
        # 32-bit division is several times faster than 64-bit; columns stay below 2^32 - _CHUNK.
        row = (offset + np.uint32(index % columns)) // np.uint32(columns)
        row += np.uint32(index // columns % 2**32)
        second = _mix(first ^ (row * _B + _C))
        return int(first.sum(dtype=np.uint64)), int(second.sum(dtype=np.uint64))

    with ThreadPoolExecutor() as pool:
        sums = list(pool.map(lanes, range(0, flat.size, _CHUNK)))
    return sum(a for a, _ in sums) % 2**32, sum(b for _, b in sums) % 2**32
