"""What moves on a terminal, and what a log shows instead."""

import io
import logging
import re
import sys
import time

import pytest

from llama_jax.runtime import console


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    """Puts a terminal in the place of stderr, which pytest takes between fixture and test."""

    def put():
        monkeypatch.setattr(console, "PATIENCE_SECONDS", 0.02)
        monkeypatch.setattr(sys, "stderr", screen := Terminal())
        return screen

    return put


def wait_for(screen, text):
    deadline = time.monotonic() + 20
    while text not in screen.getvalue():
        assert time.monotonic() < deadline, screen.getvalue()
        time.sleep(0.01)


def test_what_takes_long_moves_and_leaves_nothing(terminal):
    screen = terminal()
    with console.waiting("loading") as end:
        wait_for(screen, "\r\x1b[K| loading")
        wait_for(screen, "\r\x1b[K/ loading")
        end()
        shown = screen.getvalue()
        assert shown.endswith("\r\x1b[K")
        time.sleep(0.2)
        assert screen.getvalue() == shown


def test_what_is_quick_shows_nothing(terminal, monkeypatch):
    screen = terminal()
    monkeypatch.setattr(console, "PATIENCE_SECONDS", 60)
    with console.waiting("loading"):
        pass
    assert screen.getvalue() == ""


def test_no_terminal_gets_nothing(monkeypatch):
    monkeypatch.setattr(console, "PATIENCE_SECONDS", 0.01)
    monkeypatch.setattr(sys, "stderr", file := io.StringIO())
    with console.waiting("loading"):
        time.sleep(0.1)
    assert file.getvalue() == ""


def test_log_lines_stand_above_what_moves(terminal):
    screen, handler = terminal(), console._Handler()
    with console.waiting("loading"):
        wait_for(screen, "loading")
        handler.emit(logging.LogRecord("x", logging.INFO, "", 0, "a line", (), None))
    assert "\r\x1b[Ka line\n" in screen.getvalue()


def test_progress_is_a_bar_or_a_line_now_and_then(terminal, monkeypatch, caplog):
    began, screen = [], terminal()
    with (progress := console.Progress("eval", lambda: began.append(1))) as take:
        take(1, 3)
        take(3, 3)
        assert (began, progress._bar.n, progress._bar.total) == ([1], 3, 3)
    assert "eval:   0%" in screen.getvalue()
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setattr(console, "LOG_SECONDS", -1)
    with caplog.at_level("INFO"), console.Progress("eval", lambda: None) as take:
        take(1, 3)
        take(2, 3)
    first, second = caplog.messages
    assert first == "eval: 1 of 3 batches"
    assert re.fullmatch(r"eval: 2 of 3 batches, \d:\d\d left", second)


def test_commands_that_compute_keep_what_is_compiled(monkeypatch, tmp_path):
    from llama_jax.config import InputError
    from llama_jax.runtime import compilation_cache

    kept = []
    monkeypatch.setattr(compilation_cache, "keep_programs", lambda: kept.append("kept"))
    with console.at_work("reading", str(tmp_path)) as end:
        assert kept == ["kept"]
        end()
    with (
        pytest.raises(InputError, match="nowhere does not exist"),
        console.at_work("reading", str(tmp_path), "nowhere"),
    ):
        raise AssertionError("it began")
    assert kept == ["kept"]


def test_advice_names_a_command_that_works_here(monkeypatch, tmp_path):
    """A newcomer has not activated .venv: neither `llama-jax` nor `python` is its own there."""
    folder = tmp_path / ".venv/bin"
    folder.mkdir(parents=True)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    monkeypatch.chdir(tmp_path)
    assert console.own_command() == f"{folder}/python -m llama_jax"
    script = folder / "llama-jax"
    script.write_text("")
    script.chmod(0o755)
    assert console.own_command() == ".venv/bin/llama-jax"
    monkeypatch.chdir(folder)
    assert console.own_command() == "./llama-jax"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert console.own_command() == str(script)
    folder = folder.rename(tmp_path / "my tools")
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    assert console.own_command() == f"'{folder}/llama-jax'"  # can be pasted
    monkeypatch.setenv("PATH", str(folder))
    assert console.own_command() == "llama-jax"
