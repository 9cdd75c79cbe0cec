"""Parses compiled TPU HLO: loops, bytes in HBM, collectives.

The text lists each computation once, in the order of its schedule, and a loop's body is a
computation, so whatever is counted in it is multiplied by the loop's trip count. A layout says
where an array lies: `S(1)` is VMEM, other `S(n)` are small memories, none is HBM.

On tpu7x the SparseCores do the collectives, in three instructions: `custom-call-start` names the
computation, `custom-call-update` takes the arguments, `custom-call-done` gives the results.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

ITEM_BITS = {
    "pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "f8e4m3fn": 8, "f8e5m2": 8, "s16": 16, "u16": 16,
    "bf16": 16, "f16": 16, "s32": 32, "u32": 32, "f32": 32, "s64": 64, "u64": 64, "f64": 64,
}  # fmt: skip
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# Names for what is elsewhere, or halves of an operation that its other half stands for.
_NO_TRAFFIC = {
    "parameter", "constant", "get-tuple-element", "tuple", "bitcast", "while", "conditional",
    "call", "partition-id", "replica-id", "after-all", "copy-done", "slice-done", "async-done",
    "all-gather-done", "all-reduce-done", "collective-permute-done", "iota", "opt-barrier",
    "custom-call-start", "custom-call-done",
}  # fmt: skip
_NO_TRAFFIC_CALLS = ("ConcatBitcast", "AllocateBuffer", "AsyncCollectiveStart")

_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](?:\{([^{}]*)\})?")
_HEAD = re.compile(r"(ENTRY )?%([^\s(]+) \(.*\{$")
_LINE = re.compile(r"\s+(ROOT )?%(\S+) = (.*)$")


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of a shape; a tuple's shape has several."""

    dtype: str
    dims: tuple[int, ...]
    in_hbm: bool

    @property
    def size(self) -> int:
        """Bytes, without the padding of tiles."""
        return math.prod(self.dims) * ITEM_BITS.get(self.dtype, 0) // 8


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    rest: str
    """Attributes, metadata and the compiler's own configuration."""
    root: bool

    @functools.cached_property
    def arrays(self) -> tuple[Array, ...]:
        """The arrays of the shape, in order."""
        return tuple(
            Array(dtype, tuple(int(d) for d in dims.split(",") if d), "S(" not in (layout or ""))
            for dtype, dims, layout in _ARRAY.findall(self.shape)
        )

    def attribute(self, name: str) -> str:
        """The word after `name=`, "" if there is none; a computation without its %."""
        match = re.search(rf"\b{name}=%?([^,\s]+)", self.rest)
        return match[1] if match else ""

    @property
    def called(self) -> str:
        """The computation of a fusion or of an asynchronous operation, "" for all others."""
        match = re.search(r"called_computations=\{%([^,\s}]+)", self.rest)
        return match[1] if match else self.attribute("calls")

    @property
    def op_name(self) -> str:
        """Its origin in the traced program."""
        match = re.search(r'op_name="([^"]*)"', self.rest)
        return match[1] if match else ""

    @property
    def estimated_cycles(self) -> int:
        """The compiler's own estimate; 0 where it gives none, as for Pallas kernels."""
        match = re.search(r'"estimated_cycles":"(\d+)"', self.rest)
        return int(match[1]) if match else 0


@dataclasses.dataclass(frozen=True)
class Computation:
    """A named list of instructions, in scheduled order."""

    name: str
    instructions: tuple[Instruction, ...]

    @functools.cached_property
    def by_name(self) -> dict[str, Instruction]:
        """Every instruction by its name."""
        return {i.name: i for i in self.instructions}

    @functools.cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """The readers of each instruction."""
        found: dict[str, list[Instruction]] = {}
        for instruction in self.instructions:
            for operand in dict.fromkeys(instruction.operands):
                found.setdefault(operand, []).append(instruction)
        return found

    @property
    def root(self) -> Instruction:
        """Its result."""
        return next(i for i in self.instructions if i.root)

    def parameter(self, index: int) -> Instruction:
        """Its index-th argument."""
        return next(
            i for i in self.instructions
            if i.opcode == "parameter" and i.operands == (str(index),)
        )  # fmt: skip


