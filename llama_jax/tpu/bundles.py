"""Estimates a TPU kernel's cycles from the compiler's final schedule, without a TPU.

libtpu compiles a Pallas kernel on any x86-64 Linux machine, down to bundles: very long instruction
words, one a cycle when nothing stalls. This module has it dump them, cuts the program where control
flow does, and multiplies each region by how often the kernel visits it. The compiler may issue
products faster than the matrix units take rows and count on stalls to space them out, so a region
lasts for its bundles or for the rows of its busiest matrix unit, whichever is longer.

What it cannot see: waits for memory (the bytes are set against the bandwidth beside it), other
stalls, and trip counts, which whoever describes the kernel must supply.
"""

import collections
import dataclasses
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from llama_jax.tpu.chips import CHIPS

SLOTS = (
    *("matmul", "matpush", "xlu", "valu", "vpop", "eup"),
    *("vload", "fill", "vstore", "spill", "salu"),
)
# Regions with less vector work than this are the scalar bookkeeping around a grid step.
VECTOR_WORK = 64
# A branch takes effect after four more bundles.
DELAY_SLOTS = 4
# Rows that one product instruction streams past a matrix unit; from the unit's own register, half.
ROWS = {"f32": 8, "bf16": 16, "s8": 32, "u8": 32}
MATMUL = re.compile(rf"vmatmul\.(lmr\.)?(?:mubr\.)?({'|'.join(ROWS)})\.\S*mxu(\d)")


@dataclasses.dataclass(frozen=True)
class Region:
    """Straight-line code between two places where control flow may branch."""

    start: int
    depth: int
    """Loops around it; the outermost is the grid."""
    bundles: int
    slots: dict[str, int]
    """Slots used, by unit."""
    matmul_cycles: int
    """Cycles that the busiest matrix unit needs for its rows."""

    @property
    def cycles(self) -> int:
        """Duration of one visit without memory stalls."""
        return max(self.bundles, self.matmul_cycles)

    @property
    def is_vector(self) -> bool:
        """Whether it works on vectors rather than doing bookkeeping."""
        return sum(self.slots[n] for n in ("matmul", "valu", "vload", "vstore")) >= VECTOR_WORK


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The compiled form of one kernel."""

    name: str
    capacity: dict[str, int]
    """Slots of one bundle, by unit."""
    regions: tuple[Region, ...]
    vmem_bytes: int
    """Blocks, scratch and spills."""

    def total(self, slot: str) -> int:
        """Slots used in the whole text of the kernel, each region once."""
        return sum(region.slots[slot] for region in self.regions)

    @property
    def bundles(self) -> int:
        """Length of the text."""
        return sum(region.bundles for region in self.regions)

    def share(self, slot: str) -> float:
        """Share of the text's slots of one unit that are used."""
        return self.total(slot) / (self.capacity[slot] * self.bundles)

    def cycles(self, visits: Sequence[int], loops: Sequence[int]) -> int:
        """Cycles when the vector regions, in order, run `visits` times.

        `loops` says how often scalar code runs: in the grid, in a loop within it, and so on.

        Raises ValueError if the kernel has another number of vector regions.
        """
        vector = [region for region in self.regions if region.is_vector]
        if len(vector) != len(visits):
            found = [(region.start, region.bundles) for region in vector]
            raise ValueError(
                f"{self.name} has {len(vector)} vector regions, not {visits=}: {found}"
            )
        work = sum(r.cycles * n for r, n in zip(vector, visits, strict=True))
        return work + self._bookkeeping(loops)

    def _bookkeeping(self, loops: Sequence[int]) -> int:
        times = (1, *loops)
        return sum(
            region.bundles * times[min(region.depth, len(loops))]
            for region in self.regions
            if not region.is_vector
        )

    def busy(self, slot: str, visits: Sequence[int], loops: Sequence[int]) -> float:
        """Share of the executed bundles' slots of one unit that are used."""
        vector = [region for region in self.regions if region.is_vector]
        used = sum(r.slots[slot] * n for r, n in zip(vector, visits, strict=True))
        executed = sum(r.bundles * n for r, n in zip(vector, visits, strict=True))
        executed += self._bookkeeping(loops)
        return used / (self.capacity[slot] * executed)


