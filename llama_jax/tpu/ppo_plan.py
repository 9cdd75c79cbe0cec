"""PPO or GRPO on a slice: memory of the models that share a mesh, and time of an iteration.

The updates of policy and value (GRPO has none) are compiled, as the steps of other stages are.
Answers and scores are counted by arithmetic: weights gathered once, keys and values of as many rows
as the rest of the memory holds, and the products, each resource as if the others were free.
"""

import dataclasses
import math
from dataclasses import replace
from typing import Any

from llama_jax.config import ModelConfig, require
from llama_jax.config_align import PolicyConfig, PpoConfig
from llama_jax.model.weights import parameter_count
from llama_jax.parallel.mesh import axis_sizes
from llama_jax.tpu.arithmetic import (
    BYTES,
    attention_products,
    axis_rates,
    head_products,
    layer_products,
)
from llama_jax.tpu.chips import GiB
from llama_jax.tpu.plan import Plan, plan
from llama_jax.tpu.report import chips_of, mesh_words
from llama_jax.tpu.topology import Topology


@dataclasses.dataclass(frozen=True)
class PpoPlan:
    """One iteration on one slice; sizes in bytes of one chip."""

    config: PolicyConfig
    topology: Topology
    updates: dict[str, Plan]
    """The compiled update on a minibatch of `policy` and, in PPO, of `value`."""
    models: dict[str, dict[str, int]]
    """Bytes on the chip by model: parameters, and optimizer state of those that train."""
    gathered: int
    """Weights for generation, in the compute type: whole except for what `tensor` splits."""
    row: int
    """Keys and values of one answer with its prompt, on one device."""
    wave_rows: int
    """Answers on all chips together whose keys and values fit beside everything else; at most as
    many as an iteration samples."""
    seconds: dict[str, float]
    """Time of an iteration by phase: generate, score, update; predicted, each a lower bound."""

    @property
    def resident(self) -> int:
        """Bytes of all models together."""
        return sum(sum(parts.values()) for parts in self.models.values())

    @property
    def moments(self) -> dict[str, int]:
        """Bytes allocated during generation, and during either update."""
        rows = self.rows_of_a_device * self.topology.chip.devices
        found = {"generate": self.resident + self.gathered + self.row * rows}
        for name, update in self.updates.items():
            found[f"{name} update"] = self.resident - sum(self.models[name].values()) + update.total
        return found

    @property
    def rows_of_a_device(self) -> int:
        """Answers that a device, or the devices that share one by `tensor`, samples at once."""
        return self.wave_rows // _row_shards(self.config, self.topology)

    @property
    def limit(self) -> int:
        """Bytes that a chip has for programs."""
        return self.topology.chip.hbm_bytes

    @property
    def fits(self) -> bool:
        """Whether every phase fits, with room for at least one answer."""
        compiled = not any(update.refused for update in self.updates.values())
        return compiled and self.wave_rows > 0 and max(self.moments.values()) <= self.limit


