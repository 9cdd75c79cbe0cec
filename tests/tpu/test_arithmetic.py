"""The planner's arithmetic against counts made another way."""

from dataclasses import replace

import pytest

from llama_jax.config import InputError, LoraConfig
from llama_jax.config_align import SftConfig
from llama_jax.experiment import load_experiment
from llama_jax.model.presets import LLAMA2_7B, LLAMA2_70B, PRESETS
from llama_jax.tpu.arithmetic import estimate, flops
from llama_jax.tpu.chips import GiB
from llama_jax.tpu.command import preset_experiment
from llama_jax.tpu.decode_plan import decode_plan
from llama_jax.tpu.topology import parse
from llama_jax.train.metrics import flops_per_token


def experiment(name, topology="v5e-256", **changes):
    config = preset_experiment(name, parse(topology))
    return replace(config, **changes)


def test_qlora_of_the_70b_fits_16_chips():
    """In nf4 with blocks of 64: half a byte, a byte a block, two numbers an output."""
    model = replace(LLAMA2_70B, param_dtype="bfloat16", remat="full")
    config = experiment("llama2-70b", "v5e-16", batch_size=64, accumulate=4, model=model)
    config = replace(config, init_from="base", lora=LoraConfig(rank=16, base="nf4"))
    L, D, K, F = 80, 8192, 1024, 28672
    matrices, outputs = L * (2 * D * D + 2 * D * K + 3 * D * F), L * (3 * D + 2 * K + 2 * F)
    adapters = 16 * L * (2 * (D + D) + 2 * (D + K) + 3 * (D + F))
    others = 2 * 32000 * D + (2 * L + 1) * D
    place = parse("v5e-16")
    found = estimate(config, place)
    parameters = matrices * (0.5 + 1 / 64) + outputs * 8 + others * 2 + adapters * 4
    assert found.hbm["parameters"] == parameters / 16
    assert found.hbm["optimizer"] == adapters * 8 / 16
    assert found.total < place.chip.hbm_bytes
    dense = replace(config, lora=replace(config.lora, base="dense"))
    assert estimate(dense, place).total > place.chip.hbm_bytes


@pytest.mark.parametrize(
    ("name", "topology", "base"),
    [("v5e1", "v5e-1", "int8"), ("v5e4", "v5e-4", "dense"), ("v5e8", "v5e-8", "dense")],
)
def test_adapters_of_the_7b_fit_one_chip_four_and_eight(name, topology, base):
    """Only they have moments, and their checkpoint is a fiftieth of a whole one's."""
    config = load_experiment([f"tpu/llama2_7b_lora_{name}"], kind=SftConfig)
    place = parse(topology)
    assert config.lora.base == base
    L, D, F = 32, 4096, 11008
    matrices, outputs, rest = L * (4 * D * D + 3 * D * F), L * (5 * D + 2 * F), 262_410_240
    adapters = 16 * L * (4 * (D + D) + 3 * (D + F))
    stored = matrices + 4 * outputs + 2 * rest if base == "int8" else 2 * (matrices + rest)
    found = estimate(config, place)
    assert found.hbm["parameters"] == (stored + 4 * adapters) / place.devices
    assert found.hbm["optimizer"] == 8 * adapters / place.devices
    assert found.total < place.chip.hbm_bytes
    assert 12 * adapters < (12 * (matrices + rest)) / 50


@pytest.mark.parametrize("model", ["llama2-7b", "llama2-13b", "llama2-70b", "llama1-33b"])
def test_flops_are_those_that_training_reports(model):
    config = experiment(model)
    work, tokens = flops(config), config.batch_size * config.seq_len
    for name, causal in (("causal", True), ("full", False)):
        expected = tokens * flops_per_token(PRESETS[model], config.seq_len, causal=causal)
        assert getattr(work, name) == pytest.approx(expected, rel=1e-12)


def test_full_rematerialisation_runs_the_forward_pass_again_but_for_its_last_product():
    c, tokens = LLAMA2_7B, 256 * 4096
    extra = (
        flops(experiment("llama2-7b")).executed
        - flops(experiment("llama2-7b", model=replace(c, remat="none"))).executed
    )
    layer = 2 * (4 * c.d_model**2 + 2 * c.d_model * c.d_ff) + 2 * 4096 * c.d_model
    assert extra == pytest.approx(tokens * c.num_layers * layer, rel=1e-12)


@pytest.mark.parametrize("policies", [("none", "dots"), ("dots", "qkvo"), ("qkvo", "full")])
def test_policies_trade_memory_for_work(policies):
    topology = parse("v5e-256")
    more, less = (
        experiment("llama2-7b", model=replace(LLAMA2_7B, remat=policy)) for policy in policies
    )
    assert flops(more).executed < flops(less).executed
    assert estimate(more, topology).total > estimate(less, topology).total


