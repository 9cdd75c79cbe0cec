"""Proofs that claim no more than they know: numbers that are not finite, damaged reports, speed."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest

from llama_jax import cli
from llama_jax.config import InputError
from llama_jax.convert import api, proof
from llama_jax.convert.proof import Agreement
from tests.convert.models import BASE, random_params, save, source

STRICT = {"parse_constant": lambda name: pytest.fail(f"{name} is no JSON")}


@pytest.fixture
def broken(tmp_path):
    """A model with three numbers that are not finite."""
    params = random_params(BASE)
    params["layers"]["up"] = params["layers"]["up"].at[1, 2, 3].set(np.inf).at[0, 0, 0].set(np.nan)
    params["norm"] = params["norm"].at[5].set(np.nan)
    return save(tmp_path / "a", BASE, params)


def test_numbers_that_are_not_finite_are_counted_and_said(tmp_path, broken, caplog, capsys):
    report = api.convert(broken, tmp_path / "b")
    assert report["not_finite"] == {"norm": 1, "up": 2}
    assert report["not_identical"] == []
    assert "Numbers that are NaN or infinite: 1 of norm, 2 of up" in report["notes"][-1]
    assert "1 of norm, 2 of up" in caplog.text
    assert report["logits"]["largest_difference"] is None
    assert report["logits"]["top1_agreement"] == 0
    text = api.describe(report)
    assert "not finite, so the models cannot be compared" in text
    assert "100 %" not in text
    stored = json.loads((tmp_path / "b/report.json").read_text(), **STRICT)
    assert stored == json.loads(json.dumps(report, allow_nan=False))
    assert cli.main(["convert", str(broken), str(tmp_path / "c"), "--json"]) == 0
    json.loads(capsys.readouterr().out, **STRICT)


def test_they_are_verified_by_their_digests_alone(tmp_path, broken, capsys):
    api.convert(broken, tmp_path / "b", to="hf")
    found = api.verify(tmp_path / "b")
    assert (found["ok"], found["not_finite"]) == (True, {"norm": 1, "up": 2})
    assert "100 %" not in api.describe_verification(found)
    assert cli.main(["verify", str(tmp_path / "b"), "--json"]) == 0
    json.loads(capsys.readouterr().out, **STRICT)
    file = tmp_path / "b/model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 0x40
    file.write_bytes(data)
    assert not api.verify(tmp_path / "b")["ok"]


def test_agreement_is_of_finite_logits_alone():
    values = np.array([[1.0, 3.0, 2.0], [5.0, 4.0, 0.0], [9.0, 8.0, 7.0]], np.float32)
    tokens = [0, 1, 2]
    assert proof.compare(proof.excerpt(values, tokens), values) == Agreement(0.0, 1.0)
    other = values.copy()
    other[1] = [1.0, 4.0, 0.0]
    found = proof.compare(proof.excerpt(values, tokens), other)
    assert found == Agreement(4.0, pytest.approx(2 / 3))
    other[2, 0] = np.nan  # NumPy takes it for the largest
    assert proof.compare(proof.excerpt(other, tokens), other) == Agreement(
        None, pytest.approx(2 / 3)
    )
    assert proof.compare(proof.excerpt(values, tokens), other).largest_difference is None
    assert proof.compare(proof.excerpt(np.full((3, 3), np.nan), tokens), values).top1 == 0


# ---- Reports


MISSING = object()
DAMAGED = [
    ("digests", 3), ("digests", {"q": 3}), ("result", {"dtype": "int3"}), ("result", []),
    ("logits", None), ("logits.tokens", []), ("logits.tokens", [10**9]), ("logits.tokens", [True]),
    ("logits.tokens", [0] * 300), ("logits.top", [[0]]), ("logits.top", [3] * 16),
    ("logits.top", [[-1] * 8] * 16), ("logits.values", [["x"] * 8] * 16),
    ("logits.values", [[]] * 16), ("logits.largest_difference", "0"), ("logits.finite", [1] * 16),
    ("logits.finite", [True]), ("logits.largest_difference", MISSING), ("digests", MISSING),
]  # fmt: skip


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("converted")
    save(folder / "a", BASE)
    api.convert(folder / "a", folder / "b", to="hf")
    return folder / "b"


@pytest.mark.parametrize(("key", "value"), DAMAGED)
def test_a_damaged_report_is_named(converted, key, value):
    file = converted / "report.json"
    text = file.read_text()
    values = json.loads(text)
    *outer, last = key.split(".")
    place = values[outer[0]] if outer else values
    if value is MISSING:
        del place[last]
    else:
        place[last] = value
    try:
        file.write_text(json.dumps(values))
        with pytest.raises(InputError, match=r"report\.json is damaged: its") as caught:
            api.verify(converted)
    finally:
        file.write_text(text)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("text", ["", "[]", "{", '{"digests": {}}', "[" * 10**5])
def test_a_report_that_is_none_is_named(converted, text):
    file = converted / "report.json"
    kept = file.read_text()
    try:
        file.write_text(text)
        with pytest.raises(InputError, match=r"report\.json"):
            api.verify(converted)
    finally:
        file.write_text(kept)


def test_reports_of_older_versions_are_verified(converted):
    file = converted / "report.json"
    text = file.read_text()
    values = json.loads(text)
    del values["logits"]["finite"], values["not_finite"]
    try:
        file.write_text(json.dumps(values))
        assert api.verify(converted)["ok"]
    finally:
        file.write_text(text)


# ---- Speed


def test_all_layers_share_what_is_compiled():
    def lowered(layers, width):
        """Programs that are made for the logits of a model of a shape that no other test has."""
        config = replace(BASE, num_layers=layers, d_model=width, d_ff=width + 1)
        seen = []

        def listen(event, duration, **_):
            if event == "/jax/core/compile/jaxpr_to_mlir_module_duration":
                seen.append(event)

        jax.monitoring.register_event_duration_secs_listener(listen)
        try:
            proof.logits(source(config), proof.fixed_tokens(config.vocab_size))
        finally:
            jax.monitoring.unregister_event_duration_listener(listen)
        return len(seen)

    lowered(1, 74)  # what no shape decides
    assert lowered(5, 78) == lowered(2, 82) > 0
