"""Launchers, with stubs of gcloud and xpk on the PATH that write down how they were called."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from llama_jax.cli_train import STAGES as COMMANDS
from llama_jax.experiment import load_experiment

ROOT = Path(__file__).parents[1]
LAUNCH = ROOT / "experiments" / "launch"
# Appends its name and arguments to CALLS; what it answers is the next line of ANSWERS/<what>.
STUB = f"""#!{sys.executable}
import json, os, sys
name, args = os.path.basename(sys.argv[0]), sys.argv[1:]
with open(os.environ["CALLS"], "a") as calls:
    calls.write(json.dumps([name, *args]) + "\\n")
text = " ".join(args)
what = "state" if "describe" in args else "look" if "grep -q" in text else None
if what:
    path = os.path.join(os.environ["ANSWERS"], what)
    first, *rest = open(path).read().splitlines()
    open(path, "w").write("\\n".join(rest or [first]))
    if first == "lost":
        sys.exit(255)
    print(first)
"""
ENV = {"PROJECT": "my-project", "ZONE": "us-central1-a", "TYPE": "v5litepod-256", "CLUSTER": "pods"}
TRAIN = ("train", "l7", "experiments/tpu/llama2_7b.py", "--workdir", "gs://b/it's", "--seed", "3")


@pytest.fixture
def launch(tmp_path):
    """launch(script, *args, state=[...], look=[...], **env): status, stdout, stderr, calls."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("gcloud", "xpk", "kubectl", "git"):
        (programs / name).write_text(STUB)
        (programs / name).chmod(0o755)

    def run(script, *args, state=(), look=(), **env):
        calls = tmp_path / "calls"
        calls.write_text("")
        (tmp_path / "state").write_text("\n".join(state))
        (tmp_path / "look").write_text("\n".join(look))
        path = f"{programs}:{os.environ['PATH']}"
        own = {"PATH": path, "CALLS": str(calls), "ANSWERS": str(tmp_path), "POLL": "0"}
        done = subprocess.run(
            [str(LAUNCH / script), *args],
            env={**ENV, **own, **env},
            capture_output=True,
            text=True,
            timeout=60,
        )
        made = [json.loads(line) for line in calls.read_text().splitlines()]
        return done.returncode, done.stdout, done.stderr, made

    return run


def verbs(calls):
    """What was asked of gcloud, in short."""
    short = {"queued-resources": 3, "tpu-vm": 3}
    return [call[short.get(call[3], 0) + 1] for call in calls if call[0] == "gcloud"]


@pytest.mark.parametrize("slices", ["1", "2"])
def test_a_dry_run_prints_what_a_run_does(launch, slices):
    status, dry, _, calls = launch("tpu_vm.sh", "--dry-run", *TRAIN, SLICES=slices)
    assert (status, calls) == (0, [])
    state = ["", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]
    status, said, _, calls = launch(
        "tpu_vm.sh", *TRAIN, state=state, look=["new", "running", "complete"], SLICES=slices
    )
    assert status == 0
    made = [c for c in calls if "describe" not in c and not any("grep -q" in a for a in c)]
    # Each call is printed by the dry run, in this order and quoted so that a shell reads it back.
    words = shlex.split(dry)
    assert words == [word for call in made for word in call]
    assert said.startswith(dry)
    ssh = [c for c in made if "ssh" in c]
    assert len(ssh) == 2 * int(slices)
    assert {a for c in ssh for a in c if a.startswith("--worker")} == {"--worker=all"}
    node = ["--node-id=l7-0"] if slices == "1" else ["--node-count=2", "--node-prefix=l7"]
    assert [a for a in made[0] if a.startswith("--node")] == node


def test_the_command_of_the_user_reaches_the_machine_unharmed(launch, tmp_path):
    """The line that ssh would run, run here: the program gets the very arguments."""
    _, _, _, calls = launch("tpu_vm.sh", *TRAIN, state=["ACTIVE"], look=["new", "complete"])
    start = "--command=cd llama_jax && rm -f status"
    (line,) = [a for call in calls for a in call if a.startswith(start)]
    program = tmp_path / "llama_jax" / ".venv" / "bin" / "llama-jax"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!{sys.executable}\nimport sys\nprint(sys.argv[1:])\nsys.exit(3)\n")
    program.chmod(0o755)
    command = line.removeprefix("--command=") + " wait"
    subprocess.run(["sh", "-c", command], cwd=tmp_path, check=True, timeout=60)
    expected = ["train", *TRAIN[2:]]
    assert (tmp_path / "llama_jax" / "train.log").read_text() == f"{expected}\n"
    assert (tmp_path / "llama_jax" / "status").read_text() == "3\n"


