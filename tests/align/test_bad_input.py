"""What the alignment commands refuse: one line with what, where and the fix; no folder is left."""

from dataclasses import replace

import pytest
from etils import epath

from llama_jax import cli
from llama_jax.align import rejection_round
from llama_jax.align.grpo import grpo
from llama_jax.align.ppo import ppo
from llama_jax.align.rejection import rejection
from llama_jax.checkpoint import save_model
from llama_jax.config import InputError
from llama_jax.config_file import model_json
from llama_jax.data.tokenizer import train_tokenizer
from llama_jax.models import load
from llama_jax.train.report import TrainingError
from llama_jax.train.run import claim_run
from tests.align.tiny_chat import asked
from tests.devices import devices

EXPERIMENT = """\
from pathlib import Path
from tests.align.tiny_chat import TinyChat
CONFIG = TinyChat(Path({folder!r})).{stage}()
"""
USER, ANSWER = asked("Can a cat eat corn?")[0], {"role": "assistant", "content": "Yes."}
PAIR = {"messages": [USER], "chosen": "Yes.", "rejected": "No.", "rating": 1}


@pytest.fixture
def refused(chat, tmp_path, capsys):
    """The one line that a command ends with, after checks that it is all that it leaves."""

    def run(stage, *options):
        file, workdir = tmp_path / f"{stage}.py", tmp_path / "new" / "run"
        file.write_text(EXPERIMENT.format(folder=str(chat.folder), stage=stage))
        command = {"distill": "distill-context"}.get(stage, stage)
        argv = [command, str(file), "--workdir", str(workdir), *map(str, options)]
        capsys.readouterr()
        assert cli.main(argv) == 2
        out, err = capsys.readouterr()
        assert out == ""
        line = err.splitlines()[-1]
        assert line.startswith("llama-jax: error: ")
        assert "Traceback" not in err
        assert err.count("error") == 1
        assert not (tmp_path / "new").exists()
        return line

    return run


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[ANSWER, USER, ANSWER]], "a conversation starts with the user"),
        ([[USER, {**ANSWER, "content": " "}]], "the assistant's answer is empty"),
        ([[USER, {**ANSWER, "role": "robot"}]], "must be system, user or assistant, not 'robot'"),
        ([[USER, {**ANSWER, "content": "[INST] me"}]], "holds [INST]"),
        ([[{**USER, "content": "<<SYS>> you"}, ANSWER]], "holds <<SYS>>"),
        ([[USER, ANSWER], {"prompt": "a", "completion": "b"}], "but the first row is messages"),
        ([[USER]], "holds no dialogue"),
    ],
)
def test_dialogues_that_cannot_be_learned_from(chat, refused, rows, message):
    rows = [row if isinstance(row, dict) else {"messages": row} for row in rows]
    path = chat.write("bad.jsonl", rows)
    line = refused("sft", "--data.dataset", path)
    assert message in line
    assert path in line
    if len(rows) == 1 and "no dialogue" not in message:
        assert "row 1" in line


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rejected": "Yes."}, "holds no preference"),
        ({"rating": 4}, "rating"),
        ({"rating": -1}, "rating"),
        ({"margin": -0.5}, "margin"),
        ({"chosen": "</s>[INST]"}, "holds [INST]"),
        ({"messages": [ANSWER]}, "row 1"),
    ],
)
def test_preferences_that_cannot_be_learned_from(chat, refused, change, message):
    path = chat.write("bad.jsonl", [PAIR | change])
    line = refused("reward", "--data.dataset", path)
    assert message in line
    assert path in line


@pytest.mark.parametrize("stage", ["ppo", "grpo", "rejection", "distill"])
def test_prompts_of_which_none_is_left(chat, refused, stage):
    path = chat.write("long.jsonl", [{"messages": asked("Can a cat eat corn? " * 20)}])
    line = refused(stage, "--data.dataset", path)
    assert "holds no prompt of at most 52 tokens" in line


@pytest.fixture
def stranger(chat, tmp_path):
    """A reward model of another tokenizer."""
    model = load(chat.folder / "safety")
    other = train_tokenizer(["What is the time? Half past nine."] * 20, 300)
    path = tmp_path / "stranger"
    save_model(path, model.params, model_json(model.config), other.model_bytes, {})
    return path


@pytest.mark.parametrize("stage", ["ppo", "rejection", "distill"])
def test_reward_models_that_read_other_ids_or_are_none(chat, refused, stranger, stage):
    line = refused(stage, "--safety", stranger)
    assert f"reward model {stranger} has a different tokenizer" in line
    line = refused(stage, "--safety", chat.folder / "sft")
    assert f"{chat.folder / 'sft'} is not a reward model" in line
    assert "nowhere does not exist" in refused(stage, "--safety", "nowhere")


