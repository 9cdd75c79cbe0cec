"""Hugging Face folders: logits of transformers, every spelling of settings, what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import llama_jax
from llama_jax.config import InputError, ModelConfig
from llama_jax.config_file import from_dict
from llama_jax.convert import api, hf, hf_config, safetensors
from llama_jax.model.llama import apply
from llama_jax.model.presets import LLAMA2_7B, extend_context
from llama_jax.ops.rope import rope_frequencies
from tests.comparison import assert_close
from tests.convert.models import BASE, random_params, same_bits, save

GOLDEN = Path(__file__).parents[1] / "golden"
HERE = Path("folder/config.json")


def golden_folder(folder, name, spelling):
    """A Hugging Face folder of transformers' own weights, made without our writer's table."""
    with np.load(GOLDEN / f"{name}.npz") as file:
        arrays = dict(file)
    c = from_dict(ModelConfig, json.loads(str(arrays["config"]))["model"])
    rope = {"rope_type": "default"}
    if c.rope_scaling != "none":
        rope = {"rope_type": c.rope_scaling, "factor": c.rope_factor}
    if c.rope_scaling == "yarn":
        rope["original_max_position_embeddings"] = int(c.pretrained_seq_len)
    values = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": c.vocab_size,
        "hidden_size": c.d_model, "intermediate_size": c.d_ff, "head_dim": c.head_dim,
        "num_hidden_layers": c.num_layers, "num_attention_heads": c.num_heads,
        "num_key_value_heads": c.num_kv_heads, "max_position_embeddings": c.max_seq_len,
        "rms_norm_eps": c.norm_eps, "tie_word_embeddings": c.tie_embeddings, "hidden_act": "silu",
    }  # fmt: skip
    if spelling == "transformers 5":
        values |= {"rope_parameters": {**rope, "rope_theta": c.rope_theta}, "dtype": "float16"}
    else:
        old = {"type" if k == "rope_type" else k: v for k, v in rope.items()}
        values |= {"rope_theta": c.rope_theta, "torch_dtype": "float16"}
        values["rope_scaling"] = None if old["type"] == "default" else old
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(values))
    weights = {k[2:]: v for k, v in arrays.items() if k.startswith("w.")}
    table = {k: (v.shape, "F16") for k, v in weights.items()}
    with safetensors.Writer(folder / "model.safetensors", table) as writer:
        for key, value in weights.items():
            writer.write(key, [value])
    return c, arrays


@pytest.mark.parametrize("name", sorted(path.stem for path in GOLDEN.glob("*.npz")))
def test_a_folder_gives_the_logits_of_transformers(tmp_path, name):
    spelling = "transformers 5" if "tied" in name or "yarn" in name else "transformers 4"
    c, arrays = golden_folder(tmp_path / "hf", name, spelling)
    model = llama_jax.load(tmp_path / "hf")
    assert replace(model.config, dtype="float32", param_dtype="float32") == c
    logits = apply(
        model.params,
        jnp.asarray(arrays["tokens"]),
        config=replace(model.config, dtype="float32"),
        positions=jnp.asarray(arrays["positions"]),
    )
    assert_close(logits, arrays["logits"], 1e-4)


MINIMAL = {
    "model_type": "llama", "vocab_size": 330, "hidden_size": 24, "intermediate_size": 40,
    "num_hidden_layers": 2, "num_attention_heads": 4,
}  # fmt: skip


def test_absent_settings_are_those_that_transformers_assumes():
    config, _ = hf_config.from_hf(MINIMAL, HERE, "float16")
    assert config == ModelConfig(
        vocab_size=330, d_model=24, num_layers=2, num_heads=4, num_kv_heads=4, head_dim=6, d_ff=40,
        max_seq_len=2048, norm_eps=1e-6, tie_embeddings=False, rope_theta=10_000.0,
        dtype="bfloat16", param_dtype="float16",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mistral"}, "model_type='mistral' is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu' is not supported; only 'silu' is"),
        ({"attention_bias": True}, "attention_bias=True is not supported"),
        ({"mlp_bias": True}, "mlp_bias=True"),
        ({"sliding_window": 4096}, "sliding_window=4096"),
        ({"quantization_config": {"bits": 4}}, "quantization_config={'bits': 4}"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type='dynamic'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_type='llama3'"),
        ({"rope_scaling": {"type": "linear"}}, "factor is missing"),
        ({"rope_scaling": {"type": "linear", "factor": 0.5}}, "rope_factor=0.5"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0, "beta_fast": 64}}, "beta_fast=64"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0, "attention_factor": 1.0}},
         "attention_factor=1.0 is not supported; only 1.069315"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0, "truncate": False}}, "truncate=False"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5}},
         "'partial_rotary_factor': 0.5"),
        ({"rope_scaling": "linear"}, "is no object"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"hidden_size": "24"}, "hidden_size='24' must be a size"),
        ({"hidden_size": 2**40}, "hidden_size=1099511627776 must be a size"),
        ({"hidden_size": 25}, "hidden_size=25 is no multiple of 4"),
        ({"num_key_value_heads": 3}, "must be divisible by model.num_kv_heads=3"),
        ({"rms_norm_eps": -1.0}, "rms_norm_eps=-1.0 must be a positive number"),
        ({"rope_theta": float("nan")}, "rope_theta=nan must be a positive number"),
    ],
)  # fmt: skip
def test_settings_that_we_do_not_compute_are_named(changes, message):
    with pytest.raises(InputError) as caught:
        hf_config.from_hf({**MINIMAL, **changes}, HERE, "float32")
    assert message in str(caught.value)
    assert str(caught.value).startswith("folder/config.json: ")


def test_pretraining_tp_and_other_harmless_settings_do_not_matter():
    harmless = {"pretraining_tp": 2, "use_cache": False, "initializer_range": 0.1, "_name": "x"}
    assert hf_config.from_hf({**MINIMAL, **harmless}, HERE, "float32") == hf_config.from_hf(
        MINIMAL, HERE, "float32"
    )


@pytest.mark.parametrize("scaling", ["none", "linear", "ntk", "yarn"])
def test_every_scaling_survives_as_the_same_frequencies(scaling):
    config = replace(LLAMA2_7B, rope_theta=5000.0)
    if scaling != "none":
        config = extend_context(config, 32_768, scaling)

    def frequencies(c):
        return rope_frequencies(
            c.head_dim, theta=c.rope_theta, scaling=c.rope_scaling, factor=c.rope_factor,
            pretrained_len=c.pretrained_seq_len,
        )  # fmt: skip

    values, _ = hf_config.to_hf(config, None)
    for spelling in ("rope_parameters", "rope_scaling"):
        other = {"rope_parameters", "rope_scaling"} - {spelling}
        kept = {k: v for k, v in values.items() if k not in other}
        back, _ = hf_config.from_hf(kept, HERE, "float32")
        assert back.max_seq_len == config.max_seq_len
        found, expected = frequencies(back), frequencies(config)
        assert found[1] == expected[1]
        np.testing.assert_array_equal(found[0], expected[0])
        if scaling != "ntk":  # which is written as another base
            assert replace(back, dtype=config.dtype) == config


def test_yarn_reaches_as_far_as_its_factor_says():
    rope = {"type": "yarn", "factor": 4.0}
    config, notes = hf_config.from_hf({**MINIMAL, "rope_scaling": rope}, HERE, "float32")
    assert (config.max_seq_len, config.pretrained_seq_len) == (8192, 2048)
    assert "max_position_embeddings said 2048" in notes[0]


# ---- Folders


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An export in several shards."""
    monkeypatch.setattr(hf, "SHARD_BYTES", 20_000)
    save(tmp_path / "native", BASE)
    api.convert(tmp_path / "native", tmp_path / "hf", to="hf")
    return tmp_path / "hf"


