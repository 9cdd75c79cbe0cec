"""Runs that train adapters: what is saved, resumed, opened, merged and refused."""

import json
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import jax
import numpy as np
import pytest

from llama_jax.adapters import open_adapter
from llama_jax.align.rejection import rejection
from llama_jax.align.sft import sft
from llama_jax.config import AdaptedModel, InputError, LoraConfig, QuantizedModel
from llama_jax.convert.usage import Usage
from llama_jax.data.chat import JINJA
from llama_jax.model.by_row import with_adapters
from llama_jax.model.quantize import dequantized, quantized
from llama_jax.models import load, open_model, params_digest
from tests.devices import devices
from tests.train.tiny import digests

LORA = LoraConfig(rank=2, targets=("q", "o", "down"))
NAMES = {f"layers/{n}_{end}" for n in LORA.targets for end in "ab"}


@pytest.fixture(scope="module", autouse=True)
def one_device():
    with devices(1):
        yield


@pytest.fixture(scope="module")
def world(files, tmp_path_factory):
    """A folder with a base and a run of two steps on it, which may be moved."""
    folder = tmp_path_factory.mktemp("world")
    shutil.copytree(files.untrained("adapted_base", seed=4), folder / "base")
    Usage(end_ids=(5,), chat_template="of another chat").write(folder / "base")
    summary = sft(config_of(files, folder, "run"))
    assert summary.step == 2
    return folder


def config_of(files, folder, name, **changes):
    changes = {"steps": 2, "init_from": str(folder / "base"), "lora": LORA, **changes}
    return files.sft(workdir=str(folder / name), **changes)


def test_adapters_alone_are_trained_and_saved(world):
    saved = digests(world / "run", 2)
    assert {n.removeprefix("params/") for n in saved if n.startswith("params/")} == NAMES
    moments = {n.split("mu/")[1] for n in saved if "/mu/" in n}
    assert moments == NAMES


def test_a_run_opens_as_its_base_with_the_adapters_merged(world):
    base, model = load(str(world / "base")), load(str(world / "run"))
    assert model.config == base.config
    assert model.tokenizer.fingerprint == base.tokenizer.fingerprint
    assert model.usage == Usage(end_ids=(5,), chat_template=JINJA)  # it has learned ours
    layers = zip(model.params["layers"].items(), base.params["layers"].values(), strict=True)
    changed = {name for (name, a), b in layers if np.any(np.asarray(a) != np.asarray(b))}
    assert changed == set(LORA.targets)
    for name in ("embed", "norm", "head"):
        np.testing.assert_array_equal(model.params[name], base.params[name])


def test_a_run_that_stopped_and_went_on_has_the_same_bytes(files, world):
    sft(config_of(files, world, "cut", steps=1))
    sft(config_of(files, world, "cut", steps=2))
    assert (
        digests(world / "cut", 2)["params/layers/q_b"]
        == digests(world / "run", 2)["params/layers/q_b"]
    )


def test_other_adapters_are_another_run(files, world):
    for other in (replace(LORA, rank=3), replace(LORA, alpha=1.0), replace(LORA, targets=("q",))):
        with pytest.raises(InputError, match=r"holds a run with other settings \(lora\."):
            sft(config_of(files, world, "run", lora=other))


def test_base_and_run_move_together_and_another_base_is_refused(files, world, tmp_path):
    moved = tmp_path / "elsewhere"
    shutil.copytree(world, moved)
    (moved / "base").rename(tmp_path / "aside")
    # What is left is the base where it was when the adapters were trained.
    expected = params_digest(load(str(world / "run")).params)
    assert params_digest(load(str(moved / "run")).params) == expected
    (world / "base").rename(world / "away")
    try:
        with pytest.raises(InputError, match="no longer exists: restore it at"):
            open_model(str(moved / "run"))
        (tmp_path / "aside").rename(moved / "base")
        assert params_digest(load(str(moved / "run")).params) == expected
        shutil.rmtree(moved / "base")
        shutil.copytree(files.untrained("another_base", seed=5), moved / "base")
        with pytest.raises(InputError, match="holds adapters of other weights than"):
            open_model(str(moved / "run"))
        with pytest.raises(InputError, match="was trained on another base"):
            sft(config_of(files, moved, "run", steps=3))
    finally:
        (world / "away").rename(world / "base")


def test_adapters_without_a_base_or_wider_than_it_are_refused(files, world):
    with pytest.raises(InputError, match=r"lora.rank=2 needs a model to adapt"):
        files.base(lora=LORA)
    with pytest.raises(InputError, match=r"lora.rank=33 exceeds model.d_model=32"):
        config_of(files, world, "wide", lora=LoraConfig(rank=33))


