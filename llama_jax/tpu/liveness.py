"""The arrays alive in a chip's HBM at peak use, read from the schedule.

The compiler reports how much a program allocates; what for, it does not say. Its schedule does:
walking through it, an array is born where an instruction writes it and dies after its last reader,
and instructions that work in place hand their argument's memory on.
"""

import dataclasses
import json
import re

from llama_jax.tpu.hlo import COLLECTIVES, Computation, Instruction, Program

# Their results are their arguments, seen otherwise.
_VIEWS = {"bitcast", "tuple", "get-tuple-element", "opt-barrier", "after-all"}
_IN_PLACE = {"dynamic-update-slice", "while"}


@dataclasses.dataclass(frozen=True, eq=False)
class Buffer:
    """One array in HBM."""

    dtype: str
    dims: tuple[int, ...]
    size: int
    origin: str
    """Its origin in the traced program; for an argument its name."""
    kind: str
    """argument, collective, carried (made outside the loops) or other."""


class Liveness:
    """`buffers` are live at the peak, `peak` bytes in total, including the arguments."""

    def __init__(self, program: Program):
        self.program = program
        self.peak = 0
        self.buffers: list[Buffer] = []
        self._walk(program.entry, None, [])

    def _walk(self, computation: Computation, carried, outside: list[Buffer]):
        """Schedule one computation; returns what its root holds.

        carried: what each array of its parameter holds; None for the entry.
        outside: live while it runs, beside what is carried.
        """
        holds: dict[str, list[Buffer | None]] = {}
        last = _last_uses(computation)
        alive: dict[Buffer, int] = {}
        for position, i in enumerate(computation.instructions):
            if i.opcode == "parameter" and carried is not None:
                holds[i.name] = carried
            else:
                holds[i.name] = self._made(computation, i, holds, alive, outside, carried is None)
            for buffer, end in zip(holds[i.name], _ends(computation, i, last), strict=False):
                if buffer is not None:
                    alive[buffer] = max(alive.get(buffer, 0), end, position)
            self._record([*outside, *alive])
            for buffer in [b for b, end in alive.items() if end <= position]:
                if buffer.kind != "argument":
                    del alive[buffer]
        return holds[computation.root.name]

    def _record(self, live: list[Buffer]) -> None:
        total = sum(b.size for b in dict.fromkeys(live))
        if total > self.peak:
            self.peak, self.buffers = total, list(dict.fromkeys(live))

    def _made(self, computation, i: Instruction, holds, alive, outside, at_entry):
        """The buffer of each array that an instruction returns, None for one outside HBM."""
        operands = [b for name in i.operands for b in holds.get(name, [])]
        if i.opcode == "get-tuple-element":
            return [holds[i.operands[0]][k] for k in _leaves(computation, i)]
        if i.opcode in _VIEWS or 'custom_call_target="ConcatBitcast"' in i.rest:
            return operands if len(operands) >= len(i.arrays) else operands[:1] * len(i.arrays)
        if i.opcode.endswith("-done"):
            return self._done(i, [b for b in operands if b is not None], at_entry)
        if i.opcode == "custom-call-update":
            # (arguments, results, scratch memory), of what its first operand began.
            begun = computation.by_name[i.operands[0]]
            given = [b for name in i.operands[1:] for b in holds.get(name, [])]
            made = [self._new(begun, a, at_entry) if a.in_hbm else None for a in i.arrays]
            return [*given, *made[len(given) :]]
        if i.opcode == "while":
            body = self.program.computations[i.attribute("body")]
            live = [b for b in alive if b not in operands]
            self._walk(body, operands, [*outside, *live])
            return operands
        if i.opcode.endswith("-start") and len(i.arrays) > 1:
            # (argument, result, ...), but of a copy (result, argument, ...).
            given = 1 if i.opcode == "copy-start" else 0
            made = [self._new(i, a, at_entry) if a.in_hbm else None for a in i.arrays]
            made[given] = operands[0] if operands else None
            return made
        shared = _shared(i, [len(holds.get(name, [])) for name in i.operands])
        if i.opcode in _IN_PLACE:
            shared = {0: 0}
        made: list[Buffer | None] = []
        for k, array in enumerate(i.arrays):
            given = operands[shared[k]] if shared.get(k, len(operands)) < len(operands) else None
            if not array.in_hbm or i.opcode in ("constant", "partition-id"):
                made.append(None)
            elif given is not None and given.size == array.size:
                made.append(given)
            else:
                made.append(self._new(i, array, at_entry))
        return made

    def _done(self, i: Instruction, started: list[Buffer], at_entry: bool) -> list[Buffer | None]:
        """The arrays of a finished operation, among those that it was given or had made."""
        found = []
        for wanted in i.arrays:
            same = [b for b in started if (b.dims, b.dtype) == (wanted.dims, wanted.dtype)]
            # Arguments come first, but for those of a copy.
            buffer = same[0 if i.opcode == "copy-done" else -1] if same else None
            if buffer is None:
                buffer = self._new(i, wanted, at_entry)
            else:
                started.remove(buffer)
            found.append(buffer if wanted.in_hbm else None)
        return found

    def _new(self, i: Instruction, array, at_entry: bool) -> Buffer:
        inner = self.program.computations.get(i.called)
        names = {i.opcode} | ({j.opcode for j in inner.instructions} if inner else set())
        kind = "carried" if at_entry else "other"
        if i.opcode == "parameter":
            kind = "argument"
        elif any(name.removesuffix("-start") in COLLECTIVES for name in names):
            kind = "collective"
        return Buffer(array.dtype, array.dims, array.size, i.op_name, kind)


