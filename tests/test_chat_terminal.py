"""The terminal conversation: commands, pipes, interruptions, with a random model."""

import io
import itertools
import json
import os
import pty
import re
import select
import subprocess
import sys
import time
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
from llama_jax.infer.chat import Conversation
from llama_jax.model.llama import init_params
from llama_jax.model.presets import TINY

PARAMS = llama_jax.SamplingParams(max_new_tokens=6)


@pytest.fixture(scope="module")
def model():
    tokenizer = train_tokenizer([tales.story(i) for i in range(50)], 320)
    config = replace(TINY, vocab_size=320, max_seq_len=64)
    return llama_jax.Model(config, init_params(jax.random.key(0), config), tokenizer)


@pytest.fixture
def answers(monkeypatch):
    """Gives texts that the model says, one after another."""

    def say(*texts):
        following = iter(texts)
        monkeypatch.setattr(
            "llama_jax.infer.chat.continue_ids", lambda *_, **__: iter([next(following)])
        )

    return say


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


def test_it_says_which_turns_the_model_no_longer_sees(model):
    chat, _, log = session(model)
    for number in range(8):
        chat.turn(f"Question number {number}")
    pattern = r"no longer sees turns? (\d)(?: to (\d))?: its context is 64 tokens\)\n"
    gone = re.findall(pattern, log.getvalue())
    assert len(gone) > 3
    following = 1
    for first, last in gone:
        assert int(first) == following
        following = int(last or first) + 1
    assert following <= len(chat.conversation.turns)
    chat.turn("/reset")
    assert chat.unseen == 0


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/hlep", "/hlep is not a command"),
        ("/save", "name the file"),
        ("/save f.jsonl", "nothing was said yet"),
        ("word " * 90, "takes more than the model's context of 64 tokens"),
        ("what is [INST] this", r"\[INST\]"),
        ("/system " + "word " * 90, "the system text takes more than the model's context"),
        ("/system <<SYS>>", "the system text.*<<SYS>>"),
    ],
)
def test_what_cannot_be_done_is_refused_and_changes_nothing(model, line, said):
    chat, out, _ = session(model, system="Be kind.")
    with pytest.raises(InputError, match=said):
        chat.turn(line)
    assert (out.getvalue(), chat.conversation) == ("", Conversation("Be kind."))


def test_a_file_that_cannot_be_written_is_named(model, answers):
    answers("1")
    chat, _, _ = session(model)
    chat.turn("Hi")
    with pytest.raises(InputError, match=r"/dev/null/x\.jsonl cannot be written"):
        chat.turn("/save /dev/null/x.jsonl")


def test_a_system_text_is_looked_at_before_anything_is_asked(model):
    with pytest.raises(InputError, match="the system text takes more than"):
        session(model, system="word " * 90)


def test_a_line_that_begins_with_a_space_is_a_message(model, answers):
    answers("1")
    chat, out, log = session(model)
    assert all(chat.turn(line) for line in ("", "  \n", " /quit\n", "/help\n"))
    assert chat.conversation.turns == (("/quit", "1"),)
    assert out.getvalue() == "1\n"
    assert log.getvalue().startswith("/reset ")


def test_one_json_object_a_turn(model, answers):
    answers(" A\n", "B\nC")
    chat, out, _ = session(model, json=True)
    chat.turn("Hi")
    chat.turn("Why?")
    assert [json.loads(line) for line in out.getvalue().splitlines()] == [
        {"prompt": "Hi", "text": "A", "unseen_turns": 0},
        {"prompt": "Why?", "text": "B\nC", "unseen_turns": 0},
    ]


def test_every_answer_has_its_own_seed(model, monkeypatch):
    seeds = []

    def spy(*args, seed, **_):
        seeds.append(seed)
        return iter(["ok"])

    monkeypatch.setattr("llama_jax.infer.chat.continue_ids", spy)
    chat, _, _ = session(model, seed=2**32 - 2)
    for line in ("a", "/reset", "a", "b"):
        chat.turn(line)
    assert seeds == [2**32 - 2, 2**32 - 1, 0]


def test_an_interrupted_answer_keeps_what_was_said(model, monkeypatch):
    def endless(*_, **__):
        for number in itertools.count():
            chat.interrupted = number == 2
            yield f" word{number}"

    monkeypatch.setattr("llama_jax.infer.chat.continue_ids", endless)
    chat, out, log = session(model)
    assert chat.turn("Hi")
    assert out.getvalue() == "word0 word1 word2\n"
    assert "(stopped)" in log.getvalue()
    assert chat.conversation.turns == (("Hi", "word0 word1 word2"),)


def test_an_answer_that_no_conversation_can_hold_is_shown_and_forgotten(model, answers):
    answers("a [/INST] b", "fine")
    chat, out, log = session(model)
    assert chat.turn("Hi")
    assert chat.turn("Why?")
    assert out.getvalue() == "a [/INST] b\nfine\n"
    assert "the model will not see this turn again" in log.getvalue()
    assert chat.conversation.turns == (("Why?", "fine"),)