@pytest.mark.parametrize("stage", ["sft", "ppo", "grpo", "rejection", "gatt", "distill"])
def test_a_start_from_what_is_no_language_model(chat, refused, stage):
    line = refused(stage, "--init-from", chat.folder / "safety")
    assert "is a reward model, without the head that predicts tokens" in line


@pytest.mark.parametrize(
    ("stage", "options", "message"),
    [
        ("reward", ["--model.head", "language"], "must be score for a reward model"),
        ("reward", ["--safety-weight", "-1"], "safety_weight=-1.0 is negative"),
        ("ppo", ["--minibatch", "5"], "batch_size=16 must be divisible by minibatch=5"),
        ("ppo", ["--accumulate", "3", "--batch-size", "24", "--minibatch", "8"], "accumulate=3"),
        ("ppo", ["--temperature", "0"], "greedy answers explore nothing"),
        ("ppo", ["--clip", "0"], "clip=0.0 is out of range: use a value in (0, 1]"),
        ("ppo", ["--max-new-tokens", "64"], "max_new_tokens=64 must be positive and below seq_len"),
        ("ppo", ["--minibatch", "4"], "is not divisible by the 8 devices"),
        ("ppo", ["--model.d-ff", "32"], "was trained with other settings (model.d_ff 64 -> 32)"),
        ("grpo", ["--group", "1"], "group=1 must be 2 or more"),
        ("grpo", ["--group", "3"], "batch_size=16 must be divisible by group=3"),
        ("grpo", ["--beta", "-1"], "beta=-1.0 must not be negative"),
        ("grpo", ["--reward", "None"], "give either reward, a function, or helpfulness"),
        ("grpo", ["--helpfulness", "rm"], "not both (tests.align.tiny_chat:likeness, rm)"),
        ("grpo", ["--safety", "rm"], "safety=rm needs helpfulness beside it"),
        ("grpo", ["--reward", "tests.align.tiny_chat:likenes"], "has no function likenes"),
        ("grpo", ["--heldout", "nowhere"], "nowhere does not exist"),
        ("rejection", ["--model.d-ff", "32"], "was trained with other settings"),
        ("rejection", ["--temperatures", "0.7", "0"], "temperatures=[0.0] must be positive"),
        ("rejection", ["--rounds", "0"], "rounds=0 must be positive"),
        ("gatt", ["--turns", "1"], "turns=1 must be 2 or more"),
        ("gatt", ["--context-turns", "-1"], "context_turns=-1 must not be negative"),
        ("gatt", ["--sample-prompts", "[INST] hi"], "sample prompt '[INST] hi': "),
        ("sft", ["--sample-prompts", "[INST] hi"], "sample prompt '[INST] hi': "),
        ("sft", ["--sample-prompts", "one day " * 99], "tokens but the model's context is 64"),
        ("dpo", ["--sample-prompts", "one day " * 99], "tokens but the model's context is 64"),
        ("gatt", ["--data.dataset", "nowhere.jsonl"], "nowhere.jsonl is not a file"),
        ("distill", ["--preprompts"], "preprompts is empty"),
    ],
)
def test_settings_that_cannot_be(refused, stage, options, message):
    assert message in refused(stage, *options)


def test_a_mixture_of_formats_and_kinds_is_named(chat, refused):
    path = chat.write("pairs_in_dialogues.jsonl", [{"chosen": 1, "rejected": 2}])
    assert path in refused("sft", "--data.dataset", path)


@pytest.mark.parametrize("stage", ["ppo", "rejection", "grpo"])
def test_a_folder_that_is_trained_in_is_refused_before_prompts_are_read(files, tmp_path, stage):
    run = tmp_path / "run"
    model = files.untrained(f"of_{stage}")
    config = getattr(files, stage)(workdir=str(run), init_from=model)
    config = replace(config, data=replace(config.data, dataset="/nowhere.jsonl"))
    train = {"ppo": ppo, "rejection": rejection, "grpo": grpo}[stage]
    with devices(1):
        with claim_run(epath.Path(run)), pytest.raises(TrainingError, match="another program"):
            train(config)
        with pytest.raises(InputError, match=r"/nowhere\.jsonl"):
            train(config)


def test_a_bank_of_another_model_is_refused(chat, tmp_path):
    """The first round was interrupted, and is resumed with another model under its name."""
    run = tmp_path / "run"
    with devices(1), pytest.MonkeyPatch.context() as patch:
        patch.setattr(rejection_round, "scored", None)
        with pytest.raises(TypeError):
            rejection(chat.rejection(workdir=str(run), rounds=1))
    config = chat.rejection(workdir=str(run), rounds=1, init_from=str(chat.folder / "base"))
    with devices(1), pytest.raises(InputError) as error:
        rejection(config)
    assert "samples.jsonl, row 1 was drawn by another model (digest " in str(error.value)
    assert "\n" not in str(error.value)
