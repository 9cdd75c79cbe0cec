"""The proof of a conversion: digests of every tensor, and logits of source and result.

Every tensor is digested (manifest.py) as it passes, in our layout and in the type to be written,
and again when it is read back from the result: equal digests say that each number arrived. The
logits of both are computed on fixed tokens, one tensor in memory at a time, in float32. They are
the same by construction where no digest differs, and measure the loss where one does (int8).
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llama_jax.checkpoint import manifest as mf
from llama_jax.config import InputError
from llama_jax.convert.source import Lazy, Source, on_host, tensors
from llama_jax.model.layer import decoder_layer
from llama_jax.model.weights import layer_weights
from llama_jax.ops.norm import rms_norm

NUM_TOKENS = 16
TOP = 8  # logits kept for each position, so that `verify` can compare without the source


class Digests(Mapping[str, str]):
    """Digest of each tensor by name, from those of its parts as they come."""

    def __init__(self):
        self._lanes: dict[str, dict[int, Any]] = {}

    def add(
        self, name: str, layer: int | None, at: Sequence[int], part: jax.Array, shape: Sequence[int]
    ) -> None:
        """Take in a part that begins at index `at` of a layer; the same again changes nothing."""
        first = np.ravel_multi_index(at, shape) if part.size else 0
        start = (layer or 0) * math.prod(shape) + int(first)
        self._lanes.setdefault(name, {})[start] = mf.digest(part, start, tuple(shape))

    def __getitem__(self, name: str) -> str:
        return mf.as_text(*self._lanes[name].values())

    def __iter__(self) -> Iterator[str]:
        return iter(self._lanes)

    def __len__(self) -> int:
        return len(self._lanes)


def recorded(
    source: Source, dtype: str | None, tick: Callable[[int], object]
) -> tuple[Source, Digests]:
    """The source with its tensors dense, cast to `dtype`, digested and counted as they are read.

    Also the digests of what was read before any cast, if the source has some to compare with.
    Raises InputError, when tensors are read, if a cast overflows.
    """
    config = replace(source.config, param_dtype=dtype or source.config.param_dtype)  # pyrefly: ignore[bad-argument-type]
    target = jnp.dtype(config.param_dtype)
    digests, stored_digests = Digests(), Digests()

    def tensor(name: str, layer: int | None) -> Lazy:
        lazy = source.tensor(name, layer)

        def read(index: Any) -> np.ndarray:
            stored = array = on_host(lazy[index])
            cuts = index if isinstance(index, tuple) else ()
            at = [cut.start or 0 for cut in cuts] + [0] * (len(lazy.shape) - len(cuts))
            if source.digests:
                stored_digests.add(name, layer, at, stored, lazy.shape)
            if stored.dtype != target:
                array = _cast(stored, target, name, layer)
            digests.add(name, layer, at, array, lazy.shape)
            tick(array.nbytes)
            return np.asarray(array)

        return _Recorded(tuple(lazy.shape), target, read)

    return replace(source, config=config, tensor=tensor, digests=digests), stored_digests


@dataclass(frozen=True)
class _Recorded:
    """A tensor of which each part is recorded when it is read; `...` is all of it."""

    shape: tuple[int, ...]
    dtype: Any
    read: Callable[[Any], np.ndarray]

    def __getitem__(self, index: Any) -> np.ndarray:
        return self.read(index)


def check_stored(source: Source, found: Mapping[str, str]) -> None:
    """Raise InputError if the source itself gave other digests for what was found in it."""
    for name, digest in source.digests.items():
        if name in found and found[name] != digest:
            raise InputError(
                f"{source.path}: {name} is damaged (its digest is {found[name]}, not {digest})"
            )


def _cast(stored: jax.Array, dtype: Any, name: str, layer: int | None) -> jax.Array:
    """Rounded to the nearest. Raises InputError if a finite number becomes infinite."""
    array = stored.astype(dtype)
    if jnp.finfo(dtype).max < jnp.finfo(stored.dtype).max:
        lost = jnp.isfinite(stored) & ~jnp.isfinite(array)
        if bool(jnp.any(lost)):
            where = name if layer is None else f"{name} of layer {layer}"
            largest = float(jnp.max(jnp.abs(jnp.where(lost, stored, 0))))
            raise InputError(
                f"{where} holds {largest:g}, beyond the range of {dtype}: use --dtype bfloat16"
            )
    return array


def digests_of(source: Source, dtype: str, tick: Callable[[int], object]) -> dict[str, str]:
    """Digest of every tensor of a source, cast to `dtype`, that is read for nothing else."""
    reading, _ = recorded(source, dtype, tick)
    for _ in reading.stream():
        pass
    return dict(reading.digests)


# ---- Logits


class _Weights(Mapping[str, jax.Array]):
    """A layer's tensors in float32, each read when it is used and then let go."""

    def __init__(self, source: Source, layer: int):
        self._source, self._layer = source, layer

    def __getitem__(self, name: str) -> jax.Array:
        return on_host(self._source.tensor(name, self._layer)[...]).astype(jnp.float32)

    def __iter__(self) -> Iterator[str]:
        return iter(layer_weights(self._source.config))

    def __len__(self) -> int:
        return len(layer_weights(self._source.config))