def test_state_is_split_over_fsdp_and_tensor():
    c, topology = LLAMA2_70B, parse("v5e-256")
    config = experiment("llama2-70b", mesh=replace(experiment("llama2-70b").mesh, tensor=4))
    found = estimate(config, topology).hbm
    count = 68_976_648_192
    assert found["parameters"] == count * 4 / 256
    assert found["optimizer"] == count * 8 / 256
    assert found["activations"] == c.num_layers * 4 * 4096 * 8192 * 2 / 4


def test_links_of_a_fully_sharded_step():
    config, topology = experiment("llama2-7b"), parse("v5e-256")
    seconds = estimate(config, topology).seconds["links fsdp"]
    # Every weight in bfloat16 is gathered twice and its gradient scattered once, over both rings.
    assert seconds == pytest.approx(3 * 2 * 6_738_415_616 * 255 / 256 / (4 * 50e9))


@pytest.mark.parametrize(
    ("model", "topology", "compiled"),
    [
        ("llama2-7b", "v5e-256", 2.49),
        ("llama2-7b", "v5p-128", 3.60),
        ("llama2-70b", "v5p-128", 23.86),
        ("llama2-70b", "v5e-256", 12.61),
    ],
)
def test_the_estimate_is_near_what_the_compiler_allocates(model, topology, compiled):
    """GiB of experiments/plan_table.py, compiled with libtpu 0.0.52."""
    place = parse(topology)
    found = estimate(preset_experiment(model, place), place).total / GiB
    assert found == pytest.approx(compiled, rel=0.06)


def test_generation_reads_weights_and_cache_once_a_token():
    config = experiment("llama2-70b", "v5e-16", batch_size=32)
    p = decode_plan(config, parse("v5e-16"))
    weights, cache = 68_976_648_192 * 2 / 16, 2 * 80 * 32 * 4096 * 8 * 128 * 2 / 16
    assert p["hbm_bytes_per_chip"] == {
        "total": weights + cache, "weights": weights, "cache": cache
    }  # fmt: skip
    assert p["predicted_seconds"]["hbm"] == pytest.approx((weights + cache) / 819e9)
    assert p["fits"]
    assert not decode_plan(replace(config, batch_size=256), parse("v5e-16"))["fits"]


def test_small_weights_and_a_small_cache_are_read_faster_and_leave_room_for_rows():
    """7B: 6.48e9 of its 6.74e9 parameters are matrices of layers, 0.26e9 embedding and head."""
    config, place = experiment("llama2-7b", "v5e-4", batch_size=16), parse("v5e-4")
    plain = decode_plan(config, place)
    matrices, rest = 32 * (4 * 4096**2 + 3 * 4096 * 11008), 262_410_240
    assert plain["hbm_bytes_per_chip"]["weights"] == (matrices + rest) * 2 / 4
    small = decode_plan(config, place, weights="int8", kv="int8")
    norms, outputs = (2 * 32 + 1) * 4096, 32 * (5 * 4096 + 2 * 11008)
    outer = 2 * 32000 * (4096 + 4) + 2 * norms
    assert small["hbm_bytes_per_chip"]["weights"] == (matrices + 4 * outputs + outer) / 4
    assert small["hbm_bytes_per_chip"]["cache"] == 16 * 4096 * 2 * 32 * 32 * (128 + 4) / 4
    assert small["largest_batch_size"] > 2 * plain["largest_batch_size"]
    assert small["predicted_seconds"]["hbm"] < 0.6 * plain["predicted_seconds"]["hbm"]
    smaller = decode_plan(config, place, weights="int4", kv="int8")
    assert smaller["hbm_bytes_per_chip"]["weights"] == (matrices * (0.5 + 2 / 32) + outer) / 4


def test_a_row_holds_whole_pages_and_reads_what_it_has():
    config, place = experiment("llama2-7b", "v5e-4", batch_size=4), parse("v5e-4")
    config = replace(config, seq_len=4000)
    pages = decode_plan(config, place, page=128)
    exact = decode_plan(config, place, page=125)
    cache = [p["hbm_bytes_per_chip"]["cache"] for p in (pages, exact)]
    assert cache[0] / cache[1] == 4096 / 4000
    assert pages["predicted_seconds"] == exact["predicted_seconds"]
    assert pages["largest_batch_size"] == pages["pages"] // 32
    with pytest.raises(InputError, match="page=0 must be positive"):
        decode_plan(config, place, page=0)


def test_rows_that_do_not_divide_are_refused():
    with pytest.raises(InputError, match="batch_size=3 is not divisible by 2"):
        decode_plan(experiment("llama2-70b", "v5e-16", batch_size=3), parse("v5e-16"))
