"""Reads and writes our own model folders and run folders, one layer at a time.

A training run writes all arrays at once from its devices (storage.py). A conversion has them one
layer at a time, and so makes the same folder differently: orbax first saves an empty tree of the
same names, and each stacked array is then written in its place as plain Zarr, one chunk, which is
one file, per layer (checkpoint/zarr.py). Orbax restores the result like any other, devices read
only their own layers, and we read it as memory maps. What orbax itself wrote is read through
tensorstore.
"""

import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from llama_jax import checkpoint
from llama_jax.checkpoint import manifest as mf
from llama_jax.checkpoint import zarr
from llama_jax.checkpoint.manifest import ArrayRecord, Manifest
from llama_jax.checkpoint.zarr import PlainArray, PlainArrays
from llama_jax.config import InputError, ModelConfig, plain
from llama_jax.config_file import model_json, read_config
from llama_jax.convert import usage
from llama_jax.convert.blocks import BlockFile
from llama_jax.convert.source import Lazy, Source
from llama_jax.convert.usage import Named, Usage
from llama_jax.data.tokenizer import MAX_BYTES, MODEL_FILE, Tokenizer
from llama_jax.model.matrix import dense, matrices, outer_matrices
from llama_jax.model.weights import abstract_params, dense_weights, layer_weights, outer_weights
from llama_jax.runtime.files import json_text, read_bytes, read_json

_CACHE_BYTES = 1 << 29  # a compressed array is one chunk, which serves all its layers


def is_format(path: Path | epath.Path) -> bool:
    """Whether `path` is a model folder or a run folder of ours."""
    if (path / "checkpoints").is_dir() or (path / "params").is_dir():
        return True
    try:
        return "format_version" in read_json(path / "config.json")
    except InputError:
        return False


def read(path: Path, named: Named = "own") -> Source:
    """A model folder, or the newest checkpoint of a run folder whose digests agree.

    Raises InputError if config.json and the arrays do not fit, or the files of a model folder are
    damaged; CheckpointError if no checkpoint of a run folder verifies.
    """
    config, experiment = read_config(path)
    prefix = ""
    if experiment is None:
        folder = path
    else:
        folder, prefix = Path(checkpoint.newest_sound(path)), "params/"
    try:
        manifest = Manifest.read(epath.Path(folder))
    except (ValueError, OSError) as error:
        raise InputError(f"{folder}: {error}") from error
    wanted = {prefix + n: a for n, a in mf.flatten(abstract_params(config)).items()}
    manifest.require_same(wanted, prefix, folder)
    origin: Any = manifest.extra.get("origin")
    if experiment is not None:
        origin = {
            "run": os.fspath(path),
            "step": manifest.step,
            "dataset": experiment.data.dataset,
            "training": read_json(path / "config.json"),
        }
    tensor = _Arrays(folder / manifest.folder, prefix, manifest)
    source = Source(
        format="native",
        path=path,
        config=config,
        tokenizer=read_tokenizer(path) if named == "own" else named,
        tensor=tensor,
        origin=origin,
        usage=Usage.read(path),
        digests={n.split("/")[-1]: manifest.arrays[n].digest for n in wanted},
    )
    return source if config.quant is None else _dense(source)


def read_tokenizer(path: Path | epath.Path) -> bytes | None:
    """The tokenizer of a folder of ours, if it has one."""
    file = path / MODEL_FILE
    if not file.exists():
        return None
    model = read_bytes(file, limit=MAX_BYTES)
    Tokenizer.from_bytes(model, where=str(file))
    return model


def _dense(source: Source) -> Source:
    """A model in fewer bits with its matrices multiplied out, each when it is read."""
    kept = source.config
    assert kept.quant is not None, "it has dense matrices"
    tables = layer_weights(kept), outer_weights(kept)
    shapes = {n: w.shape for n, w in (dense_weights(kept) | outer_weights(kept)).items()}

    def tensor(name: str, layer: int | None) -> Lazy:
        table = tables[layer is None]
        if not table[name].packed:
            return source.tensor(name, layer)
        own = [n for n in table if n == name or (n.startswith(f"{name}_") and table[n].packed)]
        return _Multiplied(source.tensor, name, layer, kept, own, shapes[name])

    return replace(
        source,
        config=replace(plain(kept), param_dtype="float32"),
        tensor=tensor,
        digests={},
        changes=(*source.changes, f"matrices in {kept.quant.weights} multiplied out"),
    )


@dataclass(frozen=True)
class _Multiplied:
    """A matrix in fewer bits, made dense when it is indexed."""

    read: Callable[[str, int | None], Lazy]
    name: str
    layer: int | None
    config: ModelConfig
    parts: list[str]
    """Names of the arrays that it is kept in."""
    shape: tuple[int, ...]

    @property
    def dtype(self) -> Any:
        """float32."""
        return np.dtype(np.float32)

    def __getitem__(self, index: Any) -> np.ndarray:
        flat = {n: jnp.asarray(self.read(n, self.layer)[...]) for n in self.parts}
        values = outer_matrices if self.layer is None else matrices
        return np.asarray(dense(values(flat, self.config)[self.name], jnp.float32))[index]


