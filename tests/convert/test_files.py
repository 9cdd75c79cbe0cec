"""Whole conversions of which the result is a file, or the source one: llama2.c and GGUF."""

import importlib.util
from dataclasses import replace

import numpy as np
import pytest

import llama_jax
from llama_jax import cli
from llama_jax.checkpoint import load_params
from llama_jax.config import InputError
from llama_jax.config_file import read_config
from llama_jax.convert import api
from llama_jax.data.tokenizer import Tokenizer
from llama_jax.model.weights import abstract_params
from tests.convert.models import BASE, CONFIGS, random_params, same_bits, save, tokenizer

LLAMA2C = replace(BASE, rope_theta=10_000.0)
needs_gguf = pytest.mark.skipif(
    not importlib.util.find_spec("gguf"), reason="writing GGUF needs the extra [gguf]"
)


def there_and_back(folder, config, to):
    """Reports of both ways; asserts that the bits are the same."""
    params = random_params(config)
    save(folder / "a", config, params)
    reports = (
        api.convert(folder / "a", folder / "b", to=to),
        api.convert(folder / "b", folder / "c"),
    )
    again, _ = read_config(folder / "c")
    assert replace(again, dtype=config.dtype) == config
    assert same_bits(params, load_params(folder / "c", abstract_params(again)))
    assert llama_jax.load(folder / "c").tokenizer.vocabulary == tokenizer().vocabulary
    for report in reports:
        assert report["not_identical"] == []
        assert report["logits"]["largest_difference"] == 0
    found = api.verify(folder / "b")
    assert found is not None
    assert found["ok"]
    return reports


@pytest.mark.parametrize(("name", "version"), list(zip(CONFIGS, "0110", strict=True)))
def test_llama2c_round_trip_is_bit_equal(tmp_path, name, version):
    config = replace(CONFIGS[name], rope_theta=10_000.0)
    there, back = there_and_back(tmp_path, config, f"llama2c:{version}")
    assert "rotary rows of q and k permuted from half-split to interleaved" in there["notes"]
    assert back["source"]["origin"] == {"program": "llama2.c", "version": int(version)}
    names = ["b", "b.report.json", "tokenizer.bin"]
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == names


@needs_gguf
@pytest.mark.parametrize(
    ("name", "dtype"),
    list(zip(CONFIGS, ["bfloat16", "float16", "float32", "bfloat16"], strict=True)),
)
def test_gguf_round_trip_is_bit_equal(tmp_path, name, dtype):
    there_and_back(tmp_path, replace(CONFIGS[name], param_dtype=dtype), "gguf")


@pytest.mark.parametrize(
    "to", ["llama2c:2", pytest.param("gguf:q8_0", marks=needs_gguf)]
)  # fmt: skip
def test_int8_reports_what_it_changed_and_is_exact_from_then_on(tmp_path, to):
    config = replace(LLAMA2C, d_model=32, head_dim=8, d_ff=64)
    save(tmp_path / "a", config)
    report = api.convert(tmp_path / "a", tmp_path / "b", to=to)
    assert "norm" not in report["not_identical"]
    assert {"q", "down", "embed"} <= set(report["not_identical"])
    assert 0 < report["logits"]["largest_difference"] < 1
    assert any("matrices rounded to int8" in note for note in report["notes"])
    assert api.verify(tmp_path / "b")["ok"]
    api.convert(tmp_path / "b", tmp_path / "c")
    (tmp_path / "d").mkdir()
    assert api.convert(tmp_path / "c", tmp_path / "d/b", to=to)["not_identical"] == []
    stored, again = (tmp_path / "b").read_bytes(), (tmp_path / "d/b").read_bytes()
    assert again == stored


def test_float32_is_taken_where_the_format_has_no_other_type(tmp_path):
    config = replace(LLAMA2C, param_dtype="bfloat16")
    save(tmp_path / "a", config)
    report = api.convert(tmp_path / "a", tmp_path / "b", to="llama2c")
    assert report["result"]["dtype"] == "float32"
    loaded = llama_jax.load(tmp_path / "b")
    assert np.array_equal(loaded.params["layers"]["q"], random_params(config)["layers"]["q"])
    with pytest.raises(InputError, match=r"--dtype bfloat16: .* file supports float32"):
        api.convert(tmp_path / "a", tmp_path / "c", to="llama2c", dtype="bfloat16")


def test_a_tokenizer_bin_can_be_named(tmp_path):
    save(tmp_path / "a", LLAMA2C)
    api.convert(tmp_path / "a", tmp_path / "b.bin", to="llama2c")
    (tmp_path / "tokenizer.bin").rename(tmp_path / "mine.bin")
    assert not api.convert(tmp_path / "b.bin", tmp_path / "c")["tokenizer"]
    api.convert(tmp_path / "b.bin", tmp_path / "d", tokenizer=str(tmp_path / "mine.bin"))
    found = Tokenizer.load(tmp_path / "d")
    assert found.vocabulary == tokenizer().vocabulary


def test_another_models_tokenizer_bin_is_not_replaced(tmp_path):
    save(tmp_path / "a", LLAMA2C)
    api.convert(tmp_path / "a", tmp_path / "b.bin", to="llama2c")
    api.convert(tmp_path / "a", tmp_path / "c.bin", to="llama2c:1")  # has the same tokenizer
    (tmp_path / "tokenizer.bin").write_bytes(b"another's")
    with pytest.raises(
        InputError, match=r"tokenizer.bin already exists and belongs to a different"
    ):
        api.convert(tmp_path / "a", tmp_path / "d.bin", to="llama2c")
    assert (tmp_path / "tokenizer.bin").read_bytes() == b"another's"
    assert not list(tmp_path.glob("d.bin*"))


def test_command_line(tmp_path, capsys):
    save(tmp_path / "a", BASE)
    bad = cli.main(["convert", str(tmp_path / "a"), str(tmp_path / "b"), "--to", "llama2c"])
    assert bad == 2
    err = capsys.readouterr().err
    assert (
        "model.rope_theta=5000.0 cannot be stored for llama2.c, whose programs use 10000.0" in err
    )
    assert len(err.strip().splitlines()) <= 2  # what the source is, then the reason
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a"]
