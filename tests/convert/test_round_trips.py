"""native -> X -> native in every format: the same bits, the same logits, the same tokenizer."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llama_jax
from llama_jax.checkpoint import load_params, verify
from llama_jax.config import InputError, MeshConfig
from llama_jax.config_file import read_config
from llama_jax.convert import api, proof, source
from llama_jax.data.sentencepiece_proto import Piece, with_pieces
from llama_jax.model.llama import apply
from llama_jax.model.weights import abstract_params
from llama_jax.parallel.mesh import make_mesh
from tests.convert.models import BASE, CONFIGS, random_params, same_bits, save, tokenizer


def load(folder):
    config, _ = read_config(folder)
    return config, load_params(folder, abstract_params(config))


@pytest.mark.parametrize("to", ["native", "hf", "meta"])
@pytest.mark.parametrize("name", CONFIGS)
def test_round_trip_is_bit_equal(tmp_path, name, to):
    dtype = {"grouped": "bfloat16", "grouped_tied": "float16"}.get(name, "float32")
    config = replace(CONFIGS[name], param_dtype=dtype)
    params = random_params(config)
    save(tmp_path / "a", config, params)
    there = api.convert(tmp_path / "a", tmp_path / "b", to=to)
    back = api.convert(tmp_path / "b", tmp_path / "c")
    again, loaded = load(tmp_path / "c")
    assert same_bits(params, loaded)
    lost = {"max_seq_len": 64} if to == "meta" else {}  # params.json does not say
    assert replace(again, dtype=config.dtype, **lost) == config
    assert (tmp_path / "c/tokenizer.model").read_bytes() == tokenizer().model_bytes
    for report in (there, back):
        assert report["not_identical"] == []
        assert report["logits"]["largest_difference"] == 0
        assert report["parameters"] == sum(np.size(p) for p in jax_leaves(params))
    assert all(report.ok for report in verify(tmp_path / "c"))
    for folder in "bc":
        found = api.verify(tmp_path / folder)
        assert found is not None
        assert found["ok"]
        assert found["largest_difference"] < 1e-5


@pytest.mark.parametrize("to", ["native", "hf", "meta"])
def test_tensors_that_come_in_parts_make_the_same_files(tmp_path, monkeypatch, to):
    """Down to a row, or a head, at a time; digests are those of the whole."""
    save(tmp_path / "a", BASE)
    whole = api.convert(tmp_path / "a", tmp_path / "whole", to=to)
    monkeypatch.setattr(source, "_PART_BYTES", 300)
    parts = api.convert(tmp_path / "a", tmp_path / "parts", to=to)
    assert parts["digests"] == whole["digests"]
    assert parts["not_identical"] == []
    written = [*(tmp_path / "whole").rglob("*.safetensors"), *(tmp_path / "whole").glob("*.pth")]
    written += (tmp_path / "whole").glob("params/*/0*")
    assert written
    for file in written:
        other = tmp_path / "parts" / file.relative_to(tmp_path / "whole")
        assert other.read_bytes() == file.read_bytes(), file
    again = api.convert(tmp_path / "parts", tmp_path / "b")
    assert again["digests"] == whole["digests"]
    assert same_bits(load(tmp_path / "b")[1], load(tmp_path / "a")[1])


def jax_leaves(tree):
    for value in tree.values():
        yield from jax_leaves(value) if isinstance(value, dict) else [value]


@pytest.mark.parametrize("to", ["hf", "meta"])
def test_any_format_loads_and_generates_without_converting(tmp_path, to):
    save(tmp_path / "a", BASE)
    api.convert(tmp_path / "a", tmp_path / "b", to=to)
    a, b = llama_jax.load(tmp_path / "a"), llama_jax.load(tmp_path / "b")
    assert same_bits(a.params, b.params)
    texts = [llama_jax.generate(m, "Once", max_new_tokens=8, temperature=0.0) for m in (a, b)]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("to", ["native", "hf", "meta"])
def test_devices_of_a_mesh_load_their_own_parts(tmp_path, to):
    save(tmp_path / "a", BASE)
    api.convert(tmp_path / "a", tmp_path / "b", to=to)
    whole = llama_jax.load(tmp_path / "b").params
    with jax.set_mesh(make_mesh(MeshConfig(fsdp=4, tensor=2))):
        split = llama_jax.load(tmp_path / "b").params
    assert same_bits(whole, split)
    q = split["layers"]["q"]
    assert len({str(shard.index) for shard in q.addressable_shards}) == 8
    assert all(shard.data.size == q.size // 8 for shard in q.addressable_shards)


@pytest.mark.parametrize("name", ["grouped", "multi_head_tied"])
def test_proof_logits_are_those_of_the_model(tmp_path, name):
    config = CONFIGS[name]
    params = random_params(config)
    save(tmp_path / name, config, params)
    tokens = proof.fixed_tokens(config.vocab_size)
    whole = apply(params, jnp.asarray([tokens]), config=replace(config, dtype="float32"))[0]
    streamed = proof.logits(api.open_source(tmp_path / name), tokens)
    np.testing.assert_allclose(streamed, whole, rtol=1e-4, atol=1e-4)


def test_casts_round_and_are_measured(tmp_path):
    params = random_params(BASE)
    save(tmp_path / "a", BASE, params)
    report = api.convert(tmp_path / "a", tmp_path / "b", to="hf", dtype="bfloat16")
    assert 0 < report["logits"]["largest_difference"] < 1
    assert any("cast from float32 to bfloat16" in note for note in report["notes"])
    loaded = llama_jax.load(tmp_path / "b").params
    assert loaded["layers"]["q"].dtype == jnp.bfloat16
    assert np.array_equal(loaded["layers"]["q"], params["layers"]["q"].astype(jnp.bfloat16))


def test_a_cast_that_overflows_is_refused(tmp_path):
    params = random_params(BASE)
    params["layers"]["up"] = params["layers"]["up"].at[1, 2, 3].set(1e6)
    save(tmp_path / "a", BASE, params)
    with pytest.raises(InputError, match=r"up of layer 1 holds 1e\+06, beyond .* float16"):
        api.convert(tmp_path / "a", tmp_path / "b", dtype="float16")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a"]


def test_damage_in_the_source_is_found_and_leaves_nothing(tmp_path):
    save(tmp_path / "a", BASE)
    api.convert(tmp_path / "a", tmp_path / "b")  # one file a layer, plain numbers
    chunk = tmp_path / "b/params/layers.k/1.0.0.0"
    data = bytearray(chunk.read_bytes())
    data[5] ^= 1
    chunk.write_bytes(data)
    with pytest.raises(InputError, match=r"k is damaged \(its digest"):
        api.convert(tmp_path / "b", tmp_path / "c", to="hf")
    found = api.verify(tmp_path / "b")
    assert found is not None
    assert (found["ok"], found["damaged"]) == (False, ["k"])
    chunk.unlink()
    with pytest.raises(InputError, match="layers/k cannot be read"):
        api.convert(tmp_path / "b", tmp_path / "c", to="hf")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_verify_sees_a_changed_export(tmp_path):
    save(tmp_path / "a", BASE)
    api.convert(tmp_path / "a", tmp_path / "b", to="hf")
    file = tmp_path / "b/model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 0x40
    file.write_bytes(data)
    found = api.verify(tmp_path / "b")
    assert found is not None
    assert not found["ok"]
    assert found["damaged"] == ["down"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_interrupted_conversion_leaves_nothing(tmp_path, monkeypatch, error):
    save(tmp_path / "a", BASE)

    def fails(*_, **__):
        raise error

    monkeypatch.setattr(proof, "logits", fails)  # when all is written and before it is renamed
    with pytest.raises(type(error) if isinstance(error, OSError) else error):
        api.convert(tmp_path / "a", tmp_path / "b", to="hf")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a"]


def test_a_source_without_a_tokenizer_warns_and_one_can_be_given(tmp_path, caplog):
    save(tmp_path / "a", BASE)
    api.convert(tmp_path / "a", tmp_path / "b", to="meta")
    (tmp_path / "b/tokenizer.model").unlink()
    report = api.convert(tmp_path / "b", tmp_path / "c")
    assert "has no tokenizer" in caplog.text
    assert not report["tokenizer"]
    model = llama_jax.load(tmp_path / "c")
    with pytest.raises(InputError, match="has no tokenizer"):
        llama_jax.generate(model, "a", max_new_tokens=1)
    api.convert(tmp_path / "b", tmp_path / "d", tokenizer=str(tmp_path / "a"))
    assert llama_jax.load(tmp_path / "d").tokenizer is not None


@pytest.mark.parametrize(
    ("src", "dst", "options", "message"),
    [
        ("gone", "b", {}, "gone does not exist"),
        ("empty", "b", {}, "empty is in no known format"),
        ("a", "a", {}, "a exists and is not empty"),
        ("a", "no/where", {}, "no does not exist"),
        ("a", "b", {"to": "pickle"}, "--to pickle is unknown; choose from native, hf"),
        ("a", "b", {"to": "hf:9"}, "choose the variant"),
        ("a", "b", {"tokenizer": "gone.model"}, "gone.model does not exist"),
        (
            "a",
            "b",
            {"tokenizer": "large.model"},
            "large.model has 401 tokens but the model's embedding has 400",
        ),
    ],
)
def test_bad_requests_are_one_line(tmp_path, monkeypatch, src, dst, options, message):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "a", BASE)
    (tmp_path / "empty").mkdir()
    larger = with_pieces(tokenizer().model_bytes, [Piece("more", 0.0, "normal")])
    (tmp_path / "large.model").write_bytes(larger)
    with pytest.raises(InputError, match=message) as caught:
        api.convert(src, dst, **options)
    assert "\n" not in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "empty", "large.model"]