def rewrite(file, change):
    """Change the arrays of a safetensors file by name."""
    arrays = {k: np.array(v) for k, v in safetensors.map_tensors(file).items()}
    change(arrays)
    with safetensors.Writer(file, {k: (v.shape, "F32") for k, v in arrays.items()}) as writer:
        for name, array in arrays.items():
            writer.write(name, [array])


def one_file(folder):
    """The same folder with all tensors in one file and no index."""
    arrays = {}
    for file in sorted(folder.glob("*.safetensors")):
        arrays |= {k: np.array(v) for k, v in safetensors.map_tensors(file).items()}
        file.unlink()
    (folder / hf.INDEX).unlink()
    with safetensors.Writer(
        folder / "model.safetensors", {k: (v.shape, "F32") for k, v in arrays.items()}
    ) as writer:
        for name, array in arrays.items():
            writer.write(name, [array])
    return folder / "model.safetensors"


def test_shards_an_index_or_neither_are_read_alike(folder):
    index = json.loads((folder / hf.INDEX).read_text())
    files = sorted(f.name for f in folder.glob("*.safetensors"))
    assert len(files) > 2
    assert files == sorted({*index["weight_map"].values()})
    assert index["metadata"]["total_size"] == sum(p.nbytes for p in _leaves(random_params(BASE)))
    assert same_bits(llama_jax.load(folder).params, random_params(BASE))
    one_file(folder)
    assert same_bits(llama_jax.load(folder).params, random_params(BASE))