class _Arrays:
    """The stacked arrays of a folder, opened on first use: maps, or through tensorstore."""

    def __init__(self, folder: Path, prefix: str, manifest: Manifest):
        import tensorstore as ts

        self._folder, self._prefix, self._manifest = folder, prefix, manifest
        self._context = ts.Context({"cache_pool": {"total_bytes_limit": _CACHE_BYTES}})
        try:
            self._plain = PlainArrays(folder)
        except ValueError as error:
            raise InputError(str(error)) from error
        self._open: dict[str, PlainArray | Any] = {}

    def __call__(self, name: str, layer: int | None) -> Lazy:
        path = f"{self._prefix}{name}" if layer is None else f"{self._prefix}layers/{name}"
        record = self._manifest.arrays[path]
        if path not in self._open:
            plain = self._plain.find(path, record.shape, record.dtype)
            self._open[path] = plain or self._opened(path)
        where = f"{self._folder}: {path}"
        return _Part(self._open[path], layer, record.shape, jnp.dtype(record.dtype), where)

    def _opened(self, path: str) -> Any:
        import tensorstore as ts

        key = path.replace("/", ".") + "/"
        base = f"file://{self._folder.absolute()}/"
        kvstore: Any = {"driver": "ocdbt", "base": base, "path": key}
        if not (self._folder / "manifest.ocdbt").exists():
            kvstore = base + key
        try:
            spec = {"driver": "zarr", "kvstore": kvstore, "fill_missing_data_reads": False}
            store = ts.open(spec, context=self._context, read=True).result()
        except ValueError as error:
            raise InputError(f"{self._folder}: {path} cannot be read; see `verify`") from error
        record = self._manifest.arrays[path]
        found = tuple(store.shape), str(jnp.dtype(store.dtype.numpy_dtype))
        if found != (record.shape, record.dtype):
            raise InputError(f"{self._folder}: {path} is {found}, unlike its manifest")
        return store


class _Part:
    """An array, or a layer of it, that is read when indexed."""

    def __init__(
        self,
        stored: PlainArray | Any,
        layer: int | None,
        shape: tuple[int, ...],
        dtype: Any,
        what: str,
    ):
        self._stored, self._layer, self._what = stored, layer, what
        self.shape = shape[layer is not None :]
        self.dtype = dtype

    def __getitem__(self, index: Any) -> np.ndarray:
        stored, layer = self._stored, self._layer
        try:
            if isinstance(stored, PlainArray):
                index = () if index is Ellipsis else index if isinstance(index, tuple) else (index,)
                index = (*index, *(slice(None),) * (len(self.shape) - len(index)))
                if layer is None:
                    return stored.view(index)
                return stored.view((slice(layer, layer + 1), *index))[0]
            return np.asarray((stored if layer is None else stored[layer])[index].read().result())
        except (ValueError, OSError) as error:  # a chunk that is missing or short
            raise InputError(
                f"{self._what} cannot be read; `llama-jax verify` says more"
            ) from error


def write(source: Source, folder: Path, name: str, variant: str) -> None:
    """Write a model folder: params/ layer by layer, config.json, the tokenizer, and the manifest
    last."""
    import orbax.checkpoint as ocp  # a third of a second that only writing needs to spend

    config = source.config
    stacked = mf.flatten(abstract_params(config))
    params = folder / "params"
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=False)) as orbax:
        empty = jax.tree.map(lambda a: np.zeros(1, a.dtype), abstract_params(config))
        orbax.save(params, args=ocp.args.PyTreeSave(empty))
    for path, a in stacked.items():
        chunks = (1, *a.shape[1:]) if path.startswith("layers/") else a.shape
        _declare(params / path.replace("/", "."), a, chunks)
    for (tensor, layer), parts in itertools.groupby(source.stream(), key=lambda part: part[:2]):
        path = tensor if layer is None else f"layers/{tensor}"
        place = [layer or 0, *[0] * (len(stacked[path].shape) - 1)]
        file = params / path.replace("/", ".") / zarr.chunk_name(place)
        with BlockFile(file) as stream:
            for _, _, array in parts:
                stream.write(array)
    files = {"config.json": model_json(config).encode()}
    if source.tokenizer is not None:
        files[MODEL_FILE] = source.tokenizer
    if source.usage != Usage():
        files[usage.FILENAME] = source.usage.to_json().encode()
    manifest = Manifest(
        folder="params",
        arrays={
            path: ArrayRecord(
                shape=a.shape, dtype=str(a.dtype), digest=source.digests[path.split("/")[-1]]
            )
            for path, a in stacked.items()
        },
        files={file: mf.sha256(content) for file, content in files.items()},
        extra={"origin": source.origin},
    )
    for file, content in files.items():
        (folder / file).write_bytes(content)
    (folder / mf.FILENAME).write_text(manifest.to_json())


def _declare(folder: Path, a: Any, chunks: tuple[int, ...]) -> None:
    """Zarr's description of one array in chunks, in place of the empty one."""
    for old in folder.iterdir():
        if old.name != ".zarray":
            old.unlink()
    zarray = read_json(folder / ".zarray")
    zarray = zarr.description(zarray, a.shape, a.dtype, chunks)
    (folder / ".zarray").write_text(json_text(zarray))
