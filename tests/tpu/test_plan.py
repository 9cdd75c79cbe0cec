"""What a plan says of the facts of a compilation, and of input that cannot be planned."""

import argparse
import json
import os
import subprocess
import sys
from dataclasses import replace
from importlib import metadata
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from llama_jax import cli
from llama_jax.config import InputError
from llama_jax.model.presets import PRESETS
from llama_jax.model.weights import parameter_count
from llama_jax.tpu import compile_step
from llama_jax.tpu.chips import GiB
from llama_jax.tpu.collectives import Collective
from llama_jax.tpu.command import preset_experiment, run
from llama_jax.tpu.plan import advice, as_json, of_facts
from llama_jax.tpu.report import front_text, text
from llama_jax.tpu.search import front_json, search
from llama_jax.tpu.topology import parse

FACTS = {
    "arguments": {"parameters": GiB, "optimizer": 2 * GiB, "batch": 1000},
    "mesh": {"slice": 1, "data": 1, "fsdp": 256, "sequence": 1, "tensor": 1},
    "versions": {"jax": "1", "jaxlib": "1", "libtpu": "1"},
    "memory": {
        "arguments": 3 * GiB + 5000,
        "temporaries": 8 * GiB,
        "new_outputs": 24,
        "program": 50_000_000,
        "peak": 10 * GiB,
        "host": 0,
    },
    "live": {
        "gradients": GiB // 2,
        "activations": 5 * GiB,
        "collectives": GiB,
        "temporaries": GiB,
        "peak": 11 * GiB,
    },
    "hbm_traffic": 819_000_000_000,
    "estimated_cycles": 0,
    "collectives": [
        {
            "kind": "all-gather",
            "axis": "fsdp",
            "bytes": 200_000_000_000,
            "times": 10,
            "rate": 200e9,
        },
        {
            "kind": "reduce-scatter",
            "axis": "fsdp",
            "bytes": 100_000_000_000,
            "times": 5,
            "rate": 200e9,
        },
    ],
    "unknown_loops": [],
    "peak_rss": GiB,
    "wall_seconds": 60.0,
}


def planned(**changes):
    topology = parse("v5e-256")
    return of_facts(preset_experiment("llama2-70b", topology), topology, FACTS | changes)


def test_categories_add_up_to_what_is_allocated():
    p = planned()
    memory = FACTS["memory"]
    assert p.total == sum(memory[k] for k in ("arguments", "temporaries", "new_outputs", "program"))
    assert p.hbm["parameters"] == GiB
    assert p.hbm["optimizer"] == 2 * GiB
    assert p.hbm["gradients"] == GiB // 2
    assert p.hbm["activations"] == 5 * GiB
    assert p.fits
    assert not planned(memory=memory | {"temporaries": 13 * GiB}).fits


def test_the_devices_of_a_chip_add_up_and_share_its_rates():
    """Ironwood: what the compiler says of one of two devices, for the chip that is bought."""
    topology = parse("tpu7x-128")
    p = of_facts(preset_experiment("llama2-70b", topology), topology, FACTS)
    memory = FACTS["memory"]
    one = sum(memory[k] for k in ("arguments", "temporaries", "new_outputs", "program"))
    assert p.total == 2 * one
    assert p.limit == 2 * int(94.74 * GiB)
    assert p.config.batch_size == 128, "a row a device"
    assert p.seconds["hbm"] == pytest.approx(2 * FACTS["hbm_traffic"] / 7380e9)
    assert p.seconds["compute"] == pytest.approx(p.flops.executed / 64 / 2307e12)
    assert p.tokens_per_second_per_chip == pytest.approx(128 * 4096 / p.step_seconds / 64)
    answer = as_json(p)
    assert (answer["chips"], answer["devices"]) == (64, 128)
    assert answer["hbm_peak_by_schedule_bytes"] == 2 * FACTS["live"]["peak"]
    assert "64 chips of 2 devices" in text(p)


@pytest.mark.parametrize(
    ("cores", "rate"),
    [
        ([(0, 0, 0, 0), (0, 0, 0, 1)], 600e9),  # from die to die
        ([(x, 0, 0, 0) for x in range(4)], 2 * 100e9 / 2),  # the other core's group has the rest
        ([(x, 0, 0, c) for x in range(4) for c in (0, 1)], 2 * 100e9),
        ([(x, y, 0, 0) for x in range(4) for y in range(2)], (2 + 1) * 100e9 / 2),
    ],
    ids=["chip", "ring of one core", "ring of both", "half a plane"],
)
def test_devices_of_a_chip_share_its_links(cores, rate):
    group = [SimpleNamespace(coords=coords, core_on_chip=core) for *coords, core in cores]
    assert compile_step.group_bandwidth(group, parse("tpu7x-128")) == pytest.approx(rate)


def test_each_resource_takes_what_it_moves_over_its_rate():
    p = planned()
    assert p.seconds["hbm"] == pytest.approx(1.0)
    assert p.seconds["links fsdp"] == pytest.approx(1.5)
    assert p.seconds["compute"] == pytest.approx(p.flops.executed / 256 / 197e12)
    assert p.step_seconds == max(p.seconds.values())
    assert p.mfu(causal=True) == pytest.approx(p.flops.causal / p.step_seconds / 256 / 197e12)
    assert p.mfu(causal=True) < p.mfu(causal=False)


