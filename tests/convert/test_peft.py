"""PEFT folders: the layout by hand, and whatever does not fit refused with its name."""

import json
from dataclasses import replace

import numpy as np
import pytest

from llama_jax.config import InputError, LoraConfig
from llama_jax.convert import peft, safetensors
from llama_jax.model.presets import TINY
from llama_jax.model.weights import A, B, adapter_weights, layer_weights

LORA = LoraConfig(rank=2, alpha=3.0, targets=("q", "o", "up"))
PREFIX = "base_model.model.model.layers.1.self_attn."


@pytest.fixture
def factors():
    from llama_jax.config import AdaptedModel

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
        ({"peft_type": "IA3"}, "peft_type 'IA3' is not LORA"),
        ({"r": 0}, "r=0 must be a positive integer"),
        ({"lora_alpha": float("nan")}, "."),
        ({"lora_alpha": "x"}, "lora_alpha='x' must be a positive number"),
        ({"use_dora": True}, "use_dora=True is not read"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save=\['lm_head'\] is not read"),
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
