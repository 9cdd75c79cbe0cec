"""Settings of other programs with any values at all: a configuration or one line, nothing else."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llama_jax.config import InputError, ModelConfig
from llama_jax.convert import api, hf_config, meta
from tests.convert.models import BASE, save

HF = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 330,
    "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 6, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
    "hidden_act": "silu", "tie_word_embeddings": False, "attention_bias": False, "mlp_bias": False,
    "rope_theta": 1e4, "rope_scaling": None, "rope_parameters": None, "pretraining_tp": 1,
}  # fmt: skip
META = ["dim", "multiple_of", "n_heads", "n_kv_heads", "n_layers", "norm_eps", "vocab_size",
        "ffn_dim_multiplier", "rope_theta", "max_seq_len"]  # fmt: skip
ROPE = ["rope_type", "type", "factor", "original_max_position_embeddings", "rope_theta",
        "beta_fast", "beta_slow", "attention_factor", "mscale", "truncate"]  # fmt: skip

plain = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(-2, 70), st.floats(), st.text(max_size=4),
    st.sampled_from([2**31, 2**63, 1e300, "linear", "dynamic", "yarn", "default", "llama3"]),
)  # fmt: skip
rope = st.dictionaries(st.sampled_from(ROPE), plain, max_size=5)
anything = st.one_of(plain, rope, st.lists(plain, max_size=2), st.dictionaries(st.text(), plain))


def changed(names):
    return st.dictionaries(st.sampled_from(sorted(names)), anything, max_size=4)


def config_or_one_line(make):
    """The configuration that `make` returns, or None if it refuses in one line."""
    try:
        return make()
    except InputError as error:
        message = str(error)
    assert "\n" not in message
    assert len(message) < 1000
    return None


@settings(max_examples=400, deadline=None)
@given(changed(HF), st.sets(st.sampled_from(sorted(HF)), max_size=3))
def test_hugging_face(values, gone):
    values = {k: v for k, v in (HF | values).items() if k not in gone}
    made = config_or_one_line(lambda: hf_config.from_hf(values, Path("config.json"), "float32"))
    assert made is None or isinstance(made[0], ModelConfig)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("meta")
    save(place / "native", BASE)
    api.convert(place / "native", place / "meta", to="meta")
    return place / "meta"


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.differing_executors])
@given(values=changed(META), gone=st.sets(st.sampled_from(META), max_size=3))
def test_meta(folder, values, gone):
    file = folder / "params.json"
    original = file.read_text()
    stored = {k: v for k, v in (json.loads(original) | values).items() if k not in gone}
    file.write_text(json.dumps(stored))
    try:
        source = config_or_one_line(lambda: meta.read(folder))
    finally:
        file.write_text(original)
    assert source is None or isinstance(source.config, ModelConfig)
