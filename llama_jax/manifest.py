"""What a saved tree must hold: names, shapes, types and a digest of every array.

The digest of an array is 64 bits, two independent 32-bit lanes, written as 16 hex digits. It is a
sum over elements, so it does not depend on how the array is sharded, and a device computes it
in place. For element `e` of an array in C order let

    bits   its bits as an unsigned integer (types of 8 and 16 bits are widened), modulo 2^32
    index  its linear index modulo 2^32
    row    its linear index, floor-divided by the size of the last axis, modulo 2^32

(index and row together are unique well beyond 2^32 elements). Then, modulo 2^32,

    h = mix(bits + A * index)           lane 1 = sum of h
    g = mix(h ^ (B * row + C))          lane 2 = sum of g

where `mix` is a bijection of 32-bit integers, so that any change of a single element changes
lane 1; other accidental damage goes unseen with probability about 2^-64. It is no protection
against an adversary. Shape and type are compared apart.
"""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class ArrayRecord:
    """One array of a saved tree."""

    shape: tuple[int, ...]
    dtype: str
    digest: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Content of `manifest.json`. The file also holds the SHA-256 of the rest of itself."""

    folder: str
    """Folder beside the manifest in which orbax keeps the arrays: `state` or `params`."""
    arrays: dict[str, ArrayRecord]
    """By name, such as `params/layers/q` or `opt_state/1/mu/layers/q`."""
    step: int | None = None
    """Training step; None for a model folder."""
    files: dict[str, str] = field(default_factory=dict)
    """SHA-256 of other files in the folder, by file name."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Small JSON values of the caller: config digest, data fingerprint, origin."""


def flatten(tree: Any) -> dict[str, Any]:
    """Leaves of any pytree by name: keys, attributes and positions joined with `/`."""
    raise NotImplementedError


def device_digests(tree: Any) -> Any:
    """Digests of a tree of jax arrays, on their devices."""
    raise NotImplementedError


def host_digest(array: Any) -> str:
    """Digest of a NumPy array."""
    raise NotImplementedError
