"""Formats plans as text for people."""

from typing import Any

from llama_jax.tpu.chips import GiB
from llama_jax.tpu.plan import CATEGORIES, Plan, advice
from llama_jax.tpu.topology import Topology

_SAID = {
    "parameters": "parameters",
    "optimizer": "optimizer",
    "batch": "batch and padding",
    "gradients": "gradients",
    "activations": "activations kept",
    "collectives": "collectives' buffers",
    "temporaries": "temporaries",
    "program": "program",
}


def mesh_words(mesh: dict[str, int]) -> str:
    """`fsdp=64 tensor=4`: the axes that have more than one device."""
    return " ".join(f"{k}={v}" for k, v in mesh.items() if v > 1) or "one device"


def chips_of(topology: Topology) -> str:
    """`64 chips`, and `of 2 devices` where jax sees more than one."""
    each = topology.chip.devices
    return f"{topology.chips} chips" + (f" of {each} devices" if each > 1 else "")


def text(p: Plan) -> str:
    """The whole plan on a page."""
    c, lines = p.config, []
    lines.append(
        f"{p.topology.name}: {chips_of(p.topology)}, mesh {mesh_words(p.mesh)}, batch "
        f"{c.batch_size} x {c.seq_len} tokens, remat {c.model.remat}, {c.model.dtype}"
    )
    lines += ["", "HBM of one chip, GiB, as the compiler allocates it"]
    lines += [f"  {_SAID[name]:22s}{p.hbm[name] / GiB:9.2f}" for name in CATEGORIES]
    room = (p.limit - p.total) / GiB
    verdict = f"fits, {room:.2f} left" if p.fits else f"DOES NOT FIT, {-room:.2f} over"
    lines.append(f"  {'total':22s}{p.total / GiB:9.2f}  of {p.limit / GiB:.2f}: {verdict}")
    if p.refused:
        lines.append("  The compiler refused the program: temporaries alone exceed the chip.")
    else:
        walked = p.facts["live"]["peak"] / GiB
        lines.append(
            f"  {'live at once, at most':22s}{p.peak / GiB:9.2f}  "
            f"(read from its schedule: {walked:.2f})"
        )
    lines += ["", "One step asks for"]
    lines.append(
        f"  FLOPs                 {p.flops.causal:.4g} causal, {p.flops.full:.4g} full, "
        f"{p.flops.executed:.4g} executed"
    )
    if p.seconds:
        lines.append(f"  HBM traffic           {p.hbm_traffic / 1e9:.2f} GB a chip")
    unit = "chip" if p.topology.chip.devices == 1 else "device"
    for entry in p.collectives:
        lines.append(
            f"  {entry['kind']:20s}  {entry['bytes'] / 1e9:.3f} GB a {unit} over {entry['axis']}, "
            f"{entry['times']} times"
        )
    step = p.step_seconds
    if step is not None:
        lines += ["", "Predicted, a roofline: what each resource needs if the others cost nothing"]
        lines += [f"  {name:22s}{1e3 * value:9.1f} ms" for name, value in p.seconds.items()]
        mfu = 100 * (p.mfu(causal=True) or 0), 100 * (p.mfu(causal=False) or 0)
        lines.append(
            f"  {'step':22s}{1e3 * step:9.1f} ms  MFU {mfu[0]:.1f} % causal, {mfu[1]:.1f} % full, "
            f"{p.tokens_per_second_per_chip:,.0f} tokens/s/chip"
        )
    lines.append(f"  {'bound by':22s}  {p.binding}")
    lines.append(f"  {'would help most':22s}  {advice(p)}")
    versions = p.facts["versions"]
    lines += [
        "",
        f"Planned in {p.facts.get('wall_seconds', 0):.0f} s with "
        f"{p.facts.get('peak_rss', 0) / GiB:.2f} GiB of memory, jax {versions['jax']}, libtpu "
        f"{versions['libtpu']}",
    ]
    return "\n".join(lines)


def front_text(front: list[dict[str, Any]]) -> str:
    """The rows of a search."""
    lines = [
        f"{'mesh':24s}{'remat':>6s}{'batch':>7s}{'GiB est.':>10s}{'tokens/s/chip est.':>20s}"
        f"{'GiB':>8s}{'fits':>6s}{'tokens/s/chip':>15s}"
    ]
    for row in front:
        config, expected, p = row["config"], row["estimate"], row["plan"]
        axes = f"tensor={config.mesh.tensor} fsdp=rest"
        rate = config.batch_size * config.seq_len / expected.step
        lines.append(
            f"{axes:24s}{config.model.remat:>6s}{config.batch_size:>7d}"
            f"{expected.total / GiB:10.2f}{rate / row['chips']:20,.0f}"
            + (
                f"{p.total / GiB:8.2f}{'yes' if p.fits else 'no':>6s}"
                f"{p.tokens_per_second_per_chip or 0:15,.0f}"
                if p
                else f"{'-':>8s}{'-':>6s}{'-':>15s}"
            )
        )
    return "\n".join(lines)
