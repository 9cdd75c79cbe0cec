"""`llama-jax quantize`: the folder it writes, its report, and what it refuses."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llama_jax
from llama_jax import cli
from llama_jax.config import Quantization, plain
from llama_jax.convert.api import open_source
from llama_jax.convert.usage import Usage
from llama_jax.model.llama import apply
from llama_jax.model.quantize import dequantized
from llama_jax.models import open_model
from llama_jax.quantize import REPORT, compare
from tests.convert.models import GROUPED, random_params, save

USAGE = Usage(end_ids=(7,), generation={"temperature": 0.5})
SENTENCE = "{} and {} went to the park with a dog and a ball. "
TEXT = [{"text": SENTENCE.format(i, i + 1) * 4} for i in range(60)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, a text, and the model in int8 and int4 with the reports."""
    folder = tmp_path_factory.mktemp("quantize")
    save(folder / "model", GROUPED, random_params(GROUPED))
    USAGE.write(folder / "model")
    lines = [json.dumps(row) for row in TEXT]
    (folder / "text.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def call(folder):
    def run(*argv, data="@text.jsonl"):
        argv = ["quantize", *argv, *(["--data", data] if data else []), "--batch-size", "8"]
        return cli.main([str(folder / a[1:]) if a.startswith("@") else a for a in argv])

    return run


@pytest.fixture(scope="module")
def small(folder, call):
    assert call("@model", "@int8", "--weights", "int8") == 0
    return llama_jax.load(folder / "int8")


def test_the_folder_is_a_model_like_any_other(folder, small, capsys):
    assert small.config.quant == Quantization(weights="int8", embeddings=True)
    assert plain(small.config).d_model == GROUPED.d_model
    assert small.usage == USAGE
    tokens = jnp.asarray([[1, 5, 9, 12]], jnp.int32)
    cfg = replace(plain(small.config), dtype="float32")
    dense = dequantized(small.params, small.config)
    expected = apply(dense, tokens, config=cfg)
    exact = replace(small.config, dtype="float32")
    np.testing.assert_allclose(
        apply(small.params, tokens, config=exact), expected, rtol=1e-4, atol=1e-4
    )
    assert llama_jax.generate(small, "the dog", max_new_tokens=4, temperature=0.0)
    assert cli.main(["verify", str(folder / "int8")]) == 0
    assert "all digests agree" in capsys.readouterr().out
    source = open_source(folder / "int8")  # as other formats are written from it
    assert source.config.param_dtype == "float32"
    for name, layer in (("q", 1), ("o", 0), ("embed", None), ("attn_norm", 0)):
        whole = dense[name] if layer is None else dense["layers"][name][layer]
        found = source.tensor(name, layer)
        assert found.shape == whole.shape
        np.testing.assert_allclose(found[...], whole, atol=1e-6)
        np.testing.assert_allclose(found[2:5], whole[2:5], atol=1e-6)


def test_keys_and_values_are_rounded_where_asked(folder, small, call, capsys):
    """The report counts it, and the model says it of itself, as `serve` reads it."""
    assert call("@model", "@int8-kv", "--weights", "int8", "--kv", "int8") == 0
    assert "cache           keys and values int8" in capsys.readouterr().out
    both = llama_jax.load(folder / "int8-kv")
    assert both.config.quant.kv == "int8"
    report, weights = (json.loads((folder / f / REPORT).read_text()) for f in ("int8-kv", "int8"))
    assert (report["kv"], weights["kv"]) == ("int8", "model")
    assert report["kl"] > weights["kl"]
    tokens = jnp.asarray([[1, 5, 9, 12]], jnp.int32)
    exact, rounded = (replace(m.config, dtype="float32") for m in (small, both))
    a, b = (np.asarray(apply(small.params, tokens, config=c)) for c in (exact, rounded))
    assert 0 < np.abs(a - b).max() < 0.1


@pytest.mark.slow
def test_int4_is_chosen_for_a_text_and_kept_as_chosen(folder, call, capsys):
    argv = ("@model", "@int4", "--weights", "int4", "--group", "128")
    assert call(*argv, "--calibration", "@text.jsonl", "--seq-len", "24", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report == json.loads((folder / "int4" / REPORT).read_text())
    assert report["weights"] == "int4"
    assert report["calibration"] == str(folder / "text.jsonl")
    model = llama_jax.load(folder / "int4")
    assert model.config.quant == Quantization.of("int4", 128)
    assert model.params["layers"]["q"].shape == (2, 1, 64, 4, 8)  # the group is filled up
    assert cli.main(["verify", str(folder / "int4")]) == 0
    assert llama_jax.generate(model, "the dog", max_new_tokens=4, temperature=0.0)
    # What is trained on it stands on its dense matrices.
    opened = open_model(folder / "int4").dense()
    assert opened.config == plain(model.config)
    found, expected = opened.read(), dequantized(model.params, model.config)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_report_says_what_rounding_cost(folder, small, capsys):
    report = json.loads((folder / "int8" / REPORT).read_text())
    size = report["bytes"]
    assert size["after"] == sum(a.nbytes for a in jax.tree.leaves(small.params))
    assert size["after"] < 0.35 * size["before"]
    assert report["perplexity"]["ratio"] == pytest.approx(1, abs=0.01)
    assert 0 < report["kl"] < 1e-2
    assert 0.8 < report["same_top"] <= 1
    assert report["tokens"] > 400
    assert max(map(max, report["errors"].values())) < 0.01
    capsys.readouterr()


def test_what_is_compared_is_what_the_definitions_say(folder, small):
    """Loss, divergence and agreement in float64, of logits of both models."""
    model = llama_jax.load(folder / "model")
    configs = [replace(m.config, dtype="float32") for m in (model, small)]
    rng = np.random.default_rng(0)
    tokens = jnp.asarray(rng.integers(0, GROUPED.vocab_size, (2, 12)), jnp.int32)
    segments = jnp.asarray([[1] * 12, [1] * 7 + [2] * 4 + [0]], jnp.int32)
    positions = jnp.asarray([range(12), [*range(7), *range(4), 0]], jnp.int32)
    batch = {
        "tokens": tokens, "segment_ids": segments, "positions": positions,
        "loss_mask": jnp.ones((2, 12), jnp.uint8),
    }  # fmt: skip
    found = compare(
        {"before": model.params, "after": small.params}, batch, before=configs[0], after=configs[1]
    )
    places = {"positions": positions, "segment_ids": segments}
    logps = []
    for m, config in zip((model, small), configs, strict=True):
        logits = np.float64(apply(m.params, tokens, config=config, **places))
        logits -= logits.max(axis=-1, keepdims=True)
        logps.append(logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True)))
    where = [(0, t) for t in range(11)] + [(1, t) for t in (0, 1, 2, 3, 4, 5, 7, 8, 9)]
    p, q = (np.array([logp[at] for at in where]) for logp in logps)
    targets = np.array([tokens[row, t + 1] for row, t in where])
    rows = np.arange(len(where))
    expected = {
        "before": -p[rows, targets].mean(),
        "after": -q[rows, targets].mean(),
        "kl": (np.exp(p) * (p - q)).sum(axis=-1).mean(),
        "same_top": (p.argmax(axis=-1) == q.argmax(axis=-1)).mean(),
    }
    assert {name: float(m.count) for name, m in found.items()} == dict.fromkeys(
        expected, len(where)
    )
    for name, value in expected.items():
        assert float(found[name].total / len(where)) == pytest.approx(value, rel=2e-3, abs=1e-7)


@pytest.mark.parametrize(
    ("argv", "data", "said"),
    [
        (("@model", "@int8", "--weights", "int8"), "@text.jsonl", "exists: name a new place"),
        (("@int8", "@new", "--weights", "int4"), "@text.jsonl", "is quantised already"),
        (("@model", "@new", "--weights", "int4", "--group", "64"), "", "choose 32 or 128"),
        (("@model", "@new", "--weights", "int8", "--group", "32"), "", "choose 0"),
        (("@model", "@new", "--weights", "int8", "--calibration", "tales"), "", "is for int4"),
        (("@model", "@none/new", "--weights", "int8"), "", "does not exist: make that folder"),
        (("@nothing", "@new", "--weights", "int8"), "", "nothing"),
        (("@broken", "@new", "--weights", "int8"), "@text.jsonl", "down of layer 1 holds numbers"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(folder, small, call, capsys, argv, data, said):
    if "@broken" in argv:
        params = random_params(GROUPED)
        params["layers"]["down"] = params["layers"]["down"].at[1, 0, 0].set(jnp.inf)
        save(folder / "broken", GROUPED, params)
    assert call(*argv, data=data) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert said in error
    assert not (folder / "new").exists()
    assert not list(folder.glob("*.tmp"))
