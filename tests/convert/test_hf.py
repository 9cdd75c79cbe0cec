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
from tests.convert.models import BASE, assert_same_tensors, random_params, same_bits, save

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
        ({"rope_scaling": {"type": "longrope", "factor": 1.0}}, "rope_type='longrope'"),
        ({"rope_scaling": {"type": "yarn", "factor": 1.0, "attention_factor": 1.5}},
         "attention_factor=1.5 is not supported; only 1.0"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_type='llama3'"),
        ({"rope_scaling": {"type": "linear"}}, "factor is missing"),
        ({"rope_scaling": {"type": "linear", "factor": 0.5}}, "rope_factor=0.5"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0, "beta_fast": 64}}, "beta_fast=64"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0, "attention_factor": 1.0}},
         "attention_factor=1.0 is not supported; only 1.069315"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0, "truncate": False}}, "truncate=False"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5}},
         "partial_rotary_factor=0.5 is not supported; only 1"),
        ({"rope_scaling": "linear"}, "is not an object"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"hidden_size": "24"}, "hidden_size='24' must be a size"),
        ({"hidden_size": 2**40}, "hidden_size=1099511627776 must be a size"),
        ({"hidden_size": 25}, "hidden_size=25 is not a multiple of 4"),
        ({"num_key_value_heads": 3}, "must be divisible by model.num_kv_heads=3"),
        ({"rms_norm_eps": -1.0}, "rms_norm_eps=-1.0 must be a positive number"),
        ({"rope_theta": float("nan")}, "rope_theta=nan must be a positive number"),
        ({"rope_theta": 10**400}, "rope_theta=2^1328 and more must be a positive number"),
        ({"rope_scaling": {"type": "yarn", "factor": 1e15}}, "times 2048 is not a whole length"),
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


@pytest.mark.parametrize(
    "rope",
    [
        {"type": "linear", "factor": 1.0},
        {"type": "dynamic", "factor": 1},
        {"rope_type": "yarn", "factor": 1.0, "original_max_position_embeddings": 2048},
        {"rope_type": "llama3", "factor": 1.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    ],
)
def test_a_factor_of_one_extends_nothing(rope):
    found = hf_config.from_hf({**MINIMAL, "rope_scaling": rope}, HERE, "float32")
    assert found == hf_config.from_hf(MINIMAL, HERE, "float32")


def test_settings_that_change_nothing_are_left_out_and_said():
    """Published YaRN models hold "finetuned"; dynamic scaling begins where this model ends."""
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
    plain = hf_config.from_hf({**MINIMAL, "rope_scaling": yarn}, HERE, "float32")
    config, notes = hf_config.from_hf(
        {**MINIMAL, "rope_scaling": yarn | {"finetuned": True}}, HERE, "float32"
    )
    assert (config, plain[1]) == (plain[0], [])
    assert notes == ["Left out: rope settings {'finetuned': True}, which change nothing of yarn."]
    dynamic = {"type": "dynamic", "factor": 2.0}
    config, notes = hf_config.from_hf({**MINIMAL, "rope_scaling": dynamic}, HERE, "float32")
    assert config == hf_config.from_hf(MINIMAL, HERE, "float32")[0]
    assert "beyond 2048 tokens alone" in notes[0]


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

    values, _ = hf_config.to_hf(config)
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
    with pytest.raises(InputError, match="differs from the embedding"):
        api.open_source(folder)
    rewrite(file, lambda a: a.update({"lm_head.weight": a["model.embed_tokens.weight"]}))
    source = api.open_source(folder)
    assert source.config.tie_embeddings
    assert "not kept twice" in source.changes[0]


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": "../native/x.safetensors"}, "is not a file of the folder"),
        ({"a": "/etc/passwd"}, "is not a file of the folder"),
        ({"a": f"{'a' * 244}.safetensors"}, "is not a file of the folder"),
        ({"a": "gone.safetensors"}, "is missing, which the index names"),
        ({"a": 3}, "has no weight_map"),
        (None, "has no weight_map"),
    ],
)
def test_an_index_that_leads_astray_is_refused(folder, weight_map, message):
    (folder / hf.INDEX).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(InputError, match=message):
        api.open_source(folder)


INV_FREQ = "model.layers.0.self_attn.rotary_emb.inv_freq"


def test_buffers_are_left_out_wherever_they_are_met(folder):
    index = json.loads((folder / hf.INDEX).read_text())
    index["weight_map"][INV_FREQ] = sorted(index["weight_map"].values())[0]  # listed, and not held
    (folder / hf.INDEX).write_text(json.dumps(index))
    assert api.open_source(folder).notes == ()
    del index["weight_map"][INV_FREQ]  # held, and not listed
    (folder / hf.INDEX).write_text(json.dumps(index))
    first = sorted(folder.glob("*.safetensors"))[0]
    rewrite(first, lambda arrays: arrays.update({INV_FREQ: np.ones(3, np.float32)}))
    source = api.open_source(folder)
    assert source.notes == ()
    assert same_bits(llama_jax.load(folder).params, random_params(BASE))


