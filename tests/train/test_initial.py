"""What a run may start from: weights in any format, settings and tokenizers that belong to them."""

import json
import re
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from llama_jax.checkpoint import save_model
from llama_jax.cli import main
from llama_jax.config import (
    AdaptedModel,
    InputError,
    LoraConfig,
    MeshConfig,
    OptimizerConfig,
)
from llama_jax.config_file import model_json, read_config
from llama_jax.convert.api import convert
from llama_jax.convert.usage import Usage
from llama_jax.data.tokenizer import Tokenizer
from llama_jax.model.llama import init_params
from llama_jax.model.presets import TINY, extend_context
from llama_jax.models import load
from llama_jax.parallel.mesh import make_mesh
from llama_jax.pretrain import pretrain as train
from llama_jax.train.initial import check_source, open_source, source_params
from llama_jax.train.next_token import NextToken
from llama_jax.train.optimizer import make_optimizer
from llama_jax.train.state import abstract_state, sharded_init, trained_table, with_updates
from tests.train.tiny import facts

QUICK = ("--steps", "1", "--eval-every", "0")


@pytest.fixture(scope="module")
def base(tiny, tmp_path_factory):
    """A run of one step."""
    run = tmp_path_factory.mktemp("base") / "run"
    train(tiny.config("--workdir", str(run), *QUICK))
    return run


def saved(folder, base, dtype="float32", **changes):
    """A model folder with the base's tokenizer and fresh weights in a type."""
    config = replace(read_config(base)[0], **{"param_dtype": dtype, **changes})
    params = jax.tree.map(lambda a: a.astype(dtype), init_params(jax.random.key(3), config))
    tokenizer = (base / "tokenizer.model").read_bytes()
    save_model(folder, params, model_json(config), tokenizer, {})
    return folder


@pytest.mark.parametrize("dtype", [pytest.param("float16", marks=pytest.mark.slow), "bfloat16"])
def test_narrow_weights_are_cast_and_it_is_said(tiny, base, tmp_path, caplog, dtype):
    model = saved(tmp_path / "half", base, dtype)
    usage = Usage(end_ids=(5,), chat_template="theirs", generation={"top_p": 0.9})
    usage.write(model)
    run = tmp_path / "run"
    with caplog.at_level("INFO"):
        train(tiny.config("--workdir", str(run), "--init-from", str(model), *QUICK))
    assert f"weights cast from {dtype} to float32" in caplog.text
    trained, before = load(run), load(model)
    assert trained.usage == usage
    assert trained.params["embed"].dtype == jnp.float32
    # One step of a learning rate of 0.005 at most is all that lies between them.
    for a, b in zip(jax.tree.leaves(trained.params), jax.tree.leaves(before.params), strict=True):
        assert float(jnp.max(jnp.abs(a - b.astype(jnp.float32)))) < 0.02


def test_a_folder_of_another_program_needs_no_converting(tiny, base, tmp_path):
    convert(str(base), str(tmp_path / "hf"), to="hf")
    started = {}
    for name, source in (("hf", tmp_path / "hf"), ("own", base)):
        run = tmp_path / f"from-{name}"
        train(tiny.config("--workdir", str(run), "--init-from", str(source), *QUICK))
        started[name] = facts(run)
    assert started["hf"] == started["own"]


def test_the_command_for_ones_own_text_on_a_published_model(
    base, tmp_path, monkeypatch, capsys, caplog
):
    """README's command, but for the sizes: a float16 folder and a file of JSON lines."""
    monkeypatch.chdir(tmp_path)
    convert(str(base), "Llama-2-7b-hf", to="hf", dtype="float16")
    lines = [json.dumps({"text": f"On day {i} the ship came into the harbour."}) for i in range(60)]
    (tmp_path / "my.jsonl").write_text("\n".join(lines))
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    (command,) = re.findall(r"^llama-jax (train tpu/llama2_7b_continued .*)$", readme, re.MULTILINE)
    tiny = (
        "--init-from-config True --steps 2 --batch-size 8 --seq-len 64 --eval-every 0 "
        "--data.workers 1 --data.cache-dir cache --model.remat none"
    )
    argv = command.replace("gs://BUCKET/run", "run").split() + tiny.split()
    with caplog.at_level("INFO"):
        assert main(argv) == 0
    assert "2 steps read my " in caplog.text
    trained, before = load("run"), load("Llama-2-7b-hf")
    assert before.params["embed"].dtype == jnp.float16
    assert trained.params["embed"].dtype == jnp.float32
    assert trained.tokenizer.fingerprint == before.tokenizer.fingerprint
    assert "step 2 of 2: complete" in capsys.readouterr().out


def test_settings_that_change_the_function_are_refused_before_data_is_read(tiny, base, tmp_path):
    model = saved(tmp_path / "other", base, rope_theta=1e6, norm_eps=1e-6)
    run = tmp_path / "run"
    options = ("--workdir", str(run), "--init-from", str(model), *QUICK)
    with pytest.raises(InputError, match=r"norm_eps 1e-06 -> 1e-05, model.rope_theta 1000000.0 ->"):
        train(tiny.config(*options, "--data.dataset", "/nowhere/at/all.jsonl"))
    assert not run.exists()
    train(tiny.config(*options, "--init-from-config", "True"))
    assert read_config(run)[0].rope_theta == 1e6
    # The model is not needed any more, nor is its configuration.
    (model / "config.json").rename(model / "gone.json")
    longer = tiny.config(*options, "--init-from-config", "True", "--steps", "2")
    assert train(longer).resumed_from == 1