def test_the_binding_limit_is_named():
    assert planned().binding == "compute"
    assert planned(hbm_traffic=10**14).binding == "hbm"
    assert planned(memory=FACTS["memory"] | {"temporaries": 20 * GiB}).binding == "memory"


def test_json_has_the_keys_that_programs_rely_on():
    p = json.loads(json.dumps(as_json(planned())))
    assert p["hbm_bytes_per_chip"]["total"] == sum(
        v for k, v in p["hbm_bytes_per_chip"].items() if k != "total"
    )
    for key in (
        "hbm_limit_bytes", "fits", "predicted_step_seconds", "predicted_mfu", "binding_limit",
        "collective_bytes",
    ):  # fmt: skip
        assert p[key] is not None, key


def test_a_refused_program_says_how_much_over_and_what_frees_most():
    facts = {k: v for k, v in FACTS.items() if k not in ("memory", "live", "hbm_traffic")}
    topology = parse("v5e-256")
    config = preset_experiment("llama2-70b", topology)
    config = replace(config, model=replace(config.model, remat="none"))
    p = of_facts(config, topology, facts | {"refused": 40 * GiB})
    said = text(p)
    assert not p.fits
    assert "DOES NOT FIT, 27.25 over" in said
    assert "--model.remat full" in advice(p)
    assert as_json(p)["predicted_step_seconds"] is None


def test_advice_never_runs_out_of_memory():
    p = planned(memory=FACTS["memory"] | {"temporaries": int(12.4 * GiB)})
    assert p.fits
    assert "--batch-size 512" not in advice(p)
    assert "--model.remat none" not in advice(p)


@pytest.mark.parametrize("name", ["v5e-256", "tpu7x-128"])
def test_a_search_ends_in_a_front_and_compiles_its_head(name):
    topology, compiled = parse(name), []

    def plan(config, topology):
        compiled.append(config)
        return planned()

    front = search(preset_experiment("llama2-7b", topology), topology, compiled=2, planned=plan)
    rates = [r["estimate"].step / r["config"].batch_size for r in front]
    sizes = [r["estimate"].total for r in front]
    assert rates == sorted(rates)
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == len(sizes) > 2
    assert [r["config"] for r in front if r["plan"]] == compiled
    assert len(compiled) == 2
    assert {row["chips"] for row in front} == {topology.chips}
    assert all(row["config"].batch_size % topology.devices == 0 for row in front)
    assert all(0.9 * topology.chip.hbm_bytes > size > 0 for size in sizes)
    assert len(front_text(front).splitlines()) == len(front) + 1
    rows = json.loads(json.dumps([front_json(row) for row in front]))
    assert [bool(row["plan"]) for row in rows] == [True, True] + [False] * (len(front) - 2)


def test_a_search_where_nothing_fits_says_what_is_missing():
    topology = parse("v5e-4")
    with pytest.raises(InputError, match="take more chips"):
        search(preset_experiment("llama2-70b", topology), topology, compiled=0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "llama2-71b", "--topology", "v5e-256"], "llama2-70b"),
        (["--model", "llama2-7b", "--topology", "v5e-255"], "v5e-256"),
        (["--topology", "v5e-256"], "either an experiment file or --model"),
        (["--model", "llama2-7b", "--topology", "v5e-256", "--mesh.tensr", "4"], "--mesh.tensor"),
        (["--model", "llama2-7b", "--topology", "v5e-256", "--seq-len", "8192"], "exceeds"),
        (["--model", "llama2-7b", "--topology", "v5e-256", "--mesh.fsdp", "100"], "multiply out"),
        (["--model", "llama2-7b", "--topology", "v5e-256", "--mesh.slice", "2"], "--mesh.slice 1"),
        (["--model", "llama2-7b", "--topology", "v5e-256", "--batch-size", "100"], "such as 256"),
        (["nothing.py", "--topology", "v5e-256"], "does not exist"),
    ],
)
def test_bad_input_is_named_before_anything_is_compiled(arguments, said, monkeypatch):
    monkeypatch.setattr("llama_jax.tpu.plan.facts_of", pytest.fail)
    with pytest.raises(InputError, match=said):
        run(arguments, argparse.ArgumentParser)


