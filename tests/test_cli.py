"""The command line: results on stdout, one line for bad input, exit statuses."""

import json
import os
import re
import subprocess
import sys

import pytest

from llama_jax import cli
from llama_jax.data.corpora.tales import story
from llama_jax.pretrain import pretrain as train
from llama_jax.runtime import console
from tests.train.tiny import Tiny


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder of two steps."""
    tiny = Tiny(tmp_path_factory.mktemp("cli"))
    train(tiny.config("--steps", "2", "--eval-every", "0"))
    return tiny.folder / "run"


def call(capsys, *argv):
    """Status, stdout and stderr of one command in this process."""
    status = cli.main(argv)
    out, err = capsys.readouterr()
    return status, out, err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "COMMAND"),
        (["genrate"], "invalid choice: 'genrate' (choose from 'train', 'sft'"),
        (["train"], "needs an experiment file"),
        (["train", "no.py"], "experiment no.py does not exist"),
        (["train", "--steps", "3"], "needs the experiment file first"),
        (["train", "experiments/quickstart.py", "--stepz", "3"], "did you mean --steps?"),
        (
            ["train", "quickstart", "--step", "3"],
            "error: Unrecognized options: --step, 3; did you mean --steps?",
        ),
        (["train", "experiments/quickstart.py", "--steps", "many"], "invalid literal for int()"),
        (
            ["train", "experiments/quickstart.py", "--model.num-kv-heads", "3"],
            "must be divisible by model.num_kv_heads=3",
        ),
        (["generate", "nowhere", "--prompt", "x"], "nowhere"),
        (["generate", "nowhere"], "--prompt"),
        (["generate", "nowhere", "--promt", "x"], "--promt is unknown; did you mean --prompt?"),
        (["generate", "nowhere", "--prompt=--promt"], "nowhere does not exist"),
        (["eval", "nowhere", "--nonsense"], "--nonsense is unknown (see llama-jax eval --help)"),
        (["tokenizer", "train", "--inputs", "x"], "--inputs is unknown; did you mean --input?"),
        (["plan", "--topologi", "v5e-4"], "needs --topology NAME, such as v5e-256, not --topologi"),
        (["eval", "nowhere"], "nowhere does not exist"),
        (["verify", "nowhere"], "nowhere"),
        (["convert", "nowhere", "x"], "nowhere does not exist"),
        (["convert", "tests", "x"], "is in no known format"),
        (["convert", "tests", "x", "--to", "zip"], "--to zip is unknown; choose from native"),
        (
            ["tokenizer", "train", "--input", "gone.txt", "--vocab-size", "500", "--output", "x"],
            "gone.txt",
        ),
    ],
)
def test_bad_input_is_one_line_and_status_2(capsys, argv, message):
    status, out, err = call(capsys, *argv)
    assert status == 2
    assert out == ""
    assert message in err
    assert err.startswith("llama-jax: error: ")
    assert err.count("\n") == 1


def test_help_of_every_command_is_worth_reading(capsys):
    for argv in (["--help"], ["generate", "--help"], ["eval", "--help"], ["verify", "--help"],
                 ["tokenizer", "train", "--help"]):  # fmt: skip
        with pytest.raises(SystemExit) as end:
            cli.main(argv)
        assert end.value.code == 0
        assert "usage: llama-jax" in capsys.readouterr().out


def test_train_help_lists_settings_with_the_values_of_the_experiment(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["train", "experiments/quickstart.py", "--help"])
    out = capsys.readouterr().out
    assert end.value.code == 0
    for option in ("--workdir", "--model.remat", "--mesh.tensor", "--checkpoint.every"):
        assert option in out
    assert "tales" in out


def test_generate_prints_prompt_and_continuation_and_repeats_itself(capsys, run):
    argv = ("generate", str(run), "--prompt", "The", "--temperature", "0", "--max-new-tokens", "8")
    first, second = call(capsys, *argv), call(capsys, *argv)
    assert first == second
    assert first[0] == 0
    assert first[1].startswith("The")
    assert len(first[1]) > len("The\n")
    status, out, _ = call(capsys, *argv, "--json")
    assert status == 0
    assert json.loads(out) == {"prompt": "The", "text": first[1].removesuffix("\n")}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--prompt", "a " * 200], r"context"),
        (["--prompt", "bad \ud800"], r"surrogate"),
        (["--prompt", "a", "--temperature", "-1"], r"temperature"),
        (["--prompt", "a", "--top-p", "2"], r"top.p"),
        (["--prompt", "a", "--max-new-tokens", "-3"], r"max.new.tokens"),
    ],
)
def test_generate_refuses_what_it_cannot_do(capsys, run, argv, message):
    status, out, err = call(capsys, "generate", str(run), *argv)
    assert (status, out) == (2, "")
    assert re.search(message, err)
    assert err.count("\n") == 1


def test_a_run_is_converted_verified_evaluated_and_speaks_alike(capsys, run, tmp_path):
    folder = str(tmp_path / "hf")
    status, out, _ = call(capsys, "convert", str(run), folder, "--to", "hf")
    assert status == 0
    assert "every number as it was sent" in out
    status, out, _ = call(capsys, "verify", folder)
    assert status == 0
    assert "digests agree" in out
    argv = ("--prompt", "The", "--temperature", "0", "--max-new-tokens", "8")
    assert call(capsys, "generate", folder, *argv) == call(capsys, "generate", str(run), *argv)
    (tmp_path / "hf/model.safetensors").write_bytes(b"")
    assert call(capsys, "verify", folder)[0] == 2
    assert call(capsys, "convert", str(run), folder)[0] == 2  # it exists


PROGRAM = """
import sys
from llama_jax import cli
sys.argv[1:] = ["generate", sys.argv[1], "--prompt", "caf\\xe9", "--max-new-tokens", "1"]
status = cli.main()
print(*sys.modules)
sys.exit(status)
"""


def test_a_process_that_generates(run):
    """Text that a terminal cannot show is written as its code; what only training and TPUs need is
    not imported; debug settings of jax are set aside in a line."""
    env = dict(os.environ, PYTHONIOENCODING="ascii", JAX_TRANSFER_GUARD="disallow")
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(run)], env=env, capture_output=True)
    assert done.returncode == 0, done.stderr
    text, _, modules = done.stdout.decode().rstrip().rpartition("\n")
    assert text.startswith("caf\\xe9")
    unwanted = {"orbax", "flax", "optax", "tensorflow_datasets", "grain", "jax.experimental.pallas"}
    assert unwanted.isdisjoint(modules.split())
    assert done.stderr.decode().splitlines() == [
        "JAX_TRANSFER_GUARD=disallow is ignored: arrays have to get to the devices and back"
    ]


def test_commands_that_train_need_jit(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("JAX_DISABLE_JIT", "1")
    made = tmp_path / "made"
    status, _, err = call(capsys, "train", "experiments/quickstart.py", "--workdir", str(made))
    assert status == 2
    assert err.startswith("llama-jax: error: JAX_DISABLE_JIT=1: train compiles its step")
    assert not made.exists()


REFUSED = """
import json, sys
from llama_jax import cli
for argv in json.loads(sys.argv[1]):
    assert cli.main(argv) == 2, argv
    assert not {"jax", "numpy", "etils"} & set(sys.modules), argv
