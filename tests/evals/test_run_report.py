"""The page at the end of a pretraining run: whole, escaped, alone, and true."""

import re
import shutil

import numpy as np
import pytest

from llama_jax import cli
from llama_jax.config import InputError
from llama_jax.config_file import model_json
from llama_jax.evals.run_report import _comes_back, write_report
from llama_jax.infer.api import generate
from llama_jax.model.presets import TINY
from llama_jax.models import load
from llama_jax.pretrain import pretrain
from llama_jax.runtime.console import own_command
from tests.devices import devices
from tests.train.tiny import Tiny

PROMPTS = ("Once upon a", "One <b>day")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of four steps, with samples at two of them."""
    tiny = Tiny(tmp_path_factory.mktemp("report"))
    with devices(1):
        pretrain(tiny.config("--steps", "4", "--eval-every", "2", "--sample-prompts", *PROMPTS))
    return tiny.folder / "run"


def test_the_page_shows_the_run_and_stands_alone(run, capsys):
    assert cli.main(["report", str(run)]) == 0
    assert capsys.readouterr().out == f"report   {run / 'report.html'} (open it in a browser)\n"
    page = (run / "report.html").read_text()
    assert not re.search(r"(?i)https?://|src=|<script|<link|@import|url\(", page)
    assert "<b>day" not in page
    assert page.count("One &lt;b&gt;day") >= 3
    assert re.findall(r"<div class=card><h3>((?:before|after \d).*?)</h3>", page) == [
        "before the first step", "after 2 steps", "after 4 steps",
    ]  # fmt: skip
    linked = re.findall(r"href='([^']+)'", page)
    assert {"checkpoints", "config.json", "metrics.jsonl", "samples"} <= set(linked)
    assert all((run / name).exists() for name in linked)
    assert "for 4 steps of 512 tokens: 2,048 tokens in all" in page
    assert f"{own_command()} serve {run}" in page
    # One polyline goes through the losses of the steps, one through those of the evaluations.
    assert [len(p.split()) for p in re.findall(r'points="([^"]+)"', page)] == [4, 2]
    model = load(run)
    first = generate(model, PROMPTS[0], max_new_tokens=128, temperature=0.0)
    assert first.removeprefix(PROMPTS[0])[:8] in page


def test_shares_are_those_of_the_softmax(run):
    """Each card lists the most probable tokens, most probable first."""
    write_report(str(run))
    cards = (run / "report.html").read_text().partition("What it expects next")[2]
    first = [float(s) for s in re.findall(r"class=number>([\d.]+) %", cards)[:6]]
    assert first == sorted(first, reverse=True)
    assert 100 / 400 < first[0] < 100


def test_without_samples_the_last_moment_is_sampled_anew(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("samples", "report.html"))
    page = write_report(str(copy)).read_text()
    assert "before the first step" in page
    assert "after 4 steps" in page
    assert "after 2 steps" not in page


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (lambda: model_json(TINY), "is a model folder: a report needs a run folder"),
    ],
)
def test_what_has_no_report_is_refused(tmp_path, config, message):
    (tmp_path / "config.json").write_text(config())
    with pytest.raises(InputError, match=message):
        write_report(str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_a_word_comes_back_where_it_was_a_surprise_at_first():
    ids = [1, 5, 6, 7, 6, 5]
    log_p = np.log(np.full((6, 8), 0.1))
    log_p[0, 5], log_p[4, 5] = np.log(0.05), np.log(0.5)  # a gain of log 10
    log_p[1, 6], log_p[3, 6] = np.log(0.05), np.log(0.4)  # of log 8
    assert _comes_back(ids, log_p, range(2, 5)) == 4
    assert _comes_back(ids, log_p, range(2, 4)) == 3
    assert _comes_back(ids, log_p, range(2, 3)) is None
