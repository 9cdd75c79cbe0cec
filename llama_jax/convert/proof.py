"""The proof of a conversion: digests of every tensor, and logits of source and result.

Every tensor is digested (manifest.py) as it passes, in our layout and in the type to be written,
and again when it is read back from the result: equal digests say that each number arrived. Numbers
that are not finite are counted on the way. The logits of both are computed on fixed tokens, one
tensor in memory at a time, in float32. They are the same by construction where no digest differs,
and measure the loss where one does (int8).
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from llama_jax.checkpoint import manifest as mf
from llama_jax.config import InputError, ModelConfig
from llama_jax.convert.source import Lazy, Source, on_host
from llama_jax.model import weights
from llama_jax.model.layer import attention, attention_output, mlp, mlp_output
from llama_jax.ops.norm import rms_norm

NUM_TOKENS = 16
MAX_TOKENS = 256
"""Maximum number of tokens of a report that is read."""
DTYPES = ("float32", "bfloat16", "float16")
TOP = 8  # logits kept for each position, so that `verify` can compare without the source


class Digests(Mapping[str, str]):
    """Digest of each tensor by name, added up from those of its parts as they arrive."""

    def __init__(self):
        self._lanes: dict[str, dict[int, Any]] = {}
        self._not_finite: dict[str, dict[int, jax.Array]] = {}

    def add(
        self, name: str, layer: int | None, at: Sequence[int], part: jax.Array, shape: Sequence[int]
    ) -> None:
        """Add a part that begins at index `at` of a layer; adding it again changes nothing."""
        first = np.ravel_multi_index(at, shape) if part.size else 0
        start = (layer or 0) * math.prod(shape) + int(first)
        self._lanes.setdefault(name, {})[start] = mf.digest(part, start, tuple(shape))
        self._not_finite.setdefault(name, {})[start] = _count_not_finite(part)

    def __getitem__(self, name: str) -> str:
        return mf.as_text(*self._lanes[name].values())

    def __iter__(self) -> Iterator[str]:
        return iter(self._lanes)

    def __len__(self) -> int:
        return len(self._lanes)

    def not_finite(self) -> dict[str, int]:
        """Number of NaN or infinite values of each tensor that has any."""
        counts = {name: sum(map(int, parts.values())) for name, parts in self._not_finite.items()}
        return {name: count for name, count in counts.items() if count}


@jax.jit
def _count_not_finite(part: jax.Array) -> jax.Array:
    return jnp.sum(~jnp.isfinite(part), dtype=jnp.uint32)


def recorded(
    source: Source, dtype: str | None, tick: Callable[[int], object]
) -> tuple[Source, Digests]:
    """The source with its tensors dense, cast to `dtype`, and digested and counted as they are
    read.

    It also records digests before any cast, if the source has some to compare with. Raises
    InputError, when tensors are read, if a cast overflows.
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
    """Raise InputError if the digests stored in the source differ from those of what was read."""
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


def digests_of(source: Source, dtype: str, tick: Callable[[int], object]) -> Digests:
    """Digest of every tensor of a source, cast to `dtype`; the tensors are read only for this."""
    reading, _ = recorded(source, dtype, tick)
    for _ in reading.stream():
        pass
    assert isinstance(reading.digests, Digests)
    return reading.digests


# ---- Logits


def fixed_tokens(vocab_size: int) -> list[int]:
    """The tokens on which proofs compute logits: BOS and random ones."""
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
            x = _layer(source, layer, x, positions, cfg)
        norm = on_host(source.read("norm")).astype(jnp.float32)
        x = rms_norm(x, norm, eps=cfg.norm_eps)[0]
        rows = source.stream([("embed" if cfg.tie_embeddings else "head", None)], interleaved=False)
        parts = [x @ jnp.asarray(part).astype(jnp.float32).T for *_, part in rows]
        return np.concatenate(parts, axis=-1)


def _layer(
    source: Source, layer: int, x: jax.Array, positions: jax.Array, cfg: ModelConfig
) -> jax.Array:
    """`decoder_layer`, of which each half reads its tensors when it uses them and lets them go.

    All layers share one compiled attention, which in a call of its own is compiled every time.
    """

    def read(names: str) -> dict[str, jax.Array]:
        return {
            name: on_host(source.tensor(name, layer)[...]).astype(jnp.float32)
            for name in names.split()
        }

    out, _ = _attention(read("attn_norm q k v"), x, None, positions, None, cfg=cfg, zigzag=False)
    x = x + attention_output(read("o"), out)
    g, u = mlp(read("mlp_norm gate up"), x, cfg=cfg)
    return x + mlp_output(read("down"), g, u)


_attention = jax.jit(attention, static_argnames=("cfg", "zigzag"))


class Agreement(NamedTuple):
    """The agreement of two sets of logits."""

    largest_difference: float | None
    """None if either is not finite: nothing is known of such numbers."""
    top1: float
    """Share of positions with the same most likely token; a position with non-finite logits counts
    as different."""


def excerpt(values: np.ndarray, tokens: list[int]) -> dict[str, Any]:
    """The part of logits [T,V] that a report keeps: the largest few of each position, as JSON."""
    top = np.argsort(-values, axis=-1, kind="stable")[:, :TOP]
    kept = np.take_along_axis(values, top, axis=-1).tolist()
    finite = [[v if math.isfinite(v) else None for v in row] for row in kept]
    whole = np.isfinite(values).all(axis=-1).tolist()
    return {"tokens": tokens, "top": top.tolist(), "values": finite, "finite": whole}


def compare(kept: Mapping[str, Any], values: np.ndarray) -> Agreement:
    """Compares an excerpt with logits [T,V]. Excerpts of older versions have no `finite`."""
    top = np.asarray(kept["top"])
    before = np.array(kept["values"], np.float64)  # NaN for None
    finite = np.isfinite(values).all(axis=-1) & np.isfinite(before).all(axis=-1)
    finite &= np.asarray(kept.get("finite") or True)
    there = np.take_along_axis(values, top, axis=-1)
    same = np.argmax(values, axis=-1) == top[:, 0]
    difference = float(np.max(np.abs(there - before))) if finite.all() else None
    return Agreement(difference, float(np.mean(same & finite)))


def in_words(logits: Mapping[str, Any]) -> str:
    """The agreement of two models' logits, in words; none is claimed where they are not finite."""
    if logits["largest_difference"] is None:
        return "not finite, so the models cannot be compared"
    return (
        f"largest difference {logits['largest_difference']:.3g}, top-1 agreement "
        f"{100 * logits['top1_agreement']:.0f} %"
    )


def parameter_count(source: Source) -> int:
    """Parameters of the model, tied ones counted once."""
    return weights.parameter_count(source.config)


def size_in_bytes(source: Source, dtype: str) -> int:
    """Bytes of all tensors in a dtype."""
    return parameter_count(source) * jnp.dtype(dtype).itemsize