@pytest.mark.parametrize(
    ("options", "fix"),
    [(["--topology", "v5e-255"], "v5e-256"), (["--topology", "v5e-16", "--batch-size", "9"], "16")],
)
def test_the_command_line_says_it_in_one_line(capsys, options, fix):
    assert cli.main(["plan", "--model", "llama2-7b", *options]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert fix in said.err


def test_groups_are_named_by_the_mesh_axes_they_join():
    mesh = Mesh(np.array(jax.devices()).reshape(2, 2, 2), ("data", "fsdp", "tensor"))
    groups = {(0, 1): "tensor", (0, 2): "fsdp", (0, 4): "data", (0, 1, 2, 3): "fsdp+tensor"}
    for group, axis in groups.items():
        found = [Collective("all-gather", group, 96, 2, "")]
        (entry,) = compile_step.by_axis(found, mesh, len)
        assert entry["axis"] == axis
        assert entry["rate"] == len(group)
        assert entry["bytes"] == 2 * 96 * (len(group) - 1) / len(group)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("topology", "tensor", "links"),
    [
        ("v5e-256", 1, {"fsdp": 4}),
        ("v5e-256", 16, {"fsdp": 2, "tensor": 2}),
        ("v5p-128", 4, {"fsdp": 4, "tensor": 2}),
        ("v5e-16", 1, {"fsdp": 2}),
    ],
)
def test_links_along_a_mesh_axis(topology, tensor, links):
    """Rings count twice, lines once."""
    pytest.importorskip("libtpu", reason="libtpu is only made for x86-64 Linux")
    place = parse(topology)
    config = preset_experiment("llama2-7b", place)
    config = replace(config, mesh=replace(config.mesh, tensor=tensor))
    mesh = compile_step.topology_mesh(config, place)
    for k, axis in enumerate(mesh.axis_names):
        line = np.moveaxis(mesh.devices, k, 0).reshape(mesh.devices.shape[k], -1)[:, 0]
        rate = compile_step.group_bandwidth(list(line), place)
        assert rate == links.get(axis, 0) * place.chip.link_bytes_per_second


def test_a_machine_without_libtpu_is_told_the_package(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    with pytest.raises(InputError, match="pip install libtpu"):
        compile_step.check_libtpu()


def plan_in_subprocess(*options):
    """What the command line answers, as JSON; the step is cut to two layers."""
    command = [sys.executable, "-m", "llama_jax", "plan", "--json", "--model.num-layers", "2"]
    done = subprocess.run(
        [*command, *options], capture_output=True, text=True, env={**os.environ}, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "topology", "parts"),
    [("llama2-13b", "v5p-128", 64), ("llama2-70b", "v5e-256", 256)],
)
def test_published_models_are_planned(model, topology, parts):
    """Two layers of each: the loop over them is compiled once however many there are."""
    pytest.importorskip("libtpu", reason="libtpu is only made for x86-64 Linux")
    p = plan_in_subprocess("--model", model, "--topology", topology)
    hbm = p["hbm_bytes_per_chip"]
    assert p["fits"]
    assert hbm["total"] <= p["hbm_limit_bytes"]
    # What the rules split is split: AdamW's moments are twice the parameters.
    assert hbm["optimizer"] == pytest.approx(2 * hbm["parameters"], rel=1e-3)
    assert p["hbm_peak_by_schedule_bytes"] == pytest.approx(p["hbm_peak_bytes"], rel=0.02)
    assert p["pallas_kernels"] == 3, (
        "flash attention: forward, again for the backward pass, backward"
    )
    assert {c["axis"] for c in p["collective_bytes"]} == {"fsdp"}
    sent = dict.fromkeys(("all-gather", "reduce-scatter"), 0) | collectives_of(p)
    # In bfloat16: weights are gathered forward and again backward, their gradients are scattered;
    # embedding and head are gathered once. Chips send to others what is not their own.
    both = parameter_count(PRESETS[model])
    outer = 2 * PRESETS[model].vocab_size * PRESETS[model].d_model
    layers = 2 * (both - outer) // PRESETS[model].num_layers
    share = 2 * (parts - 1) / parts
    assert sent["all-gather"] == pytest.approx((2 * layers + outer) * share, rel=0.03)
    assert sent["reduce-scatter"] == pytest.approx((layers + outer) * share, rel=0.05)
    # Norms, scalars, and what the compiler makes of a last stage over narrow parts: no gradient is
    # summed whole, nothing goes from all to all.
    assert sum(sent.values()) < 1.05 * (3 * layers + 2 * outer) * share
    assert "all-to-all" not in sent


@pytest.mark.slow
@pytest.mark.parametrize(("topology", "parts"), [("v5e-16", 16), ("v5p-8", 4)])
def test_gradients_are_scattered_on_small_slices(topology, parts):
    """Where jax's order is a path, and where one scatter over a plane does without stages."""
    pytest.importorskip("libtpu", reason="libtpu is only made for x86-64 Linux")
    small = ("--seq-len", "512", "--model.vocab-size", "4096")
    sent = collectives_of(
        plan_in_subprocess("--model", "llama2-7b", "--topology", topology, *small)
    )
    c = PRESETS["llama2-7b"]
    layers = 2 * (parameter_count(c) - 2 * c.vocab_size * c.d_model) // c.num_layers
    # In bfloat16, with what the stages pad.
    share = 2 * (layers + 4096 * c.d_model) * (parts - 1) / parts
    assert sent["reduce-scatter"] == pytest.approx(share, rel=0.1)
    assert sent["all-reduce"] < 1e6


def collectives_of(p):
    """Bytes that a chip sends by kind."""
    sent = {}
    for entry in p["collective_bytes"]:
        sent[entry["kind"]] = sent.get(entry["kind"], 0) + entry["bytes"]
    return sent
