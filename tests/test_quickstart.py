"""What `make quickstart` leaves behind: a model whose stories keep their hero."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import pytest

from experiments import hero_kept
from llama_jax.data.corpora import tales
from llama_jax.data.tokenizer import train_tokenizer
from llama_jax.model.llama import init_params
from llama_jax.model.presets import TINY
from llama_jax.models import Model

ROOT = Path(__file__).parents[1]
FLOOR = 75
VERDICTS = ["[kept]", "[lost]", "[lost]"]


def run(*argv: str) -> str:
    # On the devices that a user has, not on those of the tests.
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, *argv], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_stories_of_the_quickstart_keep_their_hero(optimized, tmp_path):
    folder = ["--workdir", str(tmp_path / "run"), "--data.cache-dir", str(tmp_path / "cache")]
    run("-m", "llama_jax", "train", "experiments/quickstart.py", *folder)
    out = run("experiments/hero_kept.py", str(tmp_path / "run"))
    assert int(re.search(r"hero kept in (\d+) of 100 stories", out)[1]) >= FLOOR


def test_the_share_counts_stories_that_end_and_keep_their_hero(monkeypatch, capsys):
    kept, lost = tales.story(0), "The sun was warm."
    stories = [(kept, True), (kept, False), (lost, True), (kept, True)]
    monkeypatch.setattr(hero_kept, "load", lambda run: run)
    monkeypatch.setattr(hero_kept, "sample_stories", lambda model, count: stories[:count])
    hero_kept.main(["runs/any", "--stories", "4", "--show", "3"])
    out = capsys.readouterr().out
    assert out.endswith("hero kept in 2 of 4 stories (50%)\n")
    assert [line[:6] for line in out.splitlines() if line.startswith("[")] == VERDICTS


def test_stories_begin_as_asked_and_those_cut_by_the_context_have_not_ended():
    tokenizer = train_tokenizer([tales.story(i) for i in range(50)], 320)
    config = replace(TINY, vocab_size=320, max_seq_len=24)
    model = Model(config, init_params(jax.random.key(0), config), tokenizer)
    stories = hero_kept.sample_stories(model, 6)
    begins = [*hero_kept.OPENINGS, *hero_kept.OPENINGS][:6]
    assert all(text.startswith(begin) for (text, _), begin in zip(stories, begins, strict=True))
    assert [text for text, _ in stories[:2]] != [text for text, _ in stories[4:]]  # other seeds
    assert not all(ended for _, ended in stories)