class Program:
    """A parsed HLO module."""

    def __init__(self, text: str):
        self.computations: dict[str, Computation] = {}
        lines: list[Instruction] = []
        name = entry = ""
        for line in text.splitlines():
            if not line.startswith(" "):
                head = _HEAD.match(line)
                if head:
                    name, lines = head[2], []
                    entry = name if head[1] else entry
                elif line.startswith("}"):  # with the thread that runs it, if it is another
                    self.computations[name] = Computation(name, tuple(lines))
                continue
            match = _LINE.match(line)
            if match:
                lines.append(_instruction(match[2], match[3], bool(match[1])))
        if entry not in self.computations:
            raise ValueError("the text holds no ENTRY computation")
        self.entry = self.computations[entry]
        self.unknown_loops: list[str] = []

    def scheduled(self) -> Iterator[tuple[Computation, Instruction, int]]:
        """Every instruction of the schedule (fusions as a whole), and how often it runs."""
        yield from self._scheduled(self.entry, 1)

    def _scheduled(self, computation, times):
        for instruction in computation.instructions:
            yield computation, instruction, times
            if instruction.opcode == "while":
                trips = self.trip_count(computation, instruction)
                if trips is None:
                    self.unknown_loops.append(instruction.name)
                body = self.computations[instruction.attribute("body")]
                yield from self._scheduled(body, times * (1 if trips is None else trips))
            elif instruction.opcode in ("call", "conditional"):
                for name in re.findall(r"%([^\s,{}()]+)", _called(instruction)):
                    yield from self._scheduled(self.computations[name], times)

    def trip_count(self, computation: Computation, loop: Instruction) -> int | None:
        """Iterations of a counted loop, None if it is not one.

        The condition compares element i of the carried tuple with a bound, the body adds a step to
        it, and it starts as element i of the loop's operand.
        """
        condition = self.computations[loop.attribute("condition")]
        body = self.computations[loop.attribute("body")]
        test = condition.root
        if test.opcode != "compare" or "direction=LT" not in test.rest:
            return None
        counter, bound = (condition.by_name[name] for name in test.operands)
        if counter.opcode != "get-tuple-element":
            return None
        start_tuple = computation.by_name[loop.operands[0]]
        index = int(counter.attribute("index"))
        stop = _constant(condition, bound)
        if stop is None and bound.opcode == "get-tuple-element":
            stop = _element(computation, start_tuple, int(bound.attribute("index")))
        start = _element(computation, start_tuple, index)
        step = None
        if body.root.opcode == "tuple":
            added = body.by_name[body.root.operands[index]]
            while added.opcode in ("copy", "bitcast"):
                added = body.by_name[added.operands[0]]
            if added.opcode == "add":
                step = _constant(body, body.by_name[added.operands[1]])
                if step is None:
                    other = body.by_name[added.operands[1]]
                    if other.opcode == "get-tuple-element":
                        step = _element(computation, start_tuple, int(other.attribute("index")))
        if None in (start, stop, step) or not step:
            return None
        return max(0, -(-(stop - start) // step))  # pyrefly: ignore[unsupported-operation]

    def hbm_bytes(self) -> int:
        """Bytes that one device reads from HBM and writes to it."""
        return sum(times * self.traffic(c, i) for c, i, times in self.scheduled())

    def estimated_cycles(self) -> int:
        """The sum of the compiler's estimates of all operations that have one."""
        return sum(times * i.estimated_cycles for _, i, times in self.scheduled())

    def traffic(self, computation: Computation, i: Instruction) -> int:
        """HBM bytes of one execution of one scheduled instruction."""
        if i.opcode in _NO_TRAFFIC or any(name in i.rest for name in _NO_TRAFFIC_CALLS):
            return 0
        if i.opcode in ("copy-start", "slice-start"):
            moved = min(a.size for a in i.arrays[:2])
            return moved * sum(a.in_hbm for a in i.arrays[:2])
        if i.opcode.endswith(("-start", "-update")):
            return sum(a.size for a in i.arrays if a.in_hbm)
        fused = self.computations.get(i.attribute("calls"))
        total = 0
        for index, name in enumerate(i.operands):
            operand = computation.by_name.get(name)
            if operand is None or not any(a.in_hbm for a in operand.arrays):
                continue
            if fused is not None:
                total += self._read(fused, fused.parameter(index))
            elif i.opcode in ("dynamic-slice", "slice", "gather") and index == 0:
                total += sum(a.size for a in i.arrays)
            elif i.opcode == "dynamic-update-slice" and index == 0:
                continue
            else:
                total += sum(a.size for a in operand.arrays if a.in_hbm)
        if i.opcode == "dynamic-update-slice":
            return 2 * total
        written = [a.size if a.in_hbm else 0 for a in i.arrays]
        if fused is not None:
            written = self._written(fused, i.arrays)
        return total + sum(written)

    def _read(self, fused: Computation, value: Instruction) -> int:
        """Bytes of a fusion's argument that it reads: slices where it only slices it."""
        total = 0
        for user in fused.users.get(value.name, ()):
            if user.opcode in ("dynamic-slice", "slice", "gather"):
                if user.operands[0] == value.name:
                    total += sum(a.size for a in user.arrays)
            elif user.opcode == "dynamic-update-slice" and user.operands[0] == value.name:
                continue
            elif user.opcode == "bitcast":
                total += self._read(fused, user)
            elif user.opcode == "fusion":
                inner = self.computations[user.attribute("calls")]
                for index, name in enumerate(user.operands):
                    if name == value.name:
                        total += self._read(inner, inner.parameter(index))
            elif user.opcode != "tuple":
                return sum(a.size for a in value.arrays)
        return min(total, sum(a.size for a in value.arrays))

    def _written(self, fused: Computation, arrays: tuple[Array, ...]) -> list[int]:
        """Bytes of each of a fusion's results: those of the update where it writes in place."""
        outs = [fused.root]
        if fused.root.opcode == "tuple":
            outs = [fused.by_name[name] for name in fused.root.operands]
        sizes = []
        for array, out in zip(arrays, outs, strict=False):
            while out.opcode in ("bitcast", "copy") and out.operands[0] in fused.by_name:
                out = fused.by_name[out.operands[0]]
            if out.opcode == "parameter" or not array.in_hbm:
                sizes.append(0)
            elif out.opcode == "dynamic-update-slice":
                sizes.append(sum(a.size for a in fused.by_name[out.operands[1]].arrays))
            else:
                sizes.append(array.size)
        return sizes

    def inside(self, computation: Computation, instruction: Instruction) -> Iterator[Instruction]:
        """An instruction and everything in it: in a fusion, or in the computation that it
        starts."""
        yield instruction
        if instruction.opcode in ("fusion", "async-start", "custom-call-start"):
            called = self.computations.get(instruction.called)
            if called is not None:
                for inner in called.instructions:
                    yield from self.inside(called, inner)


def closing(text: str) -> int:
    """Index at which the first bracket of a text is closed."""
    depth = 0
    for match in re.finditer(r"[()]", text):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.start()
    raise ValueError(f"no closing bracket in {text[:80]!r}")


def _instruction(name: str, text: str, root: bool) -> Instruction:
    """`SHAPE OPCODE(OPERANDS), REST`; a tuple's shape is in brackets."""
    end = closing(text) + 1 if text[0] == "(" else 0
    end = text.index(" ", end)
    shape, text = text[:end], text[end + 1 :]
    opcode = text[: text.index("(")]
    end = closing(text)
    inside, rest = text[len(opcode) + 1 : end], text[end + 1 :]
    operands = tuple(re.findall(r"%([^\s,()]+)", inside))
    if opcode in ("parameter", "constant"):
        operands = (inside,)
    return Instruction(name, shape, opcode, operands, rest, root)


def _called(instruction: Instruction) -> str:
    """The part of the attributes that names the computations of a call or conditional."""
    match = re.search(
        r"(?:to_apply|branch_computations|true_computation)=.*?(?:\}|metadata|$)", instruction.rest
    )
    return match[0] if match else ""


def _constant(computation: Computation, instruction: Instruction) -> int | None:
    while instruction.opcode in ("copy", "bitcast"):
        instruction = computation.by_name[instruction.operands[0]]
    if instruction.opcode != "constant" or not re.fullmatch(r"-?\d+", instruction.operands[0]):
        return None
    return int(instruction.operands[0])


def _element(computation: Computation, made: Instruction, index: int) -> int | None:
    if made.opcode != "tuple":
        return None
    return _constant(computation, computation.by_name[made.operands[index]])
