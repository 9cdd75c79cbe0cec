"""Memory, time and bottleneck of a training step on a slice that is not at hand.

Memory is the compiler's own plan. Times are a roofline: the work that the model's arithmetic and
the compiled program ask for, over the published rates, each resource as if the others were free.
They are predictions, and lower bounds; experiments/plan_published.py sets them beside measured
runs.
"""

import dataclasses
from dataclasses import replace
from typing import Any

from llama_jax.config import InputError, TrainConfig
from llama_jax.parallel.mesh import axis_sizes
from llama_jax.tpu.arithmetic import Flops, estimate, flops, tokens_of
from llama_jax.tpu.chips import GiB
from llama_jax.tpu.compile_step import facts_of
from llama_jax.tpu.topology import Topology

CATEGORIES = (
    "parameters", "optimizer", "batch", "gradients", "activations", "collectives", "temporaries",
    "program",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Plan:
    """One training step on one slice."""

    config: TrainConfig
    topology: Topology
    mesh: dict[str, int]
    hbm: dict[str, int]
    """Bytes of one chip by category; they add up to what will be allocated."""
    peak: int
    """Most bytes live at once, by the compiler; fragmentation makes the allocation larger."""
    flops: Flops
    hbm_traffic: int
    """Bytes that one chip moves to and from HBM in a step."""
    collectives: list[dict[str, Any]]
    seconds: dict[str, float]
    """Time of each resource by itself: compute, hbm, links by mesh axis; empty if refused."""
    refused: bool
    """Whether the compiler could not place the temporaries."""
    facts: dict[str, Any]
    """All other results of the compilation."""

    @property
    def total(self) -> int:
        """Bytes of HBM that one chip will allocate."""
        return sum(self.hbm.values())

    @property
    def limit(self) -> int:
        """Bytes of HBM that one chip has for programs."""
        return self.topology.chip.hbm_bytes

    @property
    def fits(self) -> bool:
        """Whether everything that is allocated fits."""
        return not self.refused and self.total <= self.limit

    @property
    def step_seconds(self) -> float | None:
        """Predicted; None if there is no program."""
        return max(self.seconds.values()) if self.seconds else None

    @property
    def binding(self) -> str:
        """The resource that the step waits for; memory where it does not fit."""
        return max(self.seconds, key=self.seconds.__getitem__) if self.fits else "memory"

    def mfu(self, causal: bool) -> float | None:
        """Predicted model FLOPs as a share of the chips' peak."""
        if self.step_seconds is None:
            return None
        work = self.flops.causal if causal else self.flops.full
        return work / (self.step_seconds * self.topology.chips * self.topology.chip.bf16_flops)

    @property
    def tokens_per_second_per_chip(self) -> float | None:
        """Predicted."""
        if self.step_seconds is None:
            return None
        tokens = tokens_of(self.config)
        return tokens / self.step_seconds / self.topology.chips


def plan(config: TrainConfig, topology: Topology, save: str | None = None, part: str = "") -> Plan:
    """Compile the step of an experiment for a slice and account for it.

    Args:
      save: a folder for the compiled step, as jax's compilation cache; see `facts_of`.
      part: selects the step of an experiment with several.

    Raises:
      InputError: the experiment does not fit the slice's devices, libtpu is missing, or the folder
        cannot be written.
    """
    mesh = axis_sizes(config.mesh, topology.devices)
    if mesh["slice"] != topology.slices:
        raise InputError(
            f"topology {topology.name} is {topology.slices} slices, not mesh "
            f"slice={mesh['slice']}: use --mesh.slice {topology.slices}"
        )
    check_divides(config, topology)
    return of_facts(config, topology, facts_of(config, topology, save, part))


def of_chip(facts: dict[str, Any], devices: int) -> dict[str, Any]:
    """Facts of a chip from those of one device: all of its devices do the same.

    Collectives are unchanged: a device's bytes, at its own rate of the chip's links.
    """
    sizes = ("arguments", "memory", "live")
    return {
        **facts,
        **{k: {n: devices * v for n, v in facts[k].items()} for k in sizes if k in facts},
        **{k: devices * facts[k] for k in ("refused", "hbm_traffic") if k in facts},
    }


def of_facts(config: TrainConfig, topology: Topology, facts: dict[str, Any]) -> Plan:
    """The plan that follows from the facts of a compilation."""
    work, chip, facts = flops(config), topology.chip, of_chip(facts, topology.chip.devices)
    hbm = dict.fromkeys(CATEGORIES, 0) | facts["arguments"]
    seconds = {}
    if "refused" in facts:
        hbm["temporaries"] = facts["refused"]
    else:
        memory = facts["memory"]
        # Padding of the arguments' tiles, and scalars.
        hbm["batch"] += memory["arguments"] - sum(facts["arguments"].values())
        hbm["program"] = memory["program"]
        allocated = memory["temporaries"] + memory["new_outputs"]
        # The walk through the schedule sees a little more or less than the compiler places; what is
        # allocated is divided as what it saw, gradients and activations first.
        left = allocated
        for name in ("gradients", "activations", "collectives"):
            hbm[name] = min(left, facts["live"][name])
            left -= hbm[name]
        hbm["temporaries"] = left
        seconds = {
            "compute": work.executed / topology.chips / chip.bf16_flops,
            "hbm": facts["hbm_traffic"] / chip.hbm_bytes_per_second,
        }
        for entry in facts["collectives"]:
            name = f"links {entry['axis']}"
            seconds[name] = seconds.get(name, 0.0) + entry["bytes"] / entry["rate"]
    return Plan(
        config=config,
        topology=topology,
        mesh=facts["mesh"],
        hbm=hbm,
        peak=facts.get("memory", {}).get("peak", 0),
        flops=work,
        hbm_traffic=facts.get("hbm_traffic", 0),
        collectives=facts.get("collectives", []),
        seconds=seconds,
        refused="refused" in facts,
        facts=facts,
    )


def candidates(config: TrainConfig) -> dict[str, TrainConfig]:
    """Single changes to an experiment, by name."""
    changes: dict[str, TrainConfig] = {}
    for remat in ("none", "dots", "qkvo", "full"):
        if remat != config.model.remat:
            changes[f"--model.remat {remat}"] = replace(
                config, model=replace(config.model, remat=remat)
            )
    if config.optimizer.moment_dtype == "float32":
        moments = replace(config.optimizer, moment_dtype="bfloat16")
        changes["--optimizer.moment-dtype bfloat16"] = replace(config, optimizer=moments)
    for factor in (2, 0.5):
        rows = int(config.batch_size * factor)
        if rows % config.accumulate == 0 and rows:
            changes[f"--batch-size {rows}"] = replace(config, batch_size=rows)
    for tensor in (2, 4, 8):
        if config.mesh.tensor == 1 and config.mesh.fsdp == -1:
            mesh = replace(config.mesh, tensor=tensor)
            changes[f"--mesh.tensor {tensor}"] = replace(config, mesh=mesh)
    return changes


def advice(p: Plan) -> str:
    """The one change that would help most by the arithmetic, and its gain."""
    base = estimate(p.config, p.topology)
    best, gain, words = "", 0.0, ""
    for name, changed in candidates(p.config).items():
        try:
            after = estimate(changed, p.topology)
            check_divides(changed, p.topology)
        except InputError:
            continue
        saved = base.total - after.total
        faster = 1 - (after.step / changed.batch_size) / (base.step / p.config.batch_size)
        if p.fits and p.total - saved > 0.95 * p.limit:
            continue
        score = faster if p.fits else saved / GiB
        if score > gain:
            best, gain = name, score
            words = (
                f"about {100 * faster:.0f} % more tokens a second, {-saved / GiB:+.1f} GiB"
                if p.fits
                else f"about {saved / GiB:.1f} GiB less a chip"
            )
    if not best:
        return "none of the single changes that were tried" if p.fits else "a larger slice"
    return f"{best}: {words}"


def check_divides(config: TrainConfig, topology: Topology) -> None:
    """Raise InputError where heads, vocabulary or batch do not divide by their axes."""
    mesh = axis_sizes(config.mesh, topology.devices)
    rows = mesh["slice"] * mesh["data"] * mesh["fsdp"]
    c = config.model
    for name, value, parts in (
        ("batch_size / accumulate", config.batch_size // config.accumulate, rows),
        ("num_kv_heads", c.num_kv_heads, mesh["tensor"]),
        ("d_ff", c.d_ff, mesh["tensor"]),
        ("d_model", c.d_model, mesh["fsdp"]),
        ("vocab_size", c.vocab_size, mesh["tensor"]),
        ("seq_len", config.seq_len, mesh["sequence"] * mesh["tensor"]),
    ):
        if value % parts:
            near = -(-value // parts) * parts
            raise InputError(
                f"{name}={value} is not divisible by the {parts} devices that share it: use a "
                f"multiple of {parts}, such as {near}, or another mesh"
            )


def as_json(p: Plan) -> dict[str, Any]:
    """The plan with the keys that programs rely on; sizes in bytes, rates per chip."""
    return {
        "topology": p.topology.name,
        "stage": p.config.stage,
        "chips": p.topology.chips,
        "devices": p.topology.devices,
        "mesh": p.mesh,
        "batch_size": p.config.batch_size,
        "seq_len": p.config.seq_len,
        "remat": p.config.model.remat,
        "hbm_bytes_per_chip": {"total": p.total, **p.hbm},
        "hbm_peak_bytes": p.peak,
        "hbm_peak_by_schedule_bytes": p.facts.get("live", {}).get("peak"),
        "hbm_limit_bytes": p.limit,
        "fits": p.fits,
        "flops": dataclasses.asdict(p.flops),
        "hbm_traffic_bytes": p.hbm_traffic,
        "pallas_kernels": p.facts.get("kernels"),
        "collective_bytes": p.collectives,
        "predicted_seconds": p.seconds,
        "predicted_step_seconds": p.step_seconds,
        "predicted_mfu": p.mfu(causal=True),
        "predicted_mfu_full": p.mfu(causal=False),
        "predicted_tokens_per_second_per_chip": p.tokens_per_second_per_chip,
        "binding_limit": p.binding,
        "saved": p.facts.get("saved"),
        "advice": advice(p),
        "planning": {
            "wall_seconds": p.facts.get("wall_seconds"),
            "peak_rss_bytes": p.facts.get("peak_rss"),
            **p.facts["versions"],
        },
    }