@pytest.mark.parametrize("script", ["tpu_vm.sh", "gke.sh"])
@pytest.mark.parametrize("stage", ["sft", "distill-context"])
def test_every_stage_is_started_as_its_experiment_asks(launch, script, stage):
    status, out, _, _ = launch(
        script, "--dry-run", stage, "l7", "tpu/llama2_7b_sft", TYPE="v5p-128"
    )
    assert status == 0
    assert f"llama-jax {stage} tpu/llama2_7b_sft" in out


def test_what_the_readme_says_to_type_starts_experiments_with_settings_that_they_have(launch):
    text = (LAUNCH / "README.md").read_text().replace("\\\n", " ")
    typed = re.findall(r"^experiments/launch/tpu_vm\.sh (?!follow|delete)(.+)$", text, re.MULTILINE)
    assert [line.split()[1] for line in typed] == ["llama2-7b", "mine"]
    for line in typed:
        status, out, err, _ = launch("tpu_vm.sh", "--dry-run", *shlex.split(line))
        assert status == 0, err
        stage, _, *arguments = shlex.split(line)
        assert " ".join(arguments) in out
        config = load_experiment(arguments, kind=COMMANDS[stage][0])
        assert config.workdir.startswith("gs://my-llama-runs/")


def test_preempted_machines_are_made_again_and_the_run_resumes(launch):
    state = [
        "ACTIVE",
        "ACTIVE",
        "SUSPENDING",
        "SUSPENDED",
        "DELETING",
        "",
        "PROVISIONING",
        "ACTIVE",
    ]
    look = ["running", "lost", "new", "complete"]
    status, _, _, calls = launch("tpu_vm.sh", *TRAIN, state=state, look=look, SPOT="1")
    assert status == 0
    seen = [verb for verb in verbs(calls) if verb != "describe"]
    assert seen == ["ssh", "ssh", "delete", "create", "ssh", "scp", "ssh", "ssh", "ssh"]
    (create,) = [c for c in calls if "create" in c]
    assert "--spot" in create


@pytest.mark.parametrize(
    ("env", "asked"),
    [({}, set()), ({"SPOT": "1"}, {"--spot"}), ({"RESERVED": "1"}, {"--reserved"})],
)
def test_machines_are_on_demand_spot_or_of_a_reservation(launch, env, asked):
    status, _, _, calls = launch(
        "tpu_vm.sh", *TRAIN, state=["", "ACTIVE"], look=["complete"], **env
    )
    assert status == 0
    (create,) = [call for call in calls if "create" in call]
    assert {"--spot", "--reserved"} & set(create) == asked


def test_spot_machines_are_not_those_of_a_reservation(launch):
    status, _, err, calls = launch("tpu_vm.sh", *TRAIN, state=[""], SPOT="1", RESERVED="1")
    assert (status, calls) == (2, [])
    assert "unset one" in err


def test_what_was_refused_is_not_tried_again(launch):
    status, _, err, calls = launch("tpu_vm.sh", *TRAIN, state=["ACTIVE"], look=["refused"])
    assert status == 2
    assert "follow l7 says why" in err
    assert "scp" not in verbs(calls)


@pytest.mark.parametrize(
    ("log", "status", "word"),
    [
        (None, None, "new"),
        ("step 5 of 5: complete", "0", "complete"),
        # Machines that came anew after the last step, before anybody looked.
        ("step 5 of 5: was complete already; a larger --steps takes it further", "0", "complete"),
        ("2 rounds complete", "0", "complete"),  # rejection sampling
        ("step 3 of 5: stopped early; the same command resumes", "0", "ended"),
        ("llama-jax: error: workdir", "2", "refused"),
        ("step 3/5", "75", "ended"),
    ],
)
def test_the_log_says_how_the_run_stands(launch, tmp_path, log, status, word):
    """The line that ssh would run, run here."""
    _, _, _, calls = launch("tpu_vm.sh", *TRAIN, state=["ACTIVE"], look=["complete"])
    (line,) = [a for call in calls for a in call if "grep -q" in a]
    (tmp_path / "llama_jax").mkdir()
    for name, text in (("train.log", log), ("status", status)):
        if text is not None:
            (tmp_path / "llama_jax" / name).write_text(text + "\n")
    command = line.removeprefix("--command=")
    done = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.split() == [word]