def _last_uses(computation: Computation) -> dict[str, int]:
    """Position after which nothing reads an instruction's arrays, through views of them too."""
    last: dict[str, int] = {}
    for position, i in enumerate(computation.instructions):
        for name in i.operands:
            last[name] = position
        if i.root:
            last[i.name] = len(computation.instructions)
    for i in reversed(computation.instructions):
        if i.opcode in ("tuple", "bitcast", "opt-barrier") or i.opcode.endswith(
            ("-start", "-update")
        ):
            for name in i.operands:
                last[name] = max(last.get(name, 0), last.get(i.name, 0))
    return last


def _ends(computation: Computation, i: Instruction, last: dict[str, int]) -> list[int]:
    """Last use of each array of an instruction; of a loop's, one by one."""
    users = computation.users.get(i.name, [])
    if i.opcode != "while" or i.root or any(u.opcode != "get-tuple-element" for u in users):
        return [last.get(i.name, 0)] * max(len(i.arrays), 1)
    ends = [0] * len(i.arrays)
    for user in users:
        for leaf in _leaves(computation, user):
            ends[leaf] = max(ends[leaf], last.get(user.name, 0))
    return ends


def _leaves(computation: Computation, element: Instruction) -> list[int]:
    """Positions of a tuple element's arrays among all arrays of the tuple."""
    made = computation.by_name[element.operands[0]]
    index = int(element.attribute("index"))
    depth, start, counts = 0, 1, []
    for at, char in enumerate(made.shape):
        depth += (char in "([{") - (char in ")]}")
        if (char == "," and depth == 1) or depth == 0:
            counts.append(len(re.findall(r"\w+\[[\d,]*\]", made.shape[start:at])))
            start = at + 1
        if depth == 0:
            break
    first = sum(counts[:index])
    return list(range(first, first + counts[index]))


def _shared(i: Instruction, sizes: list[int]) -> dict[int, int]:
    """Result array -> operand array whose memory it takes over, both counted from 0."""
    match = re.search(r'"aliasing_operands":(\{"lists":\[(?:\{[^}]*\},?)*\]\})', i.rest)
    lists = json.loads(match[1])["lists"] if match else []
    count = sum(sizes)
    shared = {}
    for entry in lists:
        indices = [int(n) for n in entry.get("indices", [])]
        given = [n for n in indices if n < count]
        for n in indices:
            if n >= count and given:
                shared[n - count] = given[0]
    return shared
