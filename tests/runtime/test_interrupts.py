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
