"""Signals, sent by the operating system to real processes."""

import signal
import subprocess
import sys

import pytest

PROGRAM = """
import sys, time
from llama_jax.runtime import failures, interrupts
interrupts.listen()
try:
    try:
        print("ready", flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        print("closing", flush=True)
        time.sleep(60 if sys.argv[1] == "slow" else 0)
        raise
except KeyboardInterrupt as error:
    line, status = failures.explain(error, "train", trains=False)
    print(line)
    interrupts.leave(status)
"""


@pytest.mark.parametrize(
    ("number", "line", "status"),
    [(signal.SIGINT, "interrupted", 130), (signal.SIGTERM, "terminated", 143)],
)
def test_the_first_signal_lets_the_program_clean_up_and_the_second_does_not(number, line, status):
    for kind in ("quick", "slow"):
        with subprocess.Popen(
            [sys.executable, "-c", PROGRAM, kind], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True,
        ) as process:  # fmt: skip
            assert process.stdout is not None
            assert process.stderr is not None
            assert process.stdout.readline() == "ready\n"
            process.send_signal(number)
            assert process.stdout.readline() == "closing\n"
            if kind == "slow":
                process.send_signal(number)
            # Not communicate(): it forgets what readline() has read ahead.
            out, err = process.stdout.read(), process.stderr.read()
            assert process.wait(timeout=30) == status
        if kind == "quick":
            assert (out, err) == (f"{line}\n", "")
        else:
            assert (out, err) == ("", "llama-jax: error: ended at once by a second signal\n")


# Sends this process a signal when a module of that name is about to be loaded.
WHILE_LOADING = """
import os, runpy, sys
number, name = int(sys.argv[1]), sys.argv[2]
class Sends:
    def find_spec(self, module, path=None, target=None):
        if module == name:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), number)
sys.meta_path.insert(0, Sends())
sys.argv = ["llama-jax", *sys.argv[3:]]
runpy.run_module("llama_jax", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("module", ["llama_jax.cli_train", "jax", "jaxlib.xla_client"])
def test_a_signal_while_libraries_load_is_one_line_too(tmp_path, module, number):
    done = subprocess.run(
        [sys.executable, "-c", WHILE_LOADING, str(int(number)), module,
         "generate", str(tmp_path), "--prompt", "x"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    line = "interrupted" if number == signal.SIGINT else "terminated"
    assert (done.returncode, done.stdout) == (128 + number, "")
    assert done.stderr == f"llama-jax: error: {line}\n"
