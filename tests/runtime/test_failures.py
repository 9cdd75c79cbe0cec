"""Which failures are one line, which line, and with which status."""

import signal

import jax
import pytest

from llama_jax.config import InputError
from llama_jax.runtime import failures, interrupts
from llama_jax.train.report import TrainingError


def explained(error, command="train"):
    return failures.explain(error, command, trains=command == "train")


@pytest.mark.parametrize(
    ("error", "command", "line", "status"),
    [
        (InputError("no.py"), "train", "no.py", 2),
        (TrainingError("diverged"), "train", "diverged", 1),
        (OSError(28, "No space left", "a/b"), "convert", "a/b: No space left", 1),
        (ConnectionError("host 1 is lost"), "train", "host 1 is lost", 1),
        (ImportError("gcsfs is missing"), "eval", "gs:// needs gcsfs: pip install gcsfs", 2),
        (KeyboardInterrupt(), "plan", "interrupted", 130),
        (
            KeyboardInterrupt(), "train",
            "interrupted. Run the same command to resume from the last checkpoint", 130,
        ),
    ],
)  # fmt: skip
def test_what_is_no_fault_of_the_program_is_one_line(error, command, line, status):
    assert explained(error, command) == (line, status)


def test_advice_names_options_that_the_command_has():
    assert "--model.remat" in explained(MemoryError()).line
    assert "--batch-size" in explained(MemoryError(), "eval").line
    for command in ("generate", "verify"):
        line = explained(RuntimeError("RESOURCE_EXHAUSTED: 5 GB\nmore"), command).line
        assert line.startswith("RESOURCE_EXHAUSTED: 5 GB")
        assert "--model.remat" not in line
        assert "--batch-size" not in line


def test_a_fault_of_the_program_is_none():
    assert explained(RuntimeError("what?")) is None
    assert explained(KeyError("what?")) is None


def test_after_a_signal_whatever_fails_is_that(monkeypatch):
    monkeypatch.setattr(interrupts, "_received", [signal.SIGTERM])
    assert explained(RuntimeError("a callback was interrupted"), "eval") == ("terminated", 143)


@pytest.mark.parametrize("said", ["Unable to initialize backend 'cuda': none\nmore", ""])
def test_a_platform_that_is_not_there_is_named(monkeypatch, said):
    def start(platform):
        raise (RuntimeError(said) if said else AssertionError)

    monkeypatch.setattr(jax._src.xla_bridge, "_init_backend", start)
    monkeypatch.setattr(jax._src.xla_bridge, "_backends", {})
    monkeypatch.setattr(jax._src.xla_bridge, "_default_backend", None)
    with pytest.raises((RuntimeError, AssertionError)) as caught:
        jax._src.xla_bridge.backends()
    line, status = explained(caught.value, "generate")
    assert line.startswith("JAX_PLATFORMS=cpu: ")
    assert line.endswith("; unset it, or set it to cpu")
    assert "more" not in line
    assert status == 2
