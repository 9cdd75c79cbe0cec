"""The terminal conversation: commands, pipes, interruptions, with a random model."""

import io
import json
import subprocess
import sys
from dataclasses import replace

import jax
import pytest

import llama_jax
from llama_jax.chat_terminal import Chat, Settings, run
from llama_jax.checkpoint import save_model
from llama_jax.config import InputError
from llama_jax.config_file import model_json
from llama_jax.data.corpora import tales
from llama_jax.data.tokenizer import train_tokenizer
from llama_jax.model.llama import init_params
from llama_jax.model.presets import TINY

PARAMS = llama_jax.SamplingParams(max_new_tokens=6)


@pytest.fixture(scope="module")
def model():
    tokenizer = train_tokenizer([tales.story(i) for i in range(50)], 320)
    config = replace(TINY, vocab_size=320, max_seq_len=64)
    return llama_jax.Model(config, init_params(jax.random.key(0), config), tokenizer)


def session(model, **settings):
    out, log = io.StringIO(), io.StringIO()
    return Chat(model, Settings(PARAMS, **settings), out, log), out, log


def test_turns_are_remembered_saved_and_forgotten(model, tmp_path):
    chat, out, log = session(model, system="Be kind.")
    assert chat.turn("Hi")
    assert chat.turn("And?")
    (first, a), (second, b) = chat.conversation.turns
    assert (first, second) == ("Hi", "And?")
    assert out.getvalue() == f"{a}\n{b}\n"
    path = tmp_path / "talk.jsonl"
    assert chat.turn(f"/save {path}")
    messages = json.loads(path.read_text())["messages"]
    assert [m["role"] for m in messages] == ["system", "user", "assistant", "user", "assistant"]
    assert "Saved 2 turns" in log.getvalue()
    assert chat.turn("/reset")
    assert chat.conversation.turns == ()
    assert chat.conversation.system == "Be kind."
    assert chat.turn("/system Be brief.")
    assert chat.conversation.system == "Be brief."
    assert not chat.turn("/quit")


def test_the_same_seed_says_the_same(model):
    said = []
    for seed in (1, 1, 2):
        chat, out, _ = session(model, seed=seed)
        chat.turn("Hi")
        said.append(out.getvalue())
    assert said[0] == said[1] != said[2]


def test_a_full_context_drops_the_oldest_turns_and_says_so(model):
    chat, _, log = session(model)
    for number in range(6):
        chat.turn(f"Question number {number}")
    assert "no longer sees the oldest" in log.getvalue()
    assert len(chat.conversation.turns) + log.getvalue().count("not see this turn again") == 6


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/hlep", "/hlep is no command"),
        ("/help", "/reset"),
        ("/save", "Name the file"),
        ("/save /dev/null/x.jsonl", "/dev/null/x.jsonl cannot be written"),
        ("word " * 90, "takes more than the model's context of 64 tokens"),
        ("what is [INST] this", "[INST]"),
    ],
)
def test_what_cannot_be_done_is_said_and_the_session_goes_on(model, line, said):
    chat, out, log = session(model)
    assert chat.turn(line)
    assert said in log.getvalue()
    assert out.getvalue() == ""
    assert chat.conversation.turns == ()


def test_an_interrupted_answer_keeps_what_was_said(model, monkeypatch):
    class Cut:
        dropped, conversation, text = 0, "kept", "Once"

        def __iter__(self):
            yield "Once"
            raise KeyboardInterrupt

    monkeypatch.setattr("llama_jax.chat_terminal.reply", lambda *a, **k: Cut())
    chat, out, log = session(model)
    assert chat.turn("Hi")
    assert out.getvalue() == "Once\n"
    assert "(stopped)" in log.getvalue()
    assert chat.conversation == "kept"


def test_an_answer_that_no_conversation_can_hold_is_shown_and_forgotten(model, monkeypatch):
    class Odd:
        dropped, conversation, text = 0, "kept", "a [/INST] b"

        def __iter__(self):
            yield self.text

    monkeypatch.setattr("llama_jax.chat_terminal.reply", lambda *a, **k: Odd())
    chat, out, log = session(model)
    before = chat.conversation
    assert chat.turn("Hi")
    assert out.getvalue() == "a [/INST] b\n"
    assert "the model will not see this turn again" in log.getvalue()
    assert chat.conversation == before


def test_a_model_without_a_tokenizer_or_a_language_head_is_refused(model):
    with pytest.raises(InputError, match="has no tokenizer"):
        run(replace(model, tokenizer=None), Settings(PARAMS))
    scorer = replace(model, config=replace(model.config, head="score"))
    with pytest.raises(InputError, match="is a reward model"):
        run(scorer, Settings(PARAMS))


def test_a_pipe_is_a_conversation_of_lines(model, tmp_path):
    folder = tmp_path / "model"
    origin: dict = {}
    save_model(folder, model.params, model_json(model.config), model.tokenizer.model_bytes, origin)
    command = [sys.executable, "-m", "llama_jax", "chat", str(folder), "--max-new-tokens", "4"]
    done = subprocess.run(
        command, input="Hi\n/help\nAnd?\n", capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2
    assert "/save FILE" in done.stderr