def test_gke_makes_one_workload(launch):
    status, dry, _, calls = launch("gke.sh", "--dry-run", *TRAIN, SLICES="2")
    assert (status, calls) == (0, [])
    status, said, _, (call,) = launch("gke.sh", *TRAIN, SLICES="2")
    assert (status, said) == (0, dry)
    assert shlex.split(dry) == call
    assert {"--tpu-type=v5litepod-256", "--num-slices=2", "--cluster=pods"} <= set(call)
    (command,) = [a for a in call if a.startswith("--command=")]
    assert shlex.split(command)[-5:] == [*TRAIN[2:]]


@pytest.mark.parametrize("script", ["tpu_vm.sh", "gke.sh"])
def test_follow_and_delete(launch, script):
    for action in ("follow", "delete"):
        status, dry, _, calls = launch(script, "--dry-run", action, "l7")
        assert (status, calls) == (0, [])
        status, said, _, (call,) = launch(script, action, "l7")
        assert (status, said, shlex.split(dry)) == (0, dry, call)


@pytest.mark.parametrize("script", ["tpu_vm.sh", "gke.sh"])
@pytest.mark.parametrize(
    ("args", "env", "message"),
    [
        ((), {}, "usage: experiments/launch/"),
        (("train", "l7"), {}, "usage: experiments/launch/"),
        (("start", "l7"), {}, "usage: experiments/launch/"),
        (TRAIN, {"PROJECT": ""}, "set PROJECT to a Google Cloud project"),
        (TRAIN, {"TYPE": ""}, "set TYPE, such as v5litepod-256"),
    ],
)
def test_what_is_missing_is_named(launch, script, args, env, message):
    status, _, err, calls = launch(script, *args, state=[""], **env)
    assert status == 2
    assert message in err
    assert [c for c in calls if "describe" not in c] == []


def test_the_skypilot_file_installs_the_lock_and_runs_one_experiment():
    text = (LAUNCH / "sky.yaml").read_text()
    assert "--require-hashes -r requirements/tpu.txt" in text
    assert "exec .venv/bin/llama-jax $STAGE $TRAIN" in text
    named = re.findall(r"experiments/[\w./]+", text)
    assert len(named) == 4
    assert all((ROOT / name).exists() for name in named)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_has_nothing_to_say():
    files = sorted(str(f.relative_to(ROOT)) for f in LAUNCH.glob("*.sh"))
    done = subprocess.run(["shellcheck", "-x", *files], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == ""


def test_sky_runs_the_command_that_the_user_names(tmp_path):
    task = yaml.safe_load((LAUNCH / "sky.yaml").read_text())
    assert set(task) == {"resources", "workdir", "envs", "setup", "run"}
    for script in (task["setup"], task["run"]):
        subprocess.run(["sh", "-n"], input=script, text=True, check=True)
    lock = re.search(r"-r (\S+)", task["setup"])
    assert lock
    assert (ROOT / lock[1]).is_file()
    assert (ROOT / task["envs"]["TRAIN"]).is_file()
    program = tmp_path / ".venv" / "bin" / "llama-jax"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!{sys.executable}\nimport sys\nprint(sys.argv[1:])\nsys.exit(75)\n")
    program.chmod(0o755)
    env = {**os.environ, "STAGE": "sft", "TRAIN": "tpu/llama2_7b_sft --workdir gs://b/r"}
    done = subprocess.run(
        ["sh", "-c", task["run"]], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    expected = ["sft", "tpu/llama2_7b_sft", "--workdir", "gs://b/r"]
    assert (done.returncode, done.stdout) == (75, f"{expected}\n")  # its status tells SkyPilot