def ppo_plan(config: PolicyConfig, topology: Topology) -> PpoPlan:
    """Compile the updates for a slice, and account for an iteration.

    Raises InputError as `plan`, and if the answers of an iteration do not divide over the devices.
    """
    shards = _row_shards(config, topology)
    require(
        not config.lora.rank,
        f"lora.rank={config.lora.rank}: iterations that train adapters cannot be planned yet",
    )
    require(
        config.batch_size % shards == 0,
        f"batch_size={config.batch_size} answers do not divide over the {shards} devices that "
        f"split rows: use a multiple of {shards}",
    )
    # One update reads a minibatch.
    step = replace(config, batch_size=config.minibatch)
    updates = {"policy": plan(step, topology, part="policy")}
    if isinstance(config, PpoConfig):
        updates["value"] = plan(_value(step), topology, part="value")
    mesh = axis_sizes(config.mesh, topology.devices)
    model, score = config.model, replace(config.model, head="score")
    models = {
        name: {kind: update.hbm[kind] for kind in ("parameters", "optimizer")}
        for name, update in updates.items()
    }
    held, each = mesh["fsdp"] * mesh["tensor"], topology.chip.devices
    frozen = {"reference": model}
    for name in ("helpfulness", "safety"):
        if getattr(config, name) is not None:
            frozen[name] = score
    for name, of in frozen.items():
        models[name] = {"parameters": each * parameter_count(of) * BYTES[of.param_dtype] // held}
    gathered = each * parameter_count(model) * BYTES[model.dtype] // mesh["tensor"]
    row = config.seq_len * _cache_bytes(model) // mesh["tensor"]
    resident = sum(sum(parts.values()) for parts in models.values())
    free = topology.chip.hbm_bytes - resident - gathered
    rows = min(max(0, free // (each * row)), config.batch_size // shards)
    seconds = {
        "generate": _generate_seconds(config, topology, gathered, row, max(rows, 1)),
        # Those that learn read the answers too.
        "score": _score_seconds(
            config, topology, ((model, score)[: len(updates)] + tuple(frozen.values()))
        ),
        "update": sum(update.step_seconds or math.inf for update in updates.values())
        * (config.batch_size // config.minibatch),
    }
    return PpoPlan(config, topology, updates, models, gathered, row, rows * shards, seconds)


def _value(config: PolicyConfig) -> PolicyConfig:
    """The experiment with the model of the value, whose arithmetic has no vocabulary."""
    return replace(config, model=replace(config.model, head="score"))


def _row_shards(config: PolicyConfig, topology: Topology) -> int:
    mesh = axis_sizes(config.mesh, topology.devices)
    return mesh["slice"] * mesh["data"] * mesh["fsdp"]


def _cache_bytes(c: ModelConfig) -> int:
    return 2 * c.num_layers * c.num_kv_heads * c.head_dim * BYTES[c.dtype]


def _forward_flops(c: ModelConfig, tokens: int, context: float) -> float:
    layer = sum(layer_products(c).values()) + attention_products(c, 1) * context
    return tokens * (c.num_layers * layer + head_products(c) / 3)


def _generate_seconds(
    config: PolicyConfig, topology: Topology, gathered: int, row: int, rows: int
) -> float:
    """Gather the weights, read the prompts, and draw `max_new_tokens` for each wave of rows."""
    c, chip = config.model, topology.chip
    mesh = axis_sizes(config.mesh, topology.devices)
    shards = _row_shards(config, topology)
    rates = axis_rates(mesh, topology)
    gather = gathered / chip.devices * (mesh["fsdp"] - 1) / mesh["fsdp"] / rates["fsdp"]
    prompt = config.seq_len - config.max_new_tokens
    asked = config.batch_size // config.answers
    prompts = _forward_flops(c, asked * prompt, prompt / 2)
    mean = config.seq_len - config.max_new_tokens / 2  # positions in the cache, on average
    drawn = chip.devices * rows
    work = _forward_flops(c, drawn, mean) / mesh["tensor"]
    step = max(
        (gathered + drawn * row * mean / config.seq_len) / chip.hbm_bytes_per_second,
        work / chip.bf16_flops,
    )
    if mesh["tensor"] > 1:  # two sums over the chips in each layer
        moved = 2 * c.num_layers * 2 * rows * c.d_model * BYTES[c.dtype]
        sums = moved * (mesh["tensor"] - 1) / mesh["tensor"]
        step = max(step, sums / rates["tensor"])
    waves = -(-config.batch_size // (rows * shards))
    return (
        gather + prompts / topology.chips / chip.bf16_flops + waves * config.max_new_tokens * step
    )


def _score_seconds(
    config: PolicyConfig, topology: Topology, models: tuple[ModelConfig, ...]
) -> float:
    """Read all answers once with each model, a minibatch at a time."""
    mesh = axis_sizes(config.mesh, topology.devices)
    rates = axis_rates(mesh, topology)
    blocks = config.batch_size * config.accumulate // config.minibatch
    total = 0.0
    for c in models:
        work = _forward_flops(c, config.batch_size * config.seq_len, config.seq_len / 2)
        weights = parameter_count(c) * BYTES[c.dtype] / mesh["tensor"]
        links = blocks * weights * (mesh["fsdp"] - 1) / mesh["fsdp"] / rates["fsdp"]
        total += max(work / topology.chips / topology.chip.bf16_flops, links)
    return total


def ppo_json(p: PpoPlan) -> dict[str, Any]:
    """The plan with the keys that programs rely on; sizes in bytes of one chip."""
    return {
        "topology": p.topology.name,
        "stage": p.config.stage,
        "chips": p.topology.chips,
        "devices": p.topology.devices,
        "batch_size": p.config.batch_size,
        "minibatch": p.config.minibatch,
        "seq_len": p.config.seq_len,
        "max_new_tokens": p.config.max_new_tokens,
        "hbm_bytes_per_chip": p.models,
        "hbm_bytes_by_moment": p.moments,
        "hbm_limit_bytes": p.limit,
        "gathered_weights_bytes": p.gathered,
        "answer_bytes": p.row,
        "wave_rows": p.wave_rows,
        "fits": p.fits,
        "predicted_seconds": p.seconds,
        "predicted_iteration_seconds": sum(p.seconds.values()),
        "updates": {
            name: {
                "hbm_bytes_per_chip": {"total": update.total, **update.hbm},
                "predicted_seconds": update.seconds,
                "predicted_step_seconds": update.step_seconds,
                "binding_limit": update.binding,
            }
            for name, update in p.updates.items()
        },
    }


def ppo_text(p: PpoPlan) -> str:
    """The plan for people."""
    c = p.config
    policy = p.updates["policy"]
    lines = [
        f"{p.topology.name}: {chips_of(p.topology)}, mesh {mesh_words(policy.mesh)}, "
        f"{c.stage.upper()} with "
        f"{c.batch_size} answers an iteration, minibatches of {c.minibatch} x {c.seq_len} tokens, "
        f"{c.max_new_tokens} of them drawn",
        "",
        f"{'Models on one chip, GiB':24s}{'parameters':>12s}{'optimizer':>12s}",
    ]
    for name, parts in p.models.items():
        sizes = [parts.get(kind, 0) / GiB for kind in ("parameters", "optimizer")]
        lines.append(f"  {name:22s}" + "".join(f"{size:12.2f}" for size in sizes))
    lines.append(f"  {'together':22s}{p.resident / GiB:12.2f}")
    lines += ["", f"At most, GiB of {p.limit / GiB:.2f}"]
    for name, size in p.moments.items():
        lines.append(f"  {name:22s}{size / GiB:12.2f}" + _what(p, name))
    if p.wave_rows:
        each = f"answers drawn at once, {p.row / GiB:.3f} GiB each"
        lines.append(f"  {'wave size':22s}{p.wave_rows:12d}  {each}")
    else:
        lines.append("  No answer fits beside the models: raise --mesh.tensor or take more chips.")
    lines += ["", "Predicted seconds of an iteration, each a lower bound"]
    lines += [f"  {name:22s}{value:12.2f}" for name, value in p.seconds.items()]
    lines.append(f"  {'iteration':22s}{sum(p.seconds.values()):12.2f}")
    lines.append("fits" if p.fits else "DOES NOT FIT")
    return "\n".join(lines)


def _what(p: PpoPlan, moment: str) -> str:
    if moment == "generate":
        return f"  the models, weights gathered {p.gathered / GiB:.2f}, and the wave"
    return "  the models, and what the compiled step adds"
