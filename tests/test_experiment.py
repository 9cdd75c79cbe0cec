"""Experiments found by name, listed, begun; where an experiment finds its parents."""

import json
import re
import sys
from collections import Counter
from pathlib import Path

import pytest

from experiments.chat import run
from llama_jax import cli, experiment
from llama_jax.config import InputError
from llama_jax.config_align import DistillConfig
from llama_jax.data.record_sources import resolve_records
from llama_jax.experiment import find, load_experiment, shipped, shipped_files

ROOT = Path(__file__).parents[1]
CHILD = "from dataclasses import replace\nfrom experiments.{} import CONFIG\n"


def refusal(function, *args):
    with pytest.raises(InputError) as error:
        function(*args)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("named", "file"),
    [
        ("quickstart", "quickstart.py"),
        ("quickstart.py", "quickstart.py"),
        ("experiments/chat/sft.py", "chat/sft.py"),
        ("tpu/llama2_7b", "tpu/llama2_7b.py"),
    ],
)
def test_the_projects_experiments_are_found_by_name(named, file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Path(find(named)) == ROOT / "experiments" / file


def test_a_file_comes_before_a_name_and_a_name_before_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("quickstart").mkdir()
    assert Path(find("quickstart")) == ROOT / "experiments/quickstart.py"
    Path("quickstart.py").write_text("CONFIG = 1")
    assert find("quickstart.py") == "quickstart.py"


def test_an_experiment_that_is_not_there_names_the_nearest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert refusal(find, "quikstart").endswith("quikstart does not exist; did you mean quickstart?")
    assert "llama-jax experiments lists" in refusal(find, "zzz")
    assert "is not a file" in refusal(find, str(tmp_path))


def test_every_experiment_says_what_it_does_where_and_how():
    found = shipped()
    settings = [p for p in (ROOT / "experiments").rglob("*.py") if "\nCONFIG = " in p.read_text()]
    assert {e.path for e in found} == set(settings)
    for e in found:
        assert f"llama-jax {e.command} " in e.path.read_text(), e.name
        assert e.promise.endswith("."), e.name
        assert e.hardware, e.name
        assert "  " not in e.promise + e.hardware + e.result, e.name
    by_name = {e.name: e for e in found}
    assert by_name["tpu/llama2_7b_ppo"].command == "ppo"
    assert by_name["tpu/llama2_7b_ppo"].hardware.startswith("v5e-64")
    assert by_name["tpu/llama2_7b_ppo"].result.startswith("15.6 of 15.8 GiB")
    assert by_name["quickstart"].result.endswith("90 of 100 stories")


HELPERS = {"turns.py", "beside_trl/case.py", "beside_trl/ours.py", "beside_trl/theirs.py"}
"""Files that nobody runs by themselves."""


def test_the_table_of_experiments_has_them_all():
    folder = ROOT / "experiments"
    linked = set(re.findall(r"\]\(([^)]+)\)", (folder / "README.md").read_text()))
    assert [link for link in linked if not (folder / link).exists()] == []
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*.py")}
    stages = {f"chat/{name}.py" for _, name, _ in run.STAGES}  # the row of chat/run.py
    assert files - linked == HELPERS | stages & files


def test_context_distillation_asks_what_make_chat_leaves():
    config = load_experiment(["chat/distill"], kind=DistillConfig)
    there = {str(run.RUN / name) for _, name, _ in run.STAGES}
    assert {config.init_from, config.safety} <= there
    assert config.workdir not in there
    ((source, _),) = resolve_records(config.data.dataset, "prompt")
    chunk, *_ = source.chunks("train")
    asked = [record.messages for _, record in source.records("train", chunk, Counter())]
    assert asked
    assert all([m["role"] for m in messages] == ["user"] for messages in asked), "no preprompt yet"


def test_the_list_and_one_of_it(capsys):
    assert cli.main(["experiments", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["experiments"]
    assert {e["name"] for e in listed} == set(shipped_files())
    assert cli.main(["experiments"]) == 0
    said = capsys.readouterr().out
    assert "llama-jax train quickstart\n" in said
    assert "llama-jax sft chat/sft\n" in said
    assert said.count("hardware: ") == len(listed)
    assert cli.main(["experiments", "chat/sft"]) == 0
    assert capsys.readouterr().out == (ROOT / "experiments/chat/sft.py").read_text()


def test_a_new_experiment_is_the_template_and_overwrites_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["new", "mine"]) == 0
    assert "llama-jax train mine/experiment.py --workdir mine/runs/first" in capsys.readouterr().out
    assert load_experiment(["mine/experiment.py", "--steps", "7"]).steps == 7
    assert {path.name for path in Path("mine").iterdir()} == {"experiment.py", ".gitignore"}
    Path("mine/experiment.py").write_text("mine")
    Path("file").write_text("")
    for folder, message in {
        "mine": "mine/experiment.py exists already",
        "file": "file is a file",
        "gs://b/x": "gs://b/x: an experiment is a file on this machine",
    }.items():
        assert cli.main(["new", folder]) == 2
        assert message in capsys.readouterr().err
    assert Path("mine/experiment.py").read_text() == "mine"
    Path("begun").mkdir()
    Path("begun/.gitignore").write_text("own\n")
    assert cli.main(["new", "begun"]) == 0
    assert Path("begun/.gitignore").read_text() == "own\n"


def test_an_experiment_finds_its_parent_from_any_folder(tmp_path, monkeypatch):
    """In a folder `experiments` beside or above it, or with the project; the search path stays as
    it was."""
    (tmp_path / "own/experiments").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    before = list(sys.path)
    mine = tmp_path / "elsewhere/mine.py"
    mine.write_text(CHILD.format("quickstart") + "CONFIG = replace(CONFIG, steps=2)\n")
    assert load_experiment([str(mine)]).steps == 2
    assert sys.path == before
    monkeypatch.delitem(sys.modules, "experiments", raising=False)
    monkeypatch.delitem(sys.modules, "experiments.quickstart", raising=False)
    monkeypatch.setattr(experiment, "project", lambda: tmp_path / "nowhere")
    monkeypatch.setattr(sys, "path", [p for p in sys.path if "site-packages" in p or "lib" in p])
    monkeypatch.setattr(sys, "meta_path", [f for f in sys.meta_path if "ditable" not in repr(f)])
    assert "No module named 'experiments'" in refusal(load_experiment, [str(mine)])
    (tmp_path / "own/experiments/parent.py").write_text(
        CHILD.format("quickstart")
        .replace("experiments.quickstart", "llama_jax.config")
        .replace("CONFIG", "TrainConfig")
        + (ROOT / "experiments/quickstart.py").read_text().partition('"""\n\n')[2]
    )
    nested = tmp_path / "own/experiments/child.py"
    nested.write_text(CHILD.format("parent"))
    assert load_experiment([str(nested)]).steps == 2300


def test_an_installed_package_has_its_own_copy(tmp_path, monkeypatch):
    inside = tmp_path / "site/llama_jax/_project/experiments"
    inside.mkdir(parents=True)
    (inside / "only.py").write_text('"""A promise.\n\nHardware  any\n"""\nCONFIG = 1\n')
    (inside / "helper.py").write_text('"""No settings: CONFIG is of others."""\n')
    monkeypatch.setattr(experiment, "__file__", str(tmp_path / "site/llama_jax/experiment.py"))
    assert experiment.project() == inside.parent
    assert [tuple(e) for e in shipped()] == [
        ("only", inside / "only.py", "train", "A promise.", "any", "")
    ]