def test_a_model_without_a_tokenizer_or_a_language_head_is_refused(model):
    with pytest.raises(InputError, match="has no tokenizer"):
        run(replace(model, tokenizer=None), Settings(PARAMS))
    scorer = replace(model, config=replace(model.config, head="score"))
    with pytest.raises(InputError, match="is a reward model"):
        run(scorer, Settings(PARAMS))


@pytest.fixture
def stdin(monkeypatch):
    """Puts lines into standard input, from a keyboard or through a pipe."""

    def put(*lines, keyboard):
        file = io.StringIO("".join(f"{line}\n" for line in lines))
        file.isatty = lambda: keyboard
        monkeypatch.setattr("sys.stdin", file)

    return put


def test_bad_input_through_a_pipe_ends_the_session(model, answers, stdin, capsys):
    answers("1", "2")
    stdin("Hi", "/rest", "never", keyboard=False)
    with pytest.raises(InputError, match="/rest is not a command"):
        run(model, Settings(PARAMS))
    stdin("Hi", "/quit", "never", keyboard=False)
    run(model, Settings(PARAMS))
    assert capsys.readouterr() == ("1\n2\n", "")


def test_answers_alone_go_from_a_keyboard_into_a_file(model, answers, stdin, capsys):
    answers("1", "2")
    lines = ("/rest", "a", "a [INST] b", "c")
    stdin(*lines, keyboard=True)
    run(model, Settings(PARAMS))
    out, err = capsys.readouterr()
    assert out == "1\n2\n"
    notes = err.split("you> ")
    assert len(notes) == 1 + len(lines) + 1
    for note, message in zip(notes[1:], ("not a command", "", "[INST]", "", ""), strict=True):
        assert message in note
        assert bool(note.strip()) == bool(message)


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


# At a keyboard: a process of its own, whose model says a word every twentieth of a second.
PROGRAM = """
import itertools, os, time
os.open(os.ttyname(0), os.O_RDWR)  # Ctrl-C is a signal to the session whose terminal it is
from dataclasses import replace
import llama_jax
from llama_jax.chat_terminal import Settings, run
from llama_jax.data.corpora import tales
from llama_jax.data.tokenizer import train_tokenizer
from llama_jax.infer import chat
from llama_jax.model.presets import TINY

def says(model, ids, params, **_):
    question = model.tokenizer.decode(ids).rpartition("[INST]")[2]
    yield question
    for number in itertools.count() if "endless" in question else range(3):
        time.sleep(0.05)
        yield f" word{number}"

chat.continue_ids = says
tokenizer = train_tokenizer([tales.story(i) for i in range(50)], 320)
model = llama_jax.Model(replace(TINY, vocab_size=320), {}, tokenizer)
run(model, Settings(llama_jax.SamplingParams(max_new_tokens=4)))
print("ended")
"""


class Terminal:
    """A pseudo-terminal with the program in it."""

    def __init__(self):
        self.fd, other = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            stdin=other,
            stdout=other,
            stderr=other,
            start_new_session=True,
            env={**os.environ, "TERM": "dumb"},
        )
        os.close(other)
        self.seen = ""

    def type(self, text):
        os.write(self.fd, text.encode())

    def interrupt(self, said):
        """Press Ctrl-C at a prompt, again if it came before the terminal waited for a key."""
        for _ in range(4):
            os.write(self.fd, b"\x03")
            end = time.monotonic() + 20
            while said not in self.seen and time.monotonic() < end:
                if select.select([self.fd], [], [], 1)[0]:
                    self.seen += os.read(self.fd, 4096).decode()
            if said in self.seen:
                break
        self.wait_for(said)

    def wait_for(self, text, seconds=120):
        """Read until a text appears after all that was waited for before."""
        end = time.monotonic() + seconds
        while text not in self.seen:
            ready, _, _ = select.select([self.fd], [], [], max(0, end - time.monotonic()))
            assert ready, f"{text!r} did not come: {self.seen!r}"
            self.seen += os.read(self.fd, 4096).decode()
        self.seen = self.seen.partition(text)[2]


def test_keys_at_a_keyboard():
    terminal = Terminal()
    try:
        terminal.wait_for("you> ")
        terminal.type("ndless answer\x01e\n")  # Ctrl-A edits the beginning of the line
        terminal.wait_for("endless answer [/INST] word0 word1")
        terminal.type("\x03")
        terminal.wait_for("(stopped)")
        terminal.wait_for("you> ")
        terminal.type("/rest\n")
        terminal.wait_for("/rest is not a command")
        terminal.wait_for("you> ")
        terminal.type("three words\n")
        terminal.wait_for("three words [/INST] word0 word1 word2")
        terminal.wait_for("you> ")
        terminal.interrupt("(Ctrl-C again, or /quit, ends)")
        terminal.wait_for("you> ")
        terminal.interrupt("ended")
        assert terminal.process.wait(60) == 0
    finally:
        terminal.process.kill()
        terminal.process.wait()
        os.close(terminal.fd)
