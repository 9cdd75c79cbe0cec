"""The table of edge formats: what it counts, what it leaves out, and a row of it."""

import json
from dataclasses import replace

import jax
import pytest

from experiments import edge_formats
from llama_jax.checkpoint import save_model
from llama_jax.config_file import model_json
from llama_jax.model.llama import init_params
from tests.convert.models import GROUPED, tokenizer


def test_tokens_count_to_the_first_that_differs():
    ids = tokenizer().encode("the dog and the ball", bos=True)
    said = tokenizer().decode(ids)
    assert edge_formats.agreeing(said, ids, tokenizer()) == len(ids)
    assert edge_formats.agreeing(said + " more", ids, tokenizer()) == len(ids)
    before = tokenizer().decode(ids[:-1])
    assert edge_formats.agreeing(before + "?", ids, tokenizer()) == len(ids) - 1
    assert edge_formats.agreeing("", ids, tokenizer()) == 1  # BOS says nothing


def test_what_cannot_run_has_a_reason(tmp_path):
    form = edge_formats.FORMATS["llama2.c int8"]
    assert edge_formats.missing(form, None) == "runq.c not named (--llama2c)"
    assert edge_formats.missing(form, tmp_path) == f"no runq.c in {tmp_path}"
    needs = form._replace(needs=("json", "no_such_package"))
    assert edge_formats.missing(needs, None) == "no_such_package not installed"
    assert not edge_formats.missing(form._replace(program="run.py"), None)


@pytest.mark.slow
def test_a_row_says_that_the_text_is_ours(tmp_path, capsys):
    config = replace(GROUPED, max_seq_len=64)
    params = jax.tree.map(lambda w: 3 * w, init_params(jax.random.key(0), config))
    params["head"] = params["head"].at[:, 2:259].set(0)  # neither ends nor bytes
    model = tmp_path / "model"
    save_model(model, params, model_json(config), tokenizer().model_bytes, {})
    options = ["--tokens", "20", "--prompts", "the dog", "--only", "StableHLO float32", "--json"]
    edge_formats.main([str(model), *options])
    own, small, row = map(json.loads, capsys.readouterr().out.splitlines())
    assert own["bytes"] == sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    assert small["bytes"] < 0.35 * own["bytes"]
    assert row["format"] == "StableHLO float32"
    assert (row["same"], row["of"], row["equal"]) == (20, 20, True)
    assert row["bytes"] > own["bytes"]
    assert row["tokens_per_second"] > 0
