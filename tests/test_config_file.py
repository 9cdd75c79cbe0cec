import dataclasses
import json
import re

import pytest

from llama_jax.config import DataConfig, InputError, ModelConfig, OptimizerConfig, TrainConfig
from llama_jax.config_file import from_dict, model_json, read_config, to_json
from llama_jax.model.presets import TINY, extend_context

CONFIG = TrainConfig(
    workdir="runs/x",
    steps=10,
    batch_size=8,
    seq_len=32,
    sample_prompts=("Once", "The"),
    profile_steps=(3, 5),
    model=TINY,
    optimizer=OptimizerConfig(learning_rate=1e-3),
    data=DataConfig(dataset="tales"),
)


@pytest.mark.parametrize("config", [CONFIG, TINY, extend_context(TINY, 256), CONFIG.mesh])
def test_json_brings_back_the_same(config):
    text = to_json(config)
    assert from_dict(type(config), json.loads(text)) == config
    assert list(json.loads(text)) == [f.name for f in dataclasses.fields(config)]


def test_json_may_leave_out_what_has_a_default():
    values = json.loads(to_json(TINY))
    del values["rope_theta"]
    assert from_dict(ModelConfig, values) == TINY
    assert from_dict(ModelConfig, {**values, "norm_eps": 1}).norm_eps == 1.0


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (
            ["model", "hidden"],
            3,
            "config.model has unknown keys ['hidden']; known are ['attention'",
        ),
        (["steps"], "10", "config.steps='10' must be of type int"),
        (["steps"], True, "config.steps=True must be of type int"),
        (["steps"], 1.5, "config.steps=1.5 must be of type int"),
        (["z_loss"], "0", "config.z_loss='0' must be of type float"),
        (["model", "dtype"], "float16", "config.model.dtype='float16' must be one of float32, bfl"),
        (["model"], [1], "config.model must be a JSON object, not [1]"),
        (["data", "tokenizer"], 5, "config.data.tokenizer=5 must be of type str or NoneType"),
        (["sample_prompts"], "Once", "config.sample_prompts='Once' must be a list"),
        (["sample_prompts"], ["Once", 1], "config.sample_prompts[1]=1 must be of type str"),
        (["profile_steps"], [3], "config.profile_steps=[3] must have 2 values"),
        (["model", "d_ff"], 0, "model.d_ff=0 must be positive"),
    ],
)
def test_json_that_does_not_fit_is_named(path, value, message):
    values = json.loads(to_json(CONFIG))
    at = values
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    with pytest.raises(InputError, match=re.escape(message)):
        from_dict(TrainConfig, values)


def test_missing_keys_are_named():
    with pytest.raises(InputError, match=re.escape("config lacks ['dataset']")):
        from_dict(DataConfig, {})


def test_a_folder_says_what_it_is(tmp_path):
    with pytest.raises(InputError, match="neither a model folder nor a run folder"):
        read_config(tmp_path)
    file = tmp_path / "config.json"
    for text, message in {
        "{": "is not valid JSON",
        "[]": "must hold a JSON object",
        to_json(TINY): "has format_version None; this program reads 1",
    }.items():
        file.write_text(text)
        with pytest.raises(InputError, match=message):
            read_config(tmp_path)
    file.write_text(model_json(TINY))
    assert read_config(tmp_path) == (TINY, None)
    file.write_text(to_json(CONFIG))
    assert read_config(tmp_path) == (TINY, CONFIG)