"""


def test_what_is_wrong_is_said_before_libraries_load(tmp_path):
    """A command line that jax would take seconds to start for is refused without it."""
    (tmp_path / "bad.py").write_text("CONFIG = 1\n")
    commands = [
        ["generate", "nowhere", "--prompt", "x"],
        ["generate", str(tmp_path), "--prompt", "x", "--temperature", "nan"],
        ["eval", "nowhere"],
        ["verify", "nowhere"],
        ["convert", "nowhere", "x"],
        ["plan", "--model", "llama2-7b", "--topology", "v5e-3"],
        ["train", str(tmp_path / "bad.py")],
        ["train", "experiments/quickstart.py", "--stepz", "3"],
    ]
    argv = [sys.executable, "-c", REFUSED, json.dumps(commands)]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert done.stderr.count("\n") == len(commands)


def test_the_text_field_can_be_named_as_messages_name_it(capsys, run, tmp_path):
    path = tmp_path / "c.jsonl"
    path.write_text("".join(json.dumps({"content": story(i)}) + "\n" for i in range(200)))
    train = (
        "tokenizer",
        "train",
        "--vocab-size",
        "330",
        "--output",
        str(tmp_path / "t"),
        "--input",
    )
    evaluate = ("eval", str(run), "--data")
    for command in (train, evaluate):
        status, _, err = call(capsys, *command, str(path))
        assert status == 2
        assert "name the right one with --data.text-field" in err
        for option in ("--data.text-field", "--text-field"):
            status, _, err = call(capsys, *command, str(path), option, "content")
            assert status == 0, err


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("train", "interrupted. Run the same command to resume from the last checkpoint"),
        ("plan", "interrupted"),
    ],
)
def test_an_interrupted_command_says_what_is_left(capsys, monkeypatch, command, said):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.cli_train, "run", interrupt)
    monkeypatch.setattr(cli, "_plan", interrupt)
    assert call(capsys, command) == (130, "", f"llama-jax: error: {said}\n")


def test_eval_agrees_with_its_json_and_tells_how_far_it_is(capsys, run, monkeypatch, caplog):
    monkeypatch.setattr(console, "LOG_SECONDS", -1)
    with caplog.at_level("INFO"):
        status, out, _ = call(capsys, "eval", str(run))
    assert status == 0
    told = [m.split(", ")[0].split() for m in caplog.messages if m.startswith("eval: ")]
    batches = len(told)
    assert batches > 0
    assert told == [["eval:", str(n), "of", str(batches), "batches"] for n in range(1, batches + 1)]
    status, text, _ = call(capsys, "eval", str(run), "--json")
    values = json.loads(text)
    assert f"{values['bits_per_byte']:.4f}" in out
    assert values["targets"] > 100


def test_verify_names_what_is_damaged(capsys, run):
    status, out, _ = call(capsys, "verify", str(run))
    assert (status, "all digests agree" in out) == (0, True)
    manifest = run / "checkpoints" / "2" / "manifest.json"
    whole = manifest.read_text()
    manifest.write_text(whole.replace('"step": 2', '"step": 3'))
    try:
        status, out, _ = call(capsys, "verify", str(run), "--json")
        assert status == 1
        assert json.loads(out)["ok"] is False
    finally:
        manifest.write_text(whole)


def test_tokenizer_train_writes_a_tokenizer(capsys, tmp_path):
    text = tmp_path / "stories.txt"
    text.write_text("\n\n".join(story(i) for i in range(60)))
    argv = ("tokenizer", "train", "--input", str(text), "--vocab-size", "400")
    status, out, _ = call(capsys, *argv, "--output", str(tmp_path / "tok"))
    assert status == 0
    assert (tmp_path / "tok" / "tokenizer.model").is_file()
    assert out == f"400 pieces in {tmp_path / 'tok' / 'tokenizer.model'}\n"


def test_importing_the_package_does_not_start_jax():
    code = "import sys, llama_jax; print('jax' in sys.modules, llama_jax.__version__)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.split()[0] == "False"
