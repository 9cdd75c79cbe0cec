"""Compiles the real training step for a slice that is not at hand, and reads its costs.

`python -m llama_jax.tpu.compile_step` reads a request from stdin and prints the facts as JSON:
libtpu reads its flags when it is loaded and keeps what it compiles in memory, so each step has a
process of its own, which `facts_of` starts.
"""

import dataclasses
import json
import math
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from llama_jax import pretrain
from llama_jax.align import dpo, grpo, ppo, reward, sft
from llama_jax.config import InputError, TrainConfig, adapted
from llama_jax.config_align import GrpoConfig, PpoConfig
from llama_jax.config_file import STAGES, from_dict
from llama_jax.parallel.arrays import check_batch
from llama_jax.parallel.mesh import make_mesh
from llama_jax.runtime.files import AnyPath, as_path, reason, write_atomic
from llama_jax.tpu import topology as topology_of
from llama_jax.tpu.collectives import Collective, collectives
from llama_jax.tpu.hlo import Program
from llama_jax.tpu.liveness import Liveness
from llama_jax.tpu.topology import Topology
from llama_jax.train.optimizer import make_optimizer
from llama_jax.train.stage import Stage
from llama_jax.train.state import abstract_state, trained_table
from llama_jax.train.step import abstract_batch, jit_train_step

ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_MIN_LOG_LEVEL": "3",
}
"""Environment of a process that compiles for TPUs without one."""
OBJECTIVES: dict[str, Callable[[Any], Stage]] = {
    "train": pretrain.stage,
    "sft": sft.stage,
    "reward": reward.stage,
    "dpo": dpo.stage,
}
"""The stages with one step; PPO has two, one for each of the parts `policy` and `value`, GRPO the
former."""


