"""The collectives of a compiled program: which devices they join, how many bytes each sends."""

import dataclasses
import math
import re

from llama_jax.tpu.hlo import COLLECTIVES, Program


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective operation and how often the program runs it."""

    kind: str
    group: tuple[int, ...]
    """Devices of one group, as positions in the mesh."""
    payload: int
    """Bytes of the whole array: gathered, before it is scattered, reduced, or sent."""
    times: int
    op_name: str

    @property
    def link_bytes(self) -> float:
        """Bytes that one device sends in total."""
        n = len(self.group)
        share = {"all-reduce": 2 * (n - 1) / n, "collective-permute": 1.0}
        return self.times * self.payload * share.get(self.kind, (n - 1) / n)


def collectives(program: Program, num_devices: int) -> list[Collective]:
    """Every collective, including those inside fusions, each once however many phases it is split
    into."""
    found: dict[str, Collective] = {}
    for computation, instruction, times in program.scheduled():
        for inner in program.inside(computation, instruction):
            kind = inner.opcode.removesuffix("-start")
            if kind not in COLLECTIVES:
                continue
            fused = instruction.attribute("calls") if inner is not instruction else ""
            arrays = [a.size for a in inner.arrays]
            payload = max(arrays) if inner.opcode.endswith("-start") else sum(arrays)
            group = _group(inner.rest, num_devices)
            if kind == "reduce-scatter":
                payload *= len(group)
            elif kind == "all-reduce" and "all-reduce-scatter" in fused:
                kind = "reduce-scatter"
            if not _goes_on(program, fused):
                found[inner.name] = Collective(kind, group, payload, times, inner.op_name)
    return [c for c in found.values() if len(c.group) > 1]


def _goes_on(program: Program, fused: str) -> bool:
    """Whether a fusion is a later phase of a collective that another one has begun."""
    called = program.computations.get(fused)
    if called is None:
        return False
    later = fused.startswith("async_collective_fusion")
    return later or any("AsyncCollectiveDone" in i.rest for i in called.instructions)


def _group(rest: str, num_devices: int) -> tuple[int, ...]:
    """The first group of devices that a collective joins."""
    match = re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", rest)
    if match:
        return tuple(sorted({int(match[1]), int(match[2])}))
    match = re.search(r"replica_groups=mesh\[([^\]]*)\](?:\([^)]*\))? \{([^}]*)\}", rest)
    if match:
        axes = [(n, int(s)) for n, s in re.findall(r"'([^']+)'=(\d+)", match[1])]
        wanted = re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", match[2])
        return _along(axes, wanted)
    match = re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest)
    if match:
        dims = [int(d) for d in match[3].split(",")]
        order = [int(d) for d in match[4].split(",")] if match[4] else list(range(len(dims)))
        strides = [math.prod(dims[i + 1 :]) for i in range(len(dims))]
        group, sizes = [], [dims[i] for i in order]
        for flat in range(int(match[2])):
            place = 0
            for size, stride in zip(reversed(sizes), [strides[i] for i in reversed(order)],
                                    strict=True):  # fmt: skip
                flat, at = divmod(flat, size)
                place += at * stride
            group.append(place)
        return tuple(group)
    match = re.search(r"replica_groups=\{\{([\d,]+)\}", rest)
    if match:
        return tuple(int(d) for d in match[1].split(","))
    return tuple(range(num_devices))


def _along(axes, wanted) -> tuple[int, ...]:
    """Positions along the wanted axes, or parts `:(before)size` of them, others at 0."""
    strides, stride = {}, 1
    for name, size in reversed(axes):
        strides[name] = stride, size
        stride *= size
    group = [0]
    for name, before, size in wanted:
        stride, whole = strides[name]
        if size:
            stride *= whole // (int(before) * int(size))
        group = [g + i * stride for g in group for i in range(int(size or whole))]
    return tuple(group)
