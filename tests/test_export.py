"""StableHLO and LiteRT programs: the runner, alone, says what `generate` says."""

import importlib.util
import json
import re
import subprocess
import sys
from dataclasses import replace

import jax
import numpy as np
import pytest

import llama_jax
from llama_jax import cli
from llama_jax.checkpoint import save_model
from llama_jax.config_file import model_json
from llama_jax.convert.usage import Usage
from llama_jax.data.corpora import tales
from llama_jax.data.tokenizer import train_tokenizer
from llama_jax.model.llama import init_params
from tests.convert.models import GROUPED

ALONE = (
    "import runpy, sys; sys.argv = ['run.py', {prompt!r}, '40']; left = runpy.run_path('run.py');"
    " assert not any(name.startswith('llama_jax') for name in sys.modules);"
    " assert 'jax' not in left or left['step']._cache_size() == 1"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Wide logits: a choice must not hang on the last bit."""
    place = tmp_path_factory.mktemp("export")
    tokenizer = train_tokenizer([tales.story(i) for i in range(50)], 320)
    config = replace(GROUPED, vocab_size=324, max_seq_len=64)
    params = jax.tree.map(lambda p: 3 * p, init_params(jax.random.key(0), config))
    # No bytes: what is not UTF-8 is shown in another way by sentencepiece.
    params["head"] = params["head"].at[:, 3:259].set(0)
    save_model(place / "model", params, model_json(config), tokenizer.model_bytes, {})
    Usage(end_ids=(300,), add_bos=False).write(place / "model")
    return place


def said_alone(program, prompt):
    done = subprocess.run(
        [sys.executable, "-c", ALONE.format(prompt=prompt)],
        cwd=program, capture_output=True, text=True, timeout=300, check=False,
        env={"PATH": "/usr/bin:/bin", "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.search(r"^[0-9]+[.][0-9] tokens/s$", done.stderr, re.MULTILINE)
    return done.stdout.rstrip("\n")


def missing(*packages):
    return any(importlib.util.find_spec(name) is None for name in packages)


@pytest.mark.parametrize("quantised", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("form", "told"), [("stablehlo", "StableHLO for cpu and tpu"), ("litert", "(LiteRT, ")]
)
def test_the_runner_alone_says_what_generate_says(folder, capsys, form, told, quantised):
    if form == "litert" and missing("litert_converter", "ai_edge_litert"):
        pytest.skip("litert-converter and ai-edge-litert are not installed")
    model = folder / "model"
    if quantised:
        small = folder / f"int8-{form}"
        argv = ["quantize", model, small, "--weights", "int8", "--kv", "int8"]
        assert cli.main([*map(str, argv), "--data", "tales:64"]) == 0
        model = small
    program = folder / f"{form}-{quantised}"
    capsys.readouterr()
    assert cli.main(["convert", str(model), str(program), "--to", form]) == 0
    assert told in capsys.readouterr().out
    assert len((program / "run.py").read_text().splitlines()) <= 30
    facts = json.loads((program / "program.json").read_text())
    assert facts["pieces"] == 320  # and the rows without a piece are never drawn
    assert (facts["begin"], facts["ends"]) == ([], [2, 300])
    loaded = llama_jax.load(str(model))
    for prompt in ("Once upon a time", ""):  # of nothing, BOS is what there is to read
        expected = llama_jax.generate(loaded, prompt, max_new_tokens=40, temperature=0.0)
        assert said_alone(program, prompt) == expected


@pytest.mark.parametrize("form", ["stablehlo", "litert"])
@pytest.mark.parametrize("quantised", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_table_that_is_read_twice_is_written_once(folder, tmp_path, form, quantised):
    """Of tied weights the head is the embedding; files are no larger than what is trained."""
    if form == "litert" and missing("litert_converter", "ai_edge_litert"):
        pytest.skip("litert-converter and ai-edge-litert are not installed")
    tokenizer = llama_jax.load(str(folder / "model")).tokenizer
    config = replace(GROUPED, vocab_size=2000, max_seq_len=64, tie_embeddings=True)
    params = jax.tree.map(lambda p: 3 * p, init_params(jax.random.key(0), config))
    params["embed"] = params["embed"].at[3:259].set(0)
    model, program = tmp_path / "model", tmp_path / "program"
    save_model(model, params, model_json(config), tokenizer.model_bytes, {})
    if quantised:
        argv = ["quantize", model, tmp_path / "int8", "--weights", "int8", "--data", "tales:64"]
        assert cli.main([*map(str, argv)]) == 0
        model = tmp_path / "int8"
    assert cli.main(["convert", str(model), str(program), "--to", form]) == 0
    weights = llama_jax.load(str(model))
    expected = llama_jax.generate(weights, "Once upon", max_new_tokens=40, temperature=0.0)
    assert said_alone(program, "Once upon") == expected
    trained = sum(leaf.nbytes for leaf in jax.tree.leaves(weights.params))
    table = config.vocab_size * config.d_model * (1 if quantised else 4)
    name = "model.tflite" if form == "litert" else "weights.npz"
    if form == "litert" and quantised:
        return  # the converter turns int8 matrices as small as these into float32
    assert trained < (program / name).stat().st_size < trained + 0.9 * table


def test_the_bytecode_is_small_and_the_weights_are_those_of_the_model(folder):
    program = folder / "bfloat16"
    argv = ["convert", str(folder / "model"), str(program), "--to", "stablehlo"]
    assert cli.main([*argv, "--dtype", "bfloat16"]) == 0
    stored = np.load(program / "weights.npz")
    facts = json.loads((program / "program.json").read_text())
    total = sum(stored[name].nbytes for name in stored.files)
    assert (program / "step.stablehlo").stat().st_size < total  # the weights are not in it
    params = llama_jax.load(str(folder / "model")).params
    halves = [np.asarray(stored[name].view(kind)) for name, kind in facts["weights"]]
    assert {array.dtype.name for array in halves} == {"bfloat16", "float32"}  # norms stay
    q = np.asarray(params["layers"]["q"][0])
    assert any(
        array.shape == q.shape and np.array_equal(array, q.astype(array.dtype)) for array in halves
    )


def test_without_the_converter_its_packages_are_named(folder, capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "litert_converter", None)
    argv = ["convert", str(folder / "model"), str(tmp_path / "x"), "--to", "litert"]
    assert cli.main(argv) == 2
    assert "pip install --no-deps litert-converter ai-edge-litert" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_a_model_too_large_for_one_file_is_refused(folder, capsys, monkeypatch, tmp_path):
    from llama_jax import export_litert

    if missing("litert_converter"):
        pytest.skip("litert-converter is not installed")
    monkeypatch.setattr(export_litert, "LARGEST", 1000)
    argv = ["convert", str(folder / "model"), str(tmp_path / "x"), "--to", "litert"]
    assert cli.main(argv) == 2
    assert "a .tflite file holds less than 1,000" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_what_cannot_be_is_refused_in_one_line(folder, capsys, tmp_path):
    (tmp_path / "there").mkdir()
    model = str(folder / "model")
    assert cli.main(["convert", model, str(tmp_path / "there"), "--to", "stablehlo"]) == 2
    assert "there exists: name a new folder" in capsys.readouterr().err
    argv = ["convert", model, str(tmp_path / "half"), "--to", "stablehlo", "--dtype", "float16"]
    assert cli.main(argv) == 2
    assert "float32 or bfloat16" in capsys.readouterr().err
    argv = ["convert", model, str(tmp_path / "half"), "--to", "litert", "--dtype", "bfloat16"]
    assert cli.main(argv) == 2
    assert "--to litert supports --dtype float32, and" in capsys.readouterr().err
    config = replace(GROUPED, head="score")
    params = init_params(jax.random.key(0), config)
    save_model(tmp_path / "reward", params, model_json(config), b"", {})
    assert cli.main(["convert", str(tmp_path / "reward"), str(tmp_path / "x"), "--to",
                     "stablehlo"]) == 2  # fmt: skip
    assert not (tmp_path / "x").exists()
