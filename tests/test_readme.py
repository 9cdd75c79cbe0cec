"""README's Python runs, and its commands name experiments and settings that exist."""

import contextlib
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import jax
import numpy as np
import pytest

from llama_jax.cli import main
from llama_jax.cli_train import STAGES
from llama_jax.convert.formats import FORMATS
from llama_jax.experiment import load_experiment
from llama_jax.model.llama import apply
from llama_jax.models import Model
from llama_jax.ops.norm import rms_norm
from tests.convert.models import GROUPED, random_params, save

TEXT = (Path(__file__).parents[1] / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def names(tmp_path_factory) -> dict:
    """What the snippets define, one after the other, where runs/docs is a model of random weights
    and lm-evaluation-harness keeps what it is asked."""
    asked: list[dict] = []
    harness = {name: ModuleType(name) for name in ("lm_eval", "lm_eval.api", "lm_eval.api.model")}
    harness["lm_eval.api.model"].LM = type("LM", (), {})  # type: ignore[attr-defined]
    harness["lm_eval"].simple_evaluate = lambda **kw: asked.append(kw)  # type: ignore[attr-defined]
    folder = tmp_path_factory.mktemp("readme")
    save(folder / "runs" / "docs", GROUPED, random_params(GROUPED))
    found: dict = {"asked": asked}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, module in harness.items():
            patch.setitem(sys.modules, name, module)
        for block in blocks("python"):
            exec(block, found)
    return found


def test_every_snippet_runs(names):
    assert len(blocks("python")) == 5
    assert isinstance(names["model"], Model)
    assert names["text"].startswith("The")
    assert names["logits"].shape == (*names["tokens"].shape, GROUPED.vocab_size)
    assert names["CONFIG"].steps == 2000
    (request,) = names["asked"]
    assert request["tasks"] == ["lambada_openai"]


def test_the_layer_by_hand_is_that_of_the_model(names):
    """With the last norm and the head, the logits of a model of one layer."""
    model = names["model"]
    one = replace(model.config, num_layers=1)
    params = {**model.params, "layers": jax.tree.map(lambda w: w[:1], model.params["layers"])}
    expected = apply(params, names["tokens"], config=one)
    found = rms_norm(names["x"], params["norm"], eps=one.norm_eps) @ params["head"]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def commands() -> Iterator[list[str]]:
    """The words of every `llama-jax` command, without its name and comments."""
    for block in blocks("sh"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["llama-jax"]:
                yield words[1:]


def test_every_training_command_names_an_experiment_and_settings_that_exist():
    trained = set()
    for stage, *arguments in commands():
        if stage in STAGES and arguments[0] != "EXPERIMENT.py":
            words = [word for word in arguments if word != "--help"]
            assert load_experiment(words, kind=STAGES[stage][0]).stage == stage
            trained.add(stage)
    assert trained >= set(STAGES) - {"dpo"}


def test_every_other_command_and_its_options_exist(capsys):
    asked = set()
    for command, *arguments in commands():
        if command not in STAGES:
            with contextlib.suppress(SystemExit):
                main([command, *arguments, "--help"])
            said = capsys.readouterr().out
            options = {word for word in arguments if word.startswith("--")}
            assert [option for option in options if option not in said] == [], command
            asked.add(command)
    assert asked > {"generate", "eval", "convert", "quantize", "plan", "serve"}


def test_every_format_that_a_command_writes_exists():
    written = {words[words.index("--to") + 1] for words in commands() if "--to" in words}
    assert written >= {"gguf", "gguf:q8_0", "hf", "peft"}
    for to in written - {"peft", "stablehlo", "litert"}:
        name, _, variant = to.partition(":")
        assert variant in ("", *FORMATS[name].variants)
