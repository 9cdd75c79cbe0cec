"""What a host says while it waits for others."""

import socket
import time

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