@pytest.mark.slow
def test_each_round_of_rejection_trains_adapters_of_the_round_before(chat, tmp_path):
    """What the rounds before have added is in their base's matrices."""
    lora = LoraConfig(rank=2, targets=("q", "down"))
    run = Path(rejection(chat.rejection(workdir=str(tmp_path / "run"), lora=lora)).workdir)
    models = [
        load(chat.folder / "sft"),
        *(load(run / f"round_{n}" / "sft") for n in (1, 2)),
        load(run),
    ]
    for before, after in pairwise(models[:3]):
        changed = {
            name
            for name, w in after.params["layers"].items()
            if not np.array_equal(w, before.params["layers"][name])
        }
        assert changed == {"q", "down"}
        np.testing.assert_array_equal(after.params["embed"], before.params["embed"])
    assert params_digest(models[3].params) == params_digest(models[2].params)
    saved = digests(run / "round_2" / "sft", 1)
    names = {n.removeprefix("params/layers/") for n in saved if n.startswith("params/")}
    assert names == {"q_a", "q_b", "down_a", "down_b"}


@pytest.mark.parametrize("base", ["int8", "nf4"])
def test_adapters_of_a_base_in_fewer_bits(files, world, base):
    """They are saved alone, and open in the dense matrices that the base was trained as."""
    lora = replace(LORA, base=base)
    sft(config_of(files, world, base, lora=lora))
    saved = digests(world / base, 2)
    assert {n.removeprefix("params/") for n in saved if n.startswith("params/")} == NAMES
    dense, model = load(str(world / "base")), load(str(world / base))
    assert model.config == dense.config
    quant = AdaptedModel.of(dense.config, lora).quant
    config = QuantizedModel.of(dense.config, quant)
    theirs = dequantized(quantized(dense.params, config), config)
    assert not np.array_equal(theirs["layers"]["gate"], dense.params["layers"]["gate"])
    for name in ("gate", "k"):  # without adapters
        np.testing.assert_array_equal(model.params["layers"][name], theirs["layers"][name])
    own = np.abs(np.asarray(model.params["layers"]["down"] - theirs["layers"]["down"]))
    assert 0 < own.max() < 0.1


def test_adapters_open_beside_the_model_that_they_belong_to(files, world, tmp_path, caplog):
    base = open_model(str(world / "base"))
    opened = open_adapter(str(world / "run"), base)
    assert opened.lora == LORA
    adapter = opened.read()
    assert {f"layers/{name}" for name in adapter.layers} == NAMES
    assert command("convert", world / "run", tmp_path / "peft", "--to", "peft") == 0
    theirs = open_adapter(str(tmp_path / "peft"), base).read()
    for name, factor in adapter.layers.items():
        np.testing.assert_array_equal(theirs.layers[name], factor)
    # What is added is what merging adds.
    before, after = (load(str(world / name)).params["layers"]["q"] for name in ("base", "run"))
    matrix = with_adapters(load(str(world / "base")).prepared, [adapter], "float32")
    a, b = (np.float64(getattr(matrix["layers"][1]["q"], end)[1]) for end in "ab")
    added = (a @ b.reshape(b.shape[0], -1)).reshape(before[1].shape)
    np.testing.assert_allclose(added, np.float64(after[1]) - np.float64(before[1]), atol=1e-6)

    other = open_model(str(files.untrained("beside_another", seed=6)))
    with pytest.raises(InputError, match="holds adapters of other weights than"):
        open_adapter(str(world / "run"), other)
    with pytest.raises(InputError, match=r"holds no adapters: name a run of --lora\.rank"):
        open_adapter(str(world / "base"), base)
    scaled = replace(base, config=replace(base.config, rope_theta=5e5))
    with pytest.raises(InputError, match=r"rope_theta=10000\.0, but the model has 500000\.0"):
        open_adapter(str(world / "run"), scaled)
    sft(config_of(files, world, "packed", lora=replace(LORA, base="int8")))
    open_adapter(str(world / "packed"), base)
    assert "was trained on the model in int8" in caplog.text


def command(*arguments):
    from llama_jax.cli import main

    return main([str(a) for a in arguments])


def test_to_peft_and_back_and_merged(world, tmp_path, capsys):
    assert command("convert", world / "run", tmp_path / "peft", "--to", "peft") == 0
    values = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert values["target_modules"] == ["q_proj", "o_proj", "down_proj"]
    assert (values["r"], values["lora_alpha"]) == (2, 4.0)
    assert Path(values["base_model_name_or_path"]) == world / "base"
    assert "matrices    q, o, down" in capsys.readouterr().out
    expected = load(str(world / "run")).params
    assert params_digest(load(str(tmp_path / "peft")).params) == params_digest(expected)
    assert command("convert", world / "run", tmp_path / "merged", "--to", "hf", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["not_identical"] == []
    assert load(str(tmp_path / "merged")).usage.end_ids == (5,)
    merged = load(str(tmp_path / "merged")).params
    for a, b in zip(jax.tree.leaves(merged), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)
    assert list(tmp_path.glob(".merging*")) == []
    # A base that has another name here.
    values["base_model_name_or_path"] = "meta-llama/Llama-2-7b-hf"
    (tmp_path / "peft" / "adapter_config.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match=r"of meta-llama/Llama-2-7b-hf, which is not here"):
        load(str(tmp_path / "peft"))
    opened = open_model(str(tmp_path / "peft"), str(world / "base"))
    assert params_digest(opened.read()) == params_digest(expected)