def _leaves(tree):
    for value in tree.values():
        yield from _leaves(value) if isinstance(value, dict) else [value]


def test_missing_extra_and_misshaped_tensors_are_listed_in_one_line(folder):
    def change(arrays):
        del arrays["model.layers.1.self_attn.q_proj.weight"]
        arrays["model.layers.0.self_attn.q_proj.bias"] = np.zeros(24, np.float32)
        arrays["model.norm.weight"] = np.zeros(25, np.float32)
        arrays["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(3, np.float32)  # fine

    rewrite(one_file(folder), change)
    with pytest.raises(InputError) as caught:
        api.open_source(folder)
    text = str(caught.value)
    assert "model.layers.1.self_attn.q_proj.weight is missing" in text
    assert "'model.layers.0.self_attn.q_proj.bias' is not part of a Llama" in text
    assert "model.norm.weight is [25], not [24]" in text
    assert "inv_freq" not in text
    assert "\n" not in text


def test_the_list_is_short_however_much_is_wrong(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 2**30}))
    with pytest.raises(InputError, match=r"and \d+ more") as caught:
        api.open_source(folder)
    assert len(str(caught.value)) < 1500


def test_a_head_that_is_stored_and_tied_must_be_the_embedding(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    file = one_file(folder)
    with pytest.raises(InputError, match="another than the embedding"):
        api.open_source(folder)
    rewrite(file, lambda a: a.update({"lm_head.weight": a["model.embed_tokens.weight"]}))
    source = api.open_source(folder)
    assert source.config.tie_embeddings
    assert "not kept twice" in source.notes[0]


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": "../native/x.safetensors"}, "is no file of the folder"),
        ({"a": "/etc/passwd"}, "is no file of the folder"),
        ({"a": "gone.safetensors"}, "is missing, which the index names"),
        ({"a": 3}, "has no weight_map"),
        (None, "has no weight_map"),
    ],
)
def test_an_index_that_leads_astray_is_refused(folder, weight_map, message):
    (folder / hf.INDEX).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(InputError, match=message):
        api.open_source(folder)


def test_an_index_and_its_files_must_agree(folder):
    index = json.loads((folder / hf.INDEX).read_text())
    index["weight_map"]["extra"] = sorted(index["weight_map"].values())[0]
    (folder / hf.INDEX).write_text(json.dumps(index))
    with pytest.raises(InputError, match="names 'extra', which no file holds"):
        api.open_source(folder)
    del index["weight_map"]["extra"]
    astray = "model.layers.1.input_layernorm.weight"
    del index["weight_map"][astray]
    (folder / hf.INDEX).write_text(json.dumps(index))
    with pytest.raises(InputError, match=rf"holds '{astray}', unlike"):
        api.open_source(folder)


def test_a_folder_of_pickles_says_what_to_do(folder):
    one_file(folder).rename(folder / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"pytorch_model\.bin is not read: save"):
        api.open_source(folder)


def test_the_export_describes_itself(folder):
    card = (folder / "README.md").read_text()
    for part in ("license: other", '"made": "in a test"', "## Proof", "all bit", "| 2 | 24 |"):
        assert part in card or part == "all bit"
    assert "bit for bit" in card
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == 2
    report = json.loads((folder / "report.json").read_text())
    assert report["result"]["to"] == "hf"
    assert len(report["digests"]) == 12