def test_an_index_that_disagrees_with_its_files_is_said_and_they_are_believed(folder):
    index = json.loads((folder / hf.INDEX).read_text())
    files = sorted(index["weight_map"].values())
    index["weight_map"]["extra"] = files[0]
    (folder / hf.INDEX).write_text(json.dumps(index))
    (note,) = api.open_source(folder).notes
    assert "disagree about 1 tensors, such as 'extra'" in note
    assert same_bits(llama_jax.load(folder).params, random_params(BASE))
    (folder / files[0]).unlink()
    with pytest.raises(InputError, match=r"is missing, which the index names: download the folder"):
        api.open_source(folder)


def test_a_stale_index_does_not_beat_the_one_file(folder):
    """As transformers has it, which looks for model.safetensors first."""
    older = {f.name: f.read_bytes() for f in folder.iterdir() if f.is_file()}
    params = random_params(BASE)
    file = one_file(folder)
    rewrite(file, lambda arrays: arrays["model.norm.weight"].fill(3))
    for name, content in older.items():
        if name.startswith("model-") or name == hf.INDEX:
            (folder / name).write_bytes(content)
    (folder / "pytorch_model.bin").write_bytes(b"older still")
    source = api.open_source(folder)
    assert np.all(source.read("norm") == 3)
    assert np.array_equal(source.read("embed"), params["embed"])
    (note,) = source.notes
    assert note.startswith("Not read: model-00001-of-")
    assert note.endswith("more, beside model.safetensors.")


def test_shards_without_an_index_must_all_be_there(folder):
    (folder / hf.INDEX).unlink()
    assert same_bits(llama_jax.load(folder).params, random_params(BASE))
    gone = sorted(folder.glob("*.safetensors"))[1]
    gone.unlink()
    (folder / ".cache/huggingface/download").mkdir(parents=True)
    (folder / ".cache/huggingface/download/x.incomplete").touch()
    with pytest.raises(
        InputError, match=rf"{gone.name} is missing, .*a download was begun and not"
    ):
        api.open_source(folder)


def test_an_adapter_is_no_model(folder, tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    config = {"base_model_name_or_path": "some/base", "peft_type": "LORA", "r": 4}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    lora = {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": ((4, 24), "F32")}
    with safetensors.Writer(adapter / "adapter_model.safetensors", lora) as writer:
        for name in lora:
            writer.write(name, [np.zeros((4, 24), np.float32)])
    with pytest.raises(InputError, match=r"is a LoRA adapter \(PEFT\) of 'some/base' .* merge it"):
        api.open_source(adapter)
    for file in adapter.iterdir():  # a whole model with one beside it
        (folder / file.name).write_bytes(file.read_bytes())
    source = api.open_source(folder)
    assert source.notes == (
        "adapter_model.safetensors is a LoRA adapter (PEFT) and was not read: the base model was.",
    )
    assert_same_tensors(source, api.open_source(tmp_path / "native"))


def test_a_folder_of_pickles_says_what_to_do(folder):
    one_file(folder).rename(folder / "pytorch_model.bin")
    with pytest.raises(
        InputError, match=r"pytorch_model\.bin is a pickle, which is never loaded: save"
    ):
        api.open_source(folder)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(InputError, match=r"the weights are missing\. Download .* its licence"):
        api.open_source(folder)


def test_a_configuration_that_was_not_kept_up_is_put_right(folder):
    values = json.loads((folder / "config.json").read_text())
    values |= {"vocab_size": 384, "quantization_config": {"load_in_4bit": True}}
    (folder / "config.json").write_text(json.dumps(values))
    source = api.open_source(folder)
    assert source.config.vocab_size == BASE.vocab_size
    assert source.notes == (
        "config.json says vocab_size=384: the weights' 400 rows were taken.",
        "Left out: quantization_config, since the weights here are not quantised.",
    )


def test_the_tensors_of_a_value_head_are_left_out(folder):
    def change(arrays):
        arrays["v_head.summary.weight"] = np.zeros((1, 24), np.float32)

    rewrite(one_file(folder), change)
    assert "v_head.summary.weight, of a value head" in api.open_source(folder).notes[0]


def test_the_export_describes_itself(folder):
    card = (folder / "README.md").read_text()
    for part in ("license: other", '"made": "in a test"', "## Proof", "all bit", "| 2 | 24 |"):
        assert part in card or part == "all bit"
    assert "bit for bit" in card
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == 2
    report = json.loads((folder / "report.json").read_text())
    assert report["result"]["to"] == "hf"
    assert len(report["digests"]) == 12
