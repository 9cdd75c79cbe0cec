"""Clients that trickle, stall, or die: others are answered, and no page stays with them."""

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from llama_jax.serve import app
from tests.serve.server import raw_request, running, wait_until

TCP_REPAIR = 19
"""Linux's: a socket in this state is closed without telling the other side."""


def connect(server):
    return socket.create_connection(("127.0.0.1", server.port), timeout=60)


def all_free(server, engine):
    return not server.service.open and engine.idle and engine.scheduler.pool.held == 0


def test_requests_that_trickle_in_are_ended_and_others_do_not_wait(engine, served, monkeypatch):
    monkeypatch.setattr(app, "IDLE_SECONDS", 0.5)
    monkeypatch.setattr(app, "BODY_SECONDS", 0.5)
    with running(engine, served) as server:
        whole = raw_request(server, max_tokens=1)
        trickling = [(connect(server), whole[:at]) for at in (0, 1, 20, 60) for _ in range(5)]
        bodies = [connect(server) for _ in range(5)]
        for connection, part in trickling:
            connection.sendall(part)
        for connection in bodies:
            connection.sendall(whole[:-3])
        assert server.ask("GET", "/health")[0] == 200
        server.post("/v1/completions", prompt="a", max_tokens=2)
        for connection, _ in trickling:
            assert connection.recv(1000) == b""
            connection.close()
        for connection in bodies:
            assert connection.recv(1000).startswith(b"HTTP/1.1 408 ")
            connection.close()
        assert all_free(server, engine)


def test_what_is_no_http_is_one_line_without_its_bytes(server, caplog):
    caplog.set_level(logging.INFO, "llama_jax")
    with connect(server) as connection:
        connection.sendall(
            b"GET /health HTTP/1.1\r\nHost: localhost\r\nAuthorization: key\0\r\n\r\n"
        )
        assert connection.recv(1000).startswith(b"HTTP/1.0 400 ")
    assert [r.getMessage() for r in caplog.records] == ["a request was no HTTP: 400"]
    assert "key" not in caplog.text


@contextlib.contextmanager
def stalled(server):
    """A client that asks for much and reads none of it."""
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", server.port))
        asked = raw_request(
            server, n=8, max_tokens=50, logprobs=20, ignore_eos=True, stream=True
        )  # fmt: skip
        connection.sendall(asked)
        wait_until(lambda: server.service.open)
        yield


def test_a_reader_that_takes_nothing_holds_no_pages_and_nobody_else_up(engine, served):
    with running(engine, served, send_buffer=4096) as server:
        with stalled(server):
            wait_until(lambda: engine.idle and engine.scheduler.pool.held == 0, 300)
            assert server.service.open
            server.post("/v1/completions", prompt="a", max_tokens=2)
        wait_until(lambda: not server.service.open)


def test_a_reader_that_takes_nothing_is_let_go(engine, served, monkeypatch):
    monkeypatch.setattr(app, "STALLED_READER_SECONDS", 0.5)
    with running(engine, served, send_buffer=4096) as server:
        with stalled(server):
            wait_until(lambda: not server.service.open, 300)
        assert server.ask("GET", "/health")[0] == 200


def test_a_reader_that_goes_while_it_is_written_to_is_no_failure(server, monkeypatch, caplog):
    def gone(*_):
        raise ConnectionResetError("Cannot write to closing transport")

    caplog.set_level(logging.INFO, "llama_jax")
    monkeypatch.setattr("llama_jax.serve.app.Reply.chunks", gone)
    with connect(server) as connection:
        connection.sendall(raw_request(server, max_tokens=1, stream=True))
        wait_until(lambda: "/v1/completions 499" in caplog.text)
    wait_until(lambda: not server.service.open)
    assert "Error handling request" not in caplog.text


CLIENT = """
import socket, sys, time
connection = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
connection.sendall(bytes.fromhex(sys.argv[2]))
print(len(connection.recv(10)), flush=True)
time.sleep(60)
"""


def test_a_client_that_is_killed_leaves_nothing(server, engine, monkeypatch):
    real = engine._device.draw
    monkeypatch.setattr(
        engine._device, "draw", lambda drawing, steps: time.sleep(0.05) or real(drawing, 1)
    )
    asked = raw_request(server, n=3, max_tokens=50, ignore_eos=True, stream=True).hex()
    command = [sys.executable, "-S", "-c", CLIENT, str(server.port), asked]
    drawn = engine.totals.generation_tokens
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as client:
        assert client.stdout.readline() == "10\n"
        os.kill(client.pid, signal.SIGKILL)
    wait_until(lambda: all_free(server, engine))
    assert engine.totals.generation_tokens - drawn < 3 * 50


def test_a_client_that_closes_its_half_is_gone(server, engine):
    """It sends an end and goes on reading; a request that was whole before is not answered."""
    asked = raw_request(server, n=3, max_tokens=50, ignore_eos=True, stream=True)
    with connect(server) as connection:
        connection.sendall(asked)
        wait_until(lambda: server.service.open)
        connection.shutdown(socket.SHUT_WR)
        wait_until(lambda: all_free(server, engine))
        while connection.recv(1 << 16):
            pass


def test_a_half_open_connection_holds_nothing(server, engine):
    """Its client forgot it without a word, as a machine that lost its power does."""
    asked = raw_request(server, n=3, max_tokens=50, ignore_eos=True, stream=True)
    connection = connect(server)
    connection.sendall(asked)
    wait_until(lambda: server.service.open)
    try:
        connection.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
    except OSError as error:
        connection.close()
        pytest.skip(f"sockets here cannot be left half open: {error}")
    connection.close()
    wait_until(lambda: all_free(server, engine))
