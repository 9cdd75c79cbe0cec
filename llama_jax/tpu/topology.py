"""Slices of TPU chips by the names Google gives them, and how fast their mesh axes are.

`v2-8`, `v3-8`, `v4-128`, `v5p-128` and `tpu7x-128` count TensorCores, two a chip; `v5e-256` (also
`v5litepod-256`) and `v6e-256` count chips; `v5e:16x16` or `tpu7x:4x4x8` gives the chips along each
axis of the torus. `x2` behind any of them means two such slices, joined by the data-centre network.
"""

import dataclasses
import difflib
import itertools
import math
import re

from llama_jax.config import InputError
from llama_jax.tpu.chips import CHIPS, Chip

ALIASES = {"v5litepod": "v5e", "v5lite": "v5e", "v7x": "tpu7x", "ironwood": "tpu7x"}
FLAT_SHAPES = (
    (1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16), (16, 32), (32, 32),
)  # fmt: skip
SMALL_CUBES = ((1, 1, 1), (2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4))


@dataclasses.dataclass(frozen=True)
class Topology:
    """One or more equal slices."""

    generation: str
    shape: tuple[int, ...]
    """Chips along each axis of one slice."""
    slices: int = 1

    @property
    def chip(self) -> Chip:
        """Its row of the chip table."""
        return CHIPS[self.generation]

    @property
    def chips(self) -> int:
        """Chips of all slices."""
        return self.slices * math.prod(self.shape)

    @property
    def devices(self) -> int:
        """Number of devices that jax sees in all slices."""
        return self.chips * self.chip.devices

    @property
    def grid(self) -> str:
        """`v5e:16x16`: one slice as libtpu names it."""
        return f"{self.generation}:{'x'.join(map(str, self.shape))}"

    @property
    def name(self) -> str:
        """`v5e-256` or `v5e-256x2`, as Google names it."""
        count = math.prod(self.shape) * (2 if self.chip.counts_cores else 1)
        return f"{self.generation}-{count}" + (f"x{self.slices}" if self.slices > 1 else "")

    def wraps(self, axis: int) -> bool:
        """Whether a torus axis is a ring: in whole cubes of 4, or on a plane of the largest
        size."""
        extent = self.shape[axis]
        return extent % 4 == 0 if len(self.shape) == 3 else extent == self.chip.largest[axis]


def parse(text: str) -> Topology:
    """The slices that a name stands for.

    Raises:
      InputError: no such generation or shape; the nearest names are given.
    """
    match = re.fullmatch(r"([a-z0-9]+)(?:-(\d+)(?:x(\d+))?|:(\d+(?:x\d+)*))", text.strip())
    generation = ALIASES.get(match[1], match[1]) if match else ""
    if match is None or generation not in CHIPS:
        raise InputError(f"topology {text!r} is unknown; {_nearest(text)}")
    shapes = shapes_of(generation)
    if match[2]:
        cores = 2 if CHIPS[generation].counts_cores else 1
        fitting = [s for s in shapes if math.prod(s) * cores == int(match[2])]
        shape, slices = (fitting or [()])[0], int(match[3] or 1)
    else:
        # One number more than the torus has axes is that of the slices: v5e:16x16x2. Axes that are
        # not named have one chip, as libtpu reads it.
        rank = len(CHIPS[generation].largest)
        numbers = [int(n) for n in match[4].split("x")]
        numbers += [1] * (rank - len(numbers))
        shape, slices = tuple(numbers[:rank]), math.prod(numbers[rank:])
        if len(numbers) > rank + 1 or sorted(shape) not in [sorted(s) for s in shapes]:
            shape = ()
    if not shape or slices < 1:
        raise InputError(f"topology {text!r} does not exist; {_nearest(text)}")
    return Topology(generation, shape, slices)


def shapes_of(generation: str) -> list[tuple[int, ...]]:
    """Every shape that Google offers, smallest first; of equal sizes, the most cubic one first."""
    largest = CHIPS[generation].largest
    if len(largest) == 2:
        return [shape for shape in FLAT_SHAPES if max(shape) <= max(largest)]
    sides = range(4, max(largest) + 1, 4)
    cubes = [
        shape
        for shape in itertools.combinations_with_replacement(sides, 3)
        if all(s <= limit for s, limit in zip(shape, sorted(largest), strict=True))
    ]
    return [*SMALL_CUBES, *sorted(cubes, key=lambda s: (math.prod(s), max(s) - min(s)))]


def names() -> list[str]:
    """The name of every single slice."""
    found = (Topology(g, shape).name for g in CHIPS for shape in shapes_of(g))
    return list(dict.fromkeys(found))


def _nearest(text: str) -> str:
    """The three closest names: of the same generation by size, else by spelling."""
    known = names()
    match = re.match(r"([a-z0-9]+)[-:]([\dx]+)", text.strip())
    generation = ALIASES.get(match[1], match[1]) if match else ""
    near = difflib.get_close_matches(text, known, n=3, cutoff=0.0)
    if match and generation in CHIPS:

        def size(name: str) -> int:
            return int(name.split("-")[1])

        wanted = math.prod(int(n) for n in match[2].split("x") if n)
        if ":" in text:
            wanted *= 2 if CHIPS[generation].counts_cores else 1
        same = [name for name in known if name.startswith(f"{generation}-")]
        near = sorted(same, key=lambda name: abs(size(name) - wanted))[:3]
        near.sort(key=size)
    return f"nearest are {', '.join(near)}; or give the shape, as v5e:16x16 or v5p:4x4x8"