def fixed_tokens(vocab_size: int) -> list[int]:
    """The tokens that proofs are made on: BOS and random ones."""
    drawn = np.random.default_rng(0).integers(0, vocab_size, NUM_TOKENS - 1)
    return [1 % vocab_size, *drawn.tolist()]


def logits(source: Source, tokens: list[int]) -> np.ndarray:
    """float32 [T,V] of one row of tokens, one tensor in memory at a time."""
    cfg = replace(source.config, dtype="float32", param_dtype="float32", attention="xla")
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        embed = source.tensor("embed", None)
        rows = np.stack([embed[t : t + 1][0] for t in tokens])
        x = jnp.asarray(rows).astype(jnp.float32)[None]
        positions = jnp.arange(len(tokens))[None]
        for layer in range(cfg.num_layers):
            x, _ = decoder_layer(_Weights(source, layer), x, None, positions, None, cfg=cfg)
        norm = on_host(source.read("norm")).astype(jnp.float32)
        x = rms_norm(x, norm, eps=cfg.norm_eps)[0]
        rows = source.stream([("embed" if cfg.tie_embeddings else "head", None)], interleaved=False)
        parts = [x @ jnp.asarray(part).astype(jnp.float32).T for *_, part in rows]
        return np.concatenate(parts, axis=-1)


def excerpt(values: np.ndarray, tokens: list[int]) -> dict[str, Any]:
    """What a report keeps of logits [T,V]: the largest few of each position, as JSON."""
    top = np.argsort(-values, axis=-1, kind="stable")[:, :TOP]
    kept = np.take_along_axis(values, top, axis=-1)
    return {"tokens": tokens, "top": top.tolist(), "values": kept.tolist()}


def compare(kept: Mapping[str, Any], values: np.ndarray) -> tuple[float, float]:
    """Largest difference and top-1 agreement (0 to 1) of an excerpt and logits [T,V]."""
    top = np.asarray(kept["top"])
    there = np.take_along_axis(values, top, axis=-1)
    difference = float(np.max(np.abs(there - np.asarray(kept["values"]))))
    return difference, float(np.mean(np.argmax(values, axis=-1) == top[:, 0]))


def parameter_count(source: Source) -> int:
    """Parameters of the model, tied ones once."""
    return sum(math.prod(w.shape) for _, _, w in tensors(source.config))


def size_in_bytes(source: Source, dtype: str) -> int:
    """Bytes of all tensors in a type."""
    return parameter_count(source) * jnp.dtype(dtype).itemsize
