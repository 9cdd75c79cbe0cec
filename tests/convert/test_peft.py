"""PEFT folders: the layout by hand, and whatever does not fit refused with its name."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llama_jax
from llama_jax.config import AdaptedModel, InputError, LoraConfig
from llama_jax.convert import peft, safetensors
from llama_jax.model.llama import apply
from llama_jax.model.presets import TINY
from llama_jax.model.weights import A, B, adapter_weights, layer_weights
from llama_jax.models import on_base
from tests.comparison import assert_close
from tests.convert.test_hf import GOLDEN, golden_folder

LORA = LoraConfig(rank=2, alpha=3.0, targets=("q", "o", "up"))
PREFIX = "base_model.model.model.layers.1.self_attn."


@pytest.fixture
def factors():
    rows = adapter_weights(AdaptedModel.of(TINY, LORA), layer_weights(TINY))
    rng = np.random.default_rng(0)
    shapes = {name: (TINY.num_layers, *w.shape) for name, w in rows.items()}
    return {name: rng.normal(size=s).astype(np.float32) for name, s in shapes.items()}


@pytest.fixture
def folder(tmp_path, factors):
    peft.write(tmp_path, LORA, factors, TINY, "some/base")
    return tmp_path


def changed(folder, **values):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_tensors_are_those_of_rows(folder, factors):
    """PEFT adds scale * lora_B @ lora_A to rows [out,in]; heads are the slow axis of them."""
    stored = safetensors.map_tensors(folder / "adapter_model.safetensors")
    q = stored[PREFIX + "q_proj.lora_B.weight"] @ stored[PREFIX + "q_proj.lora_A.weight"]
    ours = np.einsum("dr,rnh->nhd", factors["q" + A][1], factors["q" + B][1])
    np.testing.assert_allclose(q, ours.reshape(q.shape), rtol=1e-5, atol=1e-6)
    o = stored[PREFIX + "o_proj.lora_B.weight"] @ stored[PREFIX + "o_proj.lora_A.weight"]
    ours = np.einsum("nhr,rd->dnh", factors["o" + A][1], factors["o" + B][1])
    np.testing.assert_allclose(o, ours.reshape(o.shape), rtol=1e-5, atol=1e-6)


def test_there_and_back_is_the_same(folder, factors):
    lora, found = peft.read(folder, TINY)
    assert (lora.rank, lora.alpha, lora.targets) == (2, 3.0, ("q", "o", "up"))
    assert found.keys() == factors.keys()
    for name in factors:
        np.testing.assert_array_equal(found[name], factors[name])
    assert peft.read_config(folder).base == "some/base"


def test_the_root_of_the_rank_scales_rslora(folder):
    changed(folder, use_rslora=True)
    assert peft.read(folder, TINY)[0].scale == pytest.approx(3 / np.sqrt(2))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"peft_type": "IA3"}, "peft_type 'IA3' is not supported"),
        ({"r": 0}, "r=0 must be a positive integer"),
        ({"lora_alpha": float("nan")}, "."),
        ({"lora_alpha": "x"}, "lora_alpha='x' must be a positive number"),
        ({"use_dora": True}, "use_dora=True is not supported"),
        ({"alora_invocation_tokens": [1, 2]}, r"alora_invocation_tokens=\[1, 2\] is not supported"),
        (
            {"init_lora_weights": "pissa_niter_4"},
            "init_lora_weights='pissa_niter_4' also changes the",
        ),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save=\['lm_head'\] is not supported"),
        ({"base_model_name_or_path": None}, "names no base_model_name_or_path"),
        ({"r": 3}, r"q_proj.lora_A.weight is \[2, 32\], not \[3, 32\]"),
    ],
)
def test_what_does_not_fit_is_named(folder, values, said):
    changed(folder, **values)
    with pytest.raises(InputError, match=said):
        peft.read(folder, TINY)


def test_adapters_of_another_model_are_refused(folder):
    with pytest.raises(InputError, match=r"layers.2.self_attn.q_proj.lora_A.weight is missing"):
        peft.read(folder, replace(TINY, num_layers=3))
    with pytest.raises(InputError, match=r"lora_A.weight' is not known"):
        peft.read(folder, replace(TINY, num_layers=1))
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(InputError, match=r"adapter_model.safetensors is missing"):
        peft.read(folder, TINY)


@pytest.mark.parametrize("name", ["plain", "rslora"])
def test_a_folder_of_peft_gives_its_logits_and_is_written_as_it_was(tmp_path, name):
    """See tests/golden/make_peft_goldens.py."""
    _, arrays = golden_folder(tmp_path / "base", "grouped", "transformers 5")
    theirs = GOLDEN / "peft" / name
    base = llama_jax.load(tmp_path / "base")
    config = replace(base.config, dtype="float32", param_dtype="float32")
    params = jax.tree.map(lambda a: a.astype(jnp.float32), base.params)
    lora, factors = peft.read(theirs, config)
    adapted = AdaptedModel.of(config, lora)
    own = {"layers": {name: jnp.asarray(w) for name, w in factors.items()}}
    tokens = jnp.asarray(arrays["tokens"][:, :8])
    logits = apply(on_base(params, own, adapted), tokens, config=adapted)
    assert_close(logits, np.load(theirs / "logits.npy"), 1e-4)
    assert np.abs(apply(params, tokens, config=config) - logits).max() > 0.1

    ours = tmp_path / "ours"
    ours.mkdir()
    peft.write(ours, lora, factors, config, "grouped")
    stored = safetensors.map_tensors(theirs / "adapter_model.safetensors")
    written = safetensors.map_tensors(ours / "adapter_model.safetensors")
    assert written.keys() == stored.keys()
    for key, value in stored.items():
        np.testing.assert_array_equal(written[key], value)
    said = {f: json.loads((f / "adapter_config.json").read_text()) for f in (ours, theirs)}
    for key in ("peft_type", "r", "base_model_name_or_path"):
        assert said[ours][key] == said[theirs][key]
    assert {*said[ours]["target_modules"]} == {*said[theirs]["target_modules"]}
    assert peft.read(ours, config)[0].scale == pytest.approx(lora.scale)