@pytest.mark.parametrize("tied", [False, True])
def test_tied_and_untied_weights_are_not_taken_for_each_other(tiny, base, tmp_path, tied):
    model = saved(tmp_path / "other", base, tie_embeddings=not tied)
    options = ("--workdir", str(tmp_path / "run"), "--init-from", str(model), *QUICK)
    options += ("--model.tie-embeddings", str(tied), "--data.dataset", "/nowhere/at/all.jsonl")
    with pytest.raises(InputError, match=rf"model.tie_embeddings {not tied} -> {tied}\)"):
        train(tiny.config(*options))
    assert not (tmp_path / "run").exists()


def test_what_is_no_model_leaves_no_folder(tiny, tmp_path):
    run = tmp_path / "deep" / "run"
    with pytest.raises(InputError, match="nowhere"):
        train(tiny.config("--workdir", str(run), "--init-from", str(tmp_path / "nowhere"), *QUICK))
    with pytest.raises(InputError, match="neither a corpus nor an existing file"):
        train(tiny.config("--workdir", str(run), "--data.dataset", "nothing.jsonl", *QUICK))
    assert not (tmp_path / "deep").exists()


def test_another_tokenizer_is_refused(tiny, base, tmp_path):
    other = tmp_path / "other.model"
    from llama_jax.data.tokenizer import train_tokenizer

    train_tokenizer(["a small text about nothing at all"], 276).save(other)
    with pytest.raises(InputError, match=r"is not the tokenizer of init_from .*leave --data.token"):
        train(
            tiny.config("--workdir", str(tmp_path / "run"), "--init-from", str(base),
                        "--data.tokenizer", str(other), *QUICK)
        )  # fmt: skip
    assert not (tmp_path / "run").exists()
    same = tmp_path / "same.model"
    Tokenizer.load(base).save(same)
    train(
        tiny.config("--workdir", str(tmp_path / "run"), "--init-from", str(base),
                    "--data.tokenizer", str(same), *QUICK)
    )  # fmt: skip


def test_a_context_may_be_extended_and_nothing_else_about_rotation():
    longer = extend_context(TINY, 4 * TINY.max_seq_len)
    check_source(longer, TINY, "here")
    with pytest.raises(InputError, match=r"model.rope_scaling 'none' -> 'yarn'"):
        check_source(longer, replace(TINY, max_seq_len=32), "here")
    with pytest.raises(InputError, match=r"model.rope_factor 4.0 -> 1.0"):
        check_source(TINY, longer, "here")


def test_a_reward_model_takes_all_but_the_head(tiny, base, caplog):
    config = tiny.config("--init-from", str(base))
    scorer = replace(config.model, head="score")
    _, source = open_source(replace(config, model=scorer), epath.Path("unused"), resumes=False)
    fresh = init_params(jax.random.key(0), scorer)
    with caplog.at_level("INFO"):
        params = source_params(source, fresh, scorer)
    assert "head left out, score, score_bias start fresh" in caplog.text
    assert params.keys() == fresh.keys()
    np.testing.assert_array_equal(params["score"], fresh["score"])
    np.testing.assert_array_equal(params["embed"], source.read()["embed"])
    with pytest.raises(InputError, match="is a reward model, without the head"):
        check_source(config.model, scorer, "there")


def test_only_what_the_source_lacks_is_made_anew():
    """A device that holds the source's weights has no room for random ones of the same size."""
    objective = NextToken(AdaptedModel.of(TINY, LoraConfig(rank=2, targets=("q",))))
    tx = make_optimizer(OptimizerConfig(learning_rate=1e-3), trained_table(objective), 1)
    abstract = abstract_state(objective, tx, make_mesh(MeshConfig()))
    fresh = sharded_init(0, objective, tx, abstract)
    base = init_params(jax.random.key(1), TINY)
    given = with_updates(abstract.params, base)
    state = sharded_init(0, objective, tx, abstract, given)
    assert state.params["embed"] is base["embed"]
    assert state.params["layers"]["q"] is base["layers"]["q"]
    for name in ("q_a", "q_b"):
        np.testing.assert_array_equal(state.params["layers"][name], fresh.params["layers"][name])
    jax.tree.map(np.testing.assert_array_equal, state.opt_state, fresh.opt_state)


def test_fewer_steps_than_were_made_change_nothing(tiny, tmp_path):
    run = tmp_path / "run"
    workdir = ("--workdir", str(run), "--eval-every", "0")
    train(tiny.config(*workdir, "--steps", "3"))
    before = (run / "config.json").read_bytes()
    with pytest.raises(InputError, match="has made 3 steps already, more than --steps 2"):
        train(tiny.config(*workdir, "--steps", "2"))
    assert (run / "config.json").read_bytes() == before
    assert json.loads(before)["steps"] == 3


def test_a_sample_prompt_that_does_not_fit_is_refused_first(tiny, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(InputError, match=r"sample prompt .* tokens but the model's context is 64"):
        train(tiny.config("--workdir", str(run), "--sample-prompts", "one day " * 99, *QUICK))
    assert not run.exists()
