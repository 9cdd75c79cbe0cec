"""`llama-jax serve` as a process: its one line for bad input, and how it ends."""

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
from dataclasses import replace

import jax
import pytest

from llama_jax import cli
from llama_jax.checkpoint import save_model
from llama_jax.config_file import model_json
from llama_jax.data.tokenizer import train_tokenizer
from llama_jax.model.llama import init_params


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("served") / "tiny"
    tokenizer = model.tokenizer.model_bytes
    save_model(path, model.params, model_json(model.config), tokenizer, {})
    return path


def refused(capsys, *arguments):
    assert cli.main(["serve", *map(str, arguments)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


def test_bad_input_is_one_line(capsys, folder, model, tmp_path):
    assert "no-model does not exist" in refused(capsys, tmp_path / "no-model")
    assert "--api-key-file" in refused(capsys, folder, "--host", "0.0.0.0")
    assert "did you mean --port" in refused(capsys, folder, "--prot", "1")
    keys = tmp_path / "keys"
    assert "cannot be read" in refused(capsys, folder, "--api-key-file", keys)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = refused(capsys, folder, "--port", port)
        assert f"127.0.0.1 port {port} is in use" in said
    assert "context=65 is out of range" in refused(capsys, folder, "--context", 65)
    assert "rows=0 is out of range" in refused(capsys, folder, "--rows", 0)
    assert "guesses nothing" in refused(capsys, folder, "--draft", folder, "--speculate", 0)
    assert "no-model does not exist" in refused(capsys, folder, "--draft", tmp_path / "no-model")
    other = tmp_path / "other"
    tokens = train_tokenizer(["others say other things"] * 20, 300).model_bytes
    save_model(other, model.params, model_json(model.config), tokens, {})
    assert "has another tokenizer than the model" in refused(capsys, folder, "--draft", other)
    assert "has no tokenizer" in refused(capsys, untold(folder, tmp_path / "dumb"))
    config = replace(model.config, head="score")
    reward = tmp_path / "reward"
    params = init_params(jax.random.key(0), config)
    save_model(reward, params, model_json(config), model.tokenizer.model_bytes, {})
    assert "is a reward model" in refused(capsys, reward)


def untold(folder, copy):
    """A model without its tokenizer."""
    copy.symlink_to(folder)
    bare = copy.with_name("bare")
    bare.mkdir()
    for entry in folder.iterdir():
        if entry.name != "tokenizer.model":
            (bare / entry.name).symlink_to(entry)
    return bare


@contextlib.contextmanager
def serving(folder, *options, errors=subprocess.PIPE):
    """A server as a process, and its port."""
    command = [sys.executable, "-m", "llama_jax", "serve", str(folder), "--port", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process:
        try:
            url = process.stdout.readline().strip()
            yield process, int(url.rpartition(":")[2])
        finally:
            process.kill()


def asked(port, **body):
    """A connection and its response to a completion."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    content = json.dumps({"model": "tiny", "prompt": "a", "ignore_eos": True, **body})
    headers = {"Content-Type": "application/json"}
    connection.request("POST", "/v1/completions", content, headers)
    return connection, connection.getresponse()


@pytest.mark.slow
@pytest.mark.parametrize("drain", ["60", "0"])
def test_sigterm_ends_streams_with_their_last_event_and_exits_0(folder, drain):
    """More streams than rows: some are in the queue."""
    with serving(folder, "--drain", drain, "--rows", "2") as (process, port):
        streams = [asked(port, max_tokens=60, stream=True) for _ in range(20)]
        os.kill(process.pid, signal.SIGTERM)
        for connection, response in streams:
            events = response.read().decode().strip().split("\n\n")
            last = json.loads(events[-1][6:]) if drain == "0" and "error" in events[-1] else None
            assert events[-1] == "data: [DONE]" or last["error"]["code"] == "draining"
            connection.close()
        assert process.wait(60) == 0
        assert "Traceback" not in process.stderr.read()


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no full disk to write to")
def test_a_full_disk_for_the_log_stops_nothing(folder):
    with open("/dev/full", "w") as full, serving(folder, errors=full) as (process, port):
        for _ in range(3):
            connection, response = asked(port, max_tokens=3)
            assert response.status == 200
            assert json.loads(response.read())["usage"]["completion_tokens"] == 3
            connection.close()
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(60) == 0


@pytest.mark.slow
def test_a_draft_model_changes_no_answer(folder):
    wanted = {"max_tokens": 40, "n": 2, "seed": 1, "temperature": 0.9}
    found = []
    for options in ((), ("--draft", str(folder))):
        with serving(folder, *options) as (_, port):
            connection, response = asked(port, **wanted)
            found.append([c["text"] for c in json.loads(response.read())["choices"]])
            connection.close()
            if options:
                connection.request("GET", "/metrics")
                counts = connection.getresponse().read().decode()
                accepted = re.search(r"num_accepted_tokens_total\{.*?\} (\d+)", counts)
                assert int(accepted[1]) > 20
                connection.close()
    assert found[0] == found[1]
