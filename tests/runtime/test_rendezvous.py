"""What a host says while it waits for others."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llama_jax.runtime import rendezvous


@pytest.fixture
def port(monkeypatch):
    monkeypatch.setattr(rendezvous, "PATIENCE_SECONDS", 0.1)
    monkeypatch.setattr(rendezvous, "_PULSE_SECONDS", 0.02)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def wait(caplog, text):
    deadline = time.monotonic() + 20
    while text not in caplog.text and time.monotonic() < deadline:
        time.sleep(0.01)


def test_host_0_names_who_has_not_come(port, caplog, monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "4")
    place = (f"localhost:{port}", 0, 4)
    other = rendezvous._Roll("localhost", port, 2)
    with rendezvous.announced(lambda: place, None):
        deadline = time.monotonic() + 20
        while "not heard" not in caplog.text and time.monotonic() < deadline:
            other.pulse()
            time.sleep(0.01)
    other.close()
    assert caplog.messages == [
        f"host 0 of 4 (SLURM_NTASKS=4) waits for 3 others at localhost:{port}; to run alone, add "
        "--num-processes 1",
        "after 0 s host 0 has not heard of: 1, 3",
    ]


def test_another_host_says_that_host_0_is_not_there(port, caplog):
    with rendezvous.announced(lambda: (f"localhost:{port}", 1, 2), 2):
        wait(caplog, "after")
    assert "host 1 of 2 (--num-processes) waits for 1 other at" in caplog.messages[0]
    assert f"host 0 does not answer at localhost:{port}: [Errno 111]" in caplog.messages[1]


def test_hosts_that_meet_at_once_say_nothing_more(port, caplog):
    with rendezvous.announced(lambda: None, None):
        pass
    with rendezvous.announced(lambda: (f"localhost:{port}", 0, 2), None):
        wait(caplog, "waits")
    assert len(caplog.messages) == 1


ALONE = """
import ctypes, sys
from llama_jax.runtime import interrupts, rendezvous
interrupts.listen()
rendezvous._PULSE_SECONDS = 0.02
rendezvous.MEETING_SECONDS = float(sys.argv[2])
with rendezvous.announced(lambda: ("localhost:" + sys.argv[1], 0, 2), None):
    print("waiting", flush=True)
    # A library that hears nothing: a lock that it holds already.
    lock = ctypes.create_string_buffer(64)
    for _ in range(2):
        ctypes.CDLL(None).pthread_mutex_lock(lock)
"""


def wait_until_it_sleeps(pid):
    """Until the main thread is in the library's lock (threads that wait for Python's own lock are
    back within milliseconds), or has ended."""
    state, asleep, deadline = "", 0, time.monotonic() + 60
    while asleep < 25 and state != "Z" and time.monotonic() < deadline:
        state = Path(f"/proc/{pid}/task/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        asleep = asleep + 1 if state == "S" else 0
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("number", "seconds", "line", "status"),
    [
        (signal.SIGTERM, 60, "terminated while the hosts find each other", 143),
        (signal.SIGINT, 60, "interrupted while the hosts find each other", 130),
        (0, 0.1, "the hosts did not meet in 0 s: host 0 has not heard of: 1", 1),
    ],
)
def test_a_program_that_waits_ends_in_a_line(port, number, seconds, line, status):
    command = [sys.executable, "-c", ALONE, str(port), str(seconds)]
    with subprocess.Popen(command, stdout=-1, stderr=-1, text=True) as process:
        assert process.stdout.readline() == "waiting\n"
        wait_until_it_sleeps(process.pid)
        os.kill(process.pid, number)
        said = process.communicate(timeout=60)[1].splitlines()
    assert process.returncode == status
    assert said[-1] == f"llama-jax: error: {line}"
    assert not any("Traceback" in line for line in said)