def parse(folder: Path, rows_per_cycle: int) -> list[Schedule]:
    """The kernels in a folder of dumps; what XLA itself compiled is left out."""
    vmem = {}
    for report in folder.glob("*vmem_report.html"):
        text = report.read_text()
        data = text[text.index("const DATA =") + len("const DATA =") :].lstrip()
        for name, entry in json.JSONDecoder().raw_decode(data)[0]["hlo_breakdowns"].items():
            vmem[name] = int(entry["total_size"])
    schedules = []
    for bundles in sorted(folder.glob("*-final_bundles.txt")):
        match = re.fullmatch(r"\d+-(.+)-\d+-final_bundles\.txt", bundles.name)
        if match is None or "<" in match[1] or match[1] == "TLP" or "schedule" in match[1]:
            continue
        name = match[1]
        if vmem.get(name, 0) == 0:
            continue
        stem = bundles.name.split(f"-{name}-")[0]
        (usage,) = folder.glob(f"{stem}-{name}-*per-bundle-utilization.txt")
        texts = bundles.read_text(), usage.read_text()
        schedules.append(_schedule(name, *texts, vmem[name], rows_per_cycle))
    return schedules


def _schedule(name: str, bundles: str, usage: str, vmem: int, rows_per_cycle: int) -> Schedule:
    lines = usage.splitlines()
    capacity = dict(zip(SLOTS, map(int, lines[2].split()), strict=True))
    rows = [tuple(map(int, line.split())) for line in lines[4:] if line.strip()]
    cuts = {0, len(rows)}
    products: list[tuple[int, str, int]] = []
    depths = [0] * len(rows)
    address = depth = 0
    for line in bundles.splitlines():
        match = re.match(r"\s*(0x[0-9a-f]+|0)\s+(LB|PB|PF|CT|LH|LE)?\s*:\s*(>*)(\s*{})?", line)
        if match:
            address = int(match[1], 16)
            # Empty bundles are not marked.
            depth = depth if match[4] else len(match[3])
            depths[address] = depth
            if match[2]:
                cuts.add(address)
        if "sbr.rel" in line:
            cuts.add(min(address + DELAY_SLOTS + 1, len(rows)))
        for register, dtype, unit in MATMUL.findall(line):
            products.append((address, unit, ROWS[dtype] // (2 if register else 1)))
    edges = sorted(cuts)
    regions = []
    for start, stop in itertools.pairwise(edges):
        slots = dict(zip(SLOTS, map(sum, zip(*rows[start:stop], strict=True)), strict=True))
        streamed = collections.Counter()
        for address, unit, count in products:
            if start <= address < stop:
                streamed[unit] += count
        matmul_cycles = max(streamed.values(), default=0) // rows_per_cycle
        regions.append(Region(start, depths[start], stop - start, slots, matmul_cycles))
    return Schedule(name, capacity, tuple(regions), vmem)


def compile_in_subprocess(
    generation: str, module: str, arguments: dict, *, python: str = sys.executable
) -> list[Schedule]:
    """Schedules of what `module` compiles when run with `arguments` as JSON for one generation.

    libtpu reads its flags when it is loaded, so each compilation has a process of its own.
    Raises RuntimeError with the first line of what the compiler says if that fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        flags = (
            f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true "
            "--xla_jf_dump_llo_pass_label_regex=final"
        )
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "TPU_SKIP_MDS_QUERY": "1",
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
            "LIBTPU_INIT_ARGS": flags,
            "PYTHONPATH": os.pathsep.join(sys.path),
        }
        command = [python, "-m", module, generation, json.dumps(arguments)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(reason(done.stderr) or f"exit status {done.returncode}")
        return parse(Path(folder), CHIPS[generation].rows_per_cycle)


def reason(output: str) -> str:
    """The first line of the message of the last exception in a process's output, else its last."""
    raised = re.findall(r"^(?:\w+\.)*(\w*(?:Error|Exception)\w*: .+)$", output, re.MULTILINE)
    return (raised or output.strip().splitlines() or [""])[-1].strip()


def compile_for(generation: str, function, *shapes):
    """Compile `function` of arrays like `shapes` for one chip of a generation; needs libtpu."""
    import jax
    from jax.experimental import topologies
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    chip = CHIPS[generation]
    topology = topologies.get_topology_desc(topology_name=chip.topology, platform="tpu")
    mesh = Mesh(topology.devices[:1], ("chip",))
    whole = NamedSharding(mesh, PartitionSpec())
    shapes = [jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=whole) for s in shapes]
    # Block sizes are chosen by the generation of the mesh in scope.
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        lowered = jax.jit(function).trace(*shapes).lower(lowering_platforms=("tpu",))
        return lowered.compile()