def facts_of(
    config: TrainConfig, topology: Topology, save: str | None = None, part: str = ""
) -> dict[str, Any]:
    """The facts of an experiment's training step on a slice; see `compile_facts`.

    Args:
      part: selects the step of an experiment with several.
      save: a folder, which may be behind a URL, that gets the compiled step as an entry of jax's
        compilation cache; the key `saved` has its path and size in bytes, unless it was refused.

    Raises:
      InputError: the experiment does not fit the slice, libtpu is not installed, or the folder
        cannot be written.
      RuntimeError: the compiler failed for another reason; its last words are in the message.
    """
    check_libtpu()
    if save is not None:
        keep(save, ".llama_jax_probe", b"").unlink()
    request = {
        "stage": config.stage,
        "config": dataclasses.asdict(config),
        "topology": topology.name,
        "part": part,
    }
    begin = time.monotonic()
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryDirectory() as cache:
        # An empty cache, whatever the folder holds: the step is compiled and not read, so that all
        # is known of it, and the entry of it that appears is this one's.
        caching = {
            "JAX_COMPILATION_CACHE_DIR": cache,
            "JAX_ENABLE_COMPILATION_CACHE": "true",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        done = subprocess.run(
            [sys.executable, "-m", "llama_jax.tpu.compile_step"],
            input=json.dumps(request),
            env={
                **os.environ,
                **ENVIRONMENT,
                **({} if save is None else caching),
                "PYTHONPATH": os.pathsep.join(sys.path),
            },
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            check=False,
        )
        said.seek(0)
        if done.returncode:
            raise RuntimeError(f"compiling for {topology.name} failed: {said.read()[-2000:]}")
        facts = json.loads(done.stdout)
        if "bad_input" in facts:
            raise InputError(facts["bad_input"])
        facts["wall_seconds"] = time.monotonic() - begin
        if save is not None:
            for entry in Path(cache).glob("jit_step-*-cache"):
                content = entry.read_bytes()
                path = keep(save, entry.name, content)
                facts["saved"] = {"path": os.fspath(path), "bytes": len(content)}
    return facts


def keep(folder: str, name: str, content: bytes) -> AnyPath:
    """Write a file of a folder, which is made if it is missing, and return its path.

    Raises InputError if that fails.
    """
    path = as_path(folder) / name
    try:
        write_atomic(path, content)
    except OSError as error:
        raise InputError(f"--save {folder} cannot be written: {reason(error)}") from error
    return path


def check_libtpu() -> None:
    """Raise InputError where the TPU compiler is not installed."""
    try:
        metadata.version("libtpu")
    except metadata.PackageNotFoundError:
        raise InputError(
            "planning for a TPU needs its compiler: pip install libtpu (x86-64 Linux)"
        ) from None


def topology_mesh(config: TrainConfig, topology: Topology) -> Mesh:
    """The mesh of an experiment over the devices of a slice that is not here; needs libtpu."""
    kwargs: dict[str, Any] = {}
    if topology.generation == "v4":
        # Two TensorCores as one device, as on Cloud TPU.
        kwargs["chip_config_name"] = "megacore"
    if topology.slices > 1:
        kwargs["num_slices"] = topology.slices
    described = topologies.get_topology_desc(topology_name=topology.grid, platform="tpu", **kwargs)
    return make_mesh(config.mesh, described.devices)


def lower_step(config: TrainConfig, mesh: Mesh, part: str = ""):
    """The step that `llama-jax train` runs, lowered for the mesh, and its abstract arguments.

    It is identical to the step there, so a run finds what was compiled here in the cache; see
    `facts_of`. Raises InputError for what the mesh cannot split.
    """
    check_batch(config.batch_size, config.seq_len, config.accumulate, mesh)
    if isinstance(config, (PpoConfig, GrpoConfig)):
        value = dataclasses.replace(config.model, head="score")
        objectives, optimizers = (
            ppo.objectives(config, value)
            if isinstance(config, PpoConfig)
            else grpo.objectives(config)
        )
        objective, tx = objectives[part], optimizers[part]
    else:
        objective = OBJECTIVES[config.stage](adapted(config)).objective
        tx = make_optimizer(config.optimizer, trained_table(objective), config.steps)
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        state = abstract_state(objective, tx, mesh)
        batch = abstract_batch(config, objective, mesh)
        traced = jit_train_step(config, objective, tx, state).trace(state, batch)
        return traced.lower(lowering_platforms=(mesh.devices.flat[0].platform,)), state, batch


def compile_facts(config: TrainConfig, topology: Topology, part: str = "") -> dict[str, Any]:
    """Compile and analyse; sizes in bytes of one device.

    Keys: arguments, mesh, versions; then either refused (bytes of temporaries that the compiler
    would not place), or memory (its plan), live (at the peak, by category), hbm_traffic,
    collectives (see `by_axis`), estimated_cycles, unknown_loops, kernels (Pallas calls in the
    program's text), seconds.
    """
    begin = time.monotonic()
    mesh = topology_mesh(config, topology)
    lowered, state, batch = lower_step(config, mesh, part)
    ready = time.monotonic()
    facts: dict[str, Any] = {
        "arguments": {
            "parameters": local_bytes(state.params),
            "optimizer": local_bytes(state.opt_state),
            "batch": local_bytes(batch),
        },
        "mesh": dict(mesh.shape),
        "versions": {name: metadata.version(name) for name in ("jax", "jaxlib", "libtpu")},
    }
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        refused = re.search(r"temporaries \(([\d.]+)([KMGT])\)", str(error))
        if refused is None:
            raise
        unit = 1 << 10 * (1 + "KMGT".index(refused[2]))
        facts["refused"] = round(float(refused[1]) * unit)
        return facts
    facts["seconds"] = {"prepare": ready - begin, "compile": time.monotonic() - ready}
    memory: Any = compiled.memory_analysis()
    facts["memory"] = {
        "arguments": memory.argument_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "new_outputs": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "program": memory.generated_code_size_in_bytes,
        "peak": memory.peak_memory_in_bytes,
        "host": memory.host_temp_size_in_bytes,
    }
    program = Program(compiled.as_text() or "")
    facts |= {
        "live": categories(Liveness(program), state.params, config.model.num_layers),
        "hbm_traffic": program.hbm_bytes(),
        "estimated_cycles": program.estimated_cycles(),
        "collectives": by_axis(
            collectives(program, mesh.size), mesh, lambda group: group_bandwidth(group, topology)
        ),
        "unknown_loops": program.unknown_loops,
        "kernels": sum('"tpu_custom_call"' in i.rest for _, i, _ in program.scheduled()),
    }
    facts["seconds"]["analyse"] = time.monotonic() - ready - facts["seconds"]["compile"]
    return facts


def local_bytes(tree: Any) -> int:
    """Bytes of one device's part of a tree of ShapeDtypeStructs with shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def categories(live: Liveness, params: Any, layers: int) -> dict[str, int]:
    """Bytes live at the peak besides the arguments, by category.

    Gradients have the shape of one device's part of a parameter, kept activations one row for each
    layer; both are made outside the loops. The rest are the collectives' buffers, and temporaries.
    """
    shapes = {leaf.sharding.shard_shape(leaf.shape) for leaf in jax.tree.leaves(params)}
    found = dict.fromkeys(("gradients", "activations", "collectives", "temporaries"), 0)
    for buffer in live.buffers:
        if buffer.kind == "argument":
            continue
        name = "temporaries"
        if buffer.kind == "collective":
            name = "collectives"
        elif buffer.kind == "carried" and buffer.dims in shapes:
            # The other arrays of this shape are the weights in the type that is computed with.
            zeros = "transpose(" in buffer.origin or "broadcast" in buffer.origin
            name = "gradients" if zeros else "temporaries"
        elif buffer.kind == "carried" and buffer.dims[:1] == (layers,):
            name = "activations"
        found[name] += buffer.size
    return {**found, "peak": live.peak}


def by_axis(
    found: list[Collective], mesh: Mesh, rate: Callable[[list[Any]], float]
) -> list[dict[str, Any]]:
    """Bytes and number of sends of one device, by kind and by the mesh axes that are joined.

    An axis that is joined in stages along the torus has an entry for each rate of its stages.
    """
    sizes, devices = list(mesh.shape.items()), mesh.devices.ravel()
    total: dict[tuple[str, str, float], list[float]] = {}
    for c in found:
        axes, rest = [], [c.group]
        for name, size in reversed(sizes):
            places = {g % size for g in rest[0]}
            rest = [[g // size for g in rest[0]]]
            if len(places) > 1:
                axes.append(name)
        bandwidth = rate([devices[g] for g in c.group])
        entry = total.setdefault((c.kind, "+".join(reversed(axes)), bandwidth), [0, 0])
        entry[0] += c.link_bytes
        entry[1] += c.times
    return [
        {"kind": kind, "axis": axis, "bytes": round(size), "times": times, "rate": bandwidth}
        for (kind, axis, bandwidth), (size, times) in sorted(total.items())
    ]


def group_bandwidth(devices: Sequence[Any], topology: Topology) -> float:
    """Bytes per second that one device can send to a group, by all the links that lie along it.

    A group that covers a whole ring of the torus uses both its directions. A part of one, or a
    torus axis without a wrap-around, counts once: otherwise its ends would be idle. What goes to a
    chip's devices goes there once; those of a chip that are in different groups share its links.
    """
    chip = topology.chip
    places = {(getattr(device, "slice_index", 0), *device.coords) for device in devices}
    if len(places) == 1:
        return chip.between_devices
    share = len(devices) / len(places) / chip.devices
    if len({place[0] for place in places}) > 1:
        return share * chip.network_bytes_per_second
    coordinates = list(zip(*(device.coords for device in devices), strict=True))
    links = 0
    for k in range(len(topology.shape)):
        extent = len(set(coordinates[k]))
        if extent > 1:
            links += 2 if extent == topology.shape[k] and topology.wraps(k) else 1
    return share * links * chip.link_bytes_per_second


def main() -> None:
    """Answer one request; see the module."""
    request = json.load(sys.stdin)
    facts: dict[str, Any]
    try:
        config = from_dict(STAGES[request["stage"]], request["config"])
        facts = compile_facts(config, topology_of.parse(request["topology"]), request["part"])
    except InputError as error:
        facts = {"bad_input": str(error)}
    facts["peak_rss"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    json.dump(facts, sys.stdout)


if __name__ == "__main__":
    main()
