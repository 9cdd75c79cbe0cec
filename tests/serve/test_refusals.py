"""Bad input: a status, OpenAI's error object, the field and its bound; the server goes on."""

import json
import logging
import socket
import threading
import time

import pytest

from llama_jax.serve import service
from llama_jax.serve.app import PUBLIC, Api
from llama_jax.serve.openapi import document
from tests.serve.server import CONTEXT, KEYS, Gate, keys_in, raw_request, running, wait_until

OK = {"model": "tiny", "prompt": "a", "max_tokens": 1}
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "a"}], "max_tokens": 1}


def error_of(answer, status):
    found, headers, body = answer
    assert found == status, body
    assert set(body["error"]) >= {"message", "type", "param", "code"}
    assert headers["X-Request-Id"]
    return body["error"]


@pytest.mark.parametrize(
    ("path", "change", "param", "said"),
    [
        ("completions", {"temperature": True}, "temperature", "must be a number, not True"),
        ("completions", {"temperature": "1"}, "temperature", "must be a number, not '1'"),
        ("completions", {"temperature": 2.1}, "temperature", "from 0 to 2, not 2.1"),
        ("completions", {"top_p": -0.1}, "top_p", "from 0 to 1, not -0.1"),
        ("completions", {"top_k": 1.0}, "top_k", "whole number from -1"),
        ("completions", {"max_tokens": 1.5}, "max_tokens", "whole number from 0"),
        ("completions", {"max_tokens": 0}, "max_tokens", "at least 1, or 0 with echo"),
        ("completions", {"n": 9}, "n", "from 1 to 8, not 9"),
        ("completions", {"n": 2, "best_of": 1}, "best_of", "whole number from 2 to 8, not 1"),
        ("completions", {"best_of": 2, "stream": True}, "best_of", "must be as n, 1, with stream"),
        ("completions", {"logprobs": 21}, "logprobs", "from 0 to 20"),
        ("completions", {"logprobs": True}, "logprobs", "from 0 to 20, not True"),
        ("completions", {"echo": 1}, "echo", "true or false"),
        ("completions", {"stop": [1]}, "stop[0]", "must be a string of at most 256"),
        ("completions", {"stop": ["x"] * 17}, "stop", "a list of at most 16"),
        ("completions", {"seed": 2**63}, "seed", "whole number from -9223372036854775808"),
        ("completions", {"logit_bias": {"x": 1}}, "logit_bias", "names 'x', which is no token"),
        ("completions", {"logit_bias": {"320": 1}}, "logit_bias", "no token id from 0 to 319"),
        ("completions", {"logit_bias": {"x": None}}, "logit_bias", "names 'x', which is no token"),
        ("completions", {"response_format": {}}, "response_format.type", "must be text, json_obj"),
        ("completions", {"response_format": {"type": None}}, "response_format.type", "not None"),
        ("completions", {"logit_bias": {"5": 101}}, "logit_bias.5", "from -100 to 100"),
        ("completions", {"logit_bias": [1]}, "logit_bias", "must be an object"),
        ("completions", {"stop_token_ids": [320]}, "stop_token_ids", "holds 320"),
        ("completions", {"stop_token_ids": {}}, "stop_token_ids", "must be a list of at most"),
        ("completions", {"stop_token_ids": 0}, "stop_token_ids", "must be a list of at most"),
        ("completions", {"presence_penalty": -3}, "presence_penalty", "from -2 to 2"),
        ("completions", {"stream_options": {"include_usage": True}}, "stream_options", "stream"),
        ("completions", {"stream": True, "stream_options": 3}, "stream_options", "an object"),
        ("completions", {"suffix": "x"}, "suffix", "is not supported"),
        ("completions", {"tools": [{}]}, "tools", "is not supported"),
        ("completions", {"user": "x" * 257}, "user", "at most 256 characters, not 257"),
        ("completions", {"prompt": None}, "prompt", "is missing"),
        ("completions", {"prompt": []}, "prompt", "must be a text, token ids, or a list"),
        ("completions", {"prompt": 3}, "prompt", "must be a text"),
        ("completions", {"prompt": ["a"] * 129}, "prompt", "a list of at most 128"),
        ("completions", {"prompt": [1, "a"]}, "prompt[0]", "must be a text or token ids"),
        ("completions", {"prompt": [-1]}, "prompt[0]", "holds -1, which is no token id"),
        ("completions", {"prompt": [[1, 320]]}, "prompt[0]", "holds 320"),
        ("completions", {"prompt": [[1, None]]}, "prompt[0]", "holds None"),
        ("completions", {"stop_token_ids": [None]}, "stop_token_ids", "holds None"),
        ("completions", {"prompt": [True]}, "prompt[0]", "must be a text or token ids"),
        ("chat/completions", {"messages": None}, "messages", "a list that is not empty"),
        ("chat/completions", {"messages": [3]}, "messages[0]", "must be an object"),
        ("chat/completions", {"top_logprobs": 2}, "top_logprobs", "needs logprobs"),
        ("chat/completions", {"max_completion_tokens": 0}, "max_completion_tokens", "from 1"),
    ],
)  # fmt: skip
def test_a_wrong_field_is_named_with_its_bound(server, path, change, param, said):
    body = {**(OK if path == "completions" else CHAT), **change}
    error = error_of(server.ask("POST", f"/v1/{path}", body), 400)
    assert error["param"] == param
    assert said in error["message"]
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("asked", "harmless"),
    [
        ({"min_p": 0.1}, {"min_p": 0.0}),
        ({"guided_regex": "a"}, {"guided_regex": None}),
        ({"guided_choice": ["a"]}, {}),
        ({"guided_grammar": "a"}, {}),
        ({"structured_outputs": {"regex": "a"}}, {}),
        ({"json_schema": {}}, {}),
        ({"grammar": "root ::= 'a'"}, {"grammar": ""}),
        ({"bad_words": ["a"]}, {"bad_words": []}),
        ({"allowed_token_ids": [5]}, {"allowed_token_ids": None}),
        ({"use_beam_search": True}, {"use_beam_search": False}),
        ({"length_penalty": 0.5}, {"length_penalty": 1.0}),
        ({"include_stop_str_in_output": True}, {"include_stop_str_in_output": False}),
        ({"skip_special_tokens": False}, {"skip_special_tokens": True}),
        ({"chat_template_kwargs": {"a": 1}}, {"chat_template_kwargs": {}}),
        ({"continue_final_message": True}, {"continue_final_message": False}),
        ({"add_generation_prompt": False}, {"add_generation_prompt": True}),
        ({"prompt_embeds": "AA=="}, {}),
        ({"typical_p": 0.5}, {"typical_p": 1}),
        ({"repeat_penalty": 1.1}, {"repeat_penalty": 1.0}),
        ({"mirostat": 2}, {"mirostat": 0}),
        ({"xtc_probability": 0.5}, {"xtc_probability": 0}),
        ({"dry_multiplier": 0.8}, {"dry_multiplier": 0.0}),
        ({"n_predict": 3}, {}),
        ({"n_probs": 3}, {"n_probs": 0}),
    ],
)  # fmt: skip
def test_what_would_change_an_answer_elsewhere_is_refused_by_name(server, asked, harmless):
    (name,) = asked
    error = error_of(server.ask("POST", "/v1/completions", {**OK, **asked}), 400)
    assert (error["param"], error["code"]) == (name, "unsupported_parameter")
    assert server.ask("POST", "/v1/completions", {**OK, **harmless})[0] == 200


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([{"role": "tool", "content": "a"}], "must be system, user or assistant"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "must be of type text"),
        ([{"role": "user", "content": 3}], "must be a string"),
        ([{"role": "assistant", "content": "a"}], "expected a user message"),
        ([{"role": "user", "content": "[INST] a"}], "holds [INST]"),
        ([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}], "take turns"),
        ([{"role": "user", "content": "a\0"}], "NUL"),
    ],
)
def test_a_conversation_that_the_template_cannot_carry_is_refused(server, messages, said):
    error = error_of(
        server.ask("POST", "/v1/chat/completions", {**CHAT, "messages": messages}), 400
    )
    assert said in error["message"]
    assert error["param"].startswith("messages")


@pytest.mark.parametrize(
    "raw",
    [
        "", "{", "[]", "3", '{"model": "tiny", "model": "tiny"}', "[" * 5000,
        '{"model": "tiny", "prompt": "a", "temperature": NaN}',
        '{"model": "tiny", "prompt": "a", "logit_bias": {"5": Infinity}}',
        '{"model": "tiny", "prompt": "\\ud800"}', b'{"model": "\xff"}',
        '{"model": "tiny", "prompt": "a", "seed": ' + "9" * 5000 + "}",
    ],
)  # fmt: skip
def test_a_body_that_is_no_json_object_is_refused(server, raw):
    error = error_of(server.ask("POST", "/v1/completions", raw=raw), 400)
    assert error["code"] == "invalid_json"


def test_the_context_is_named_with_both_numbers(server):
    for change, param, numbers in (
        ({"prompt": [1] * 60, "max_tokens": 5}, "max_tokens", "65 tokens (60 in the prompt, 5 for"),
        ({"prompt": [1] * 65, "max_tokens": None}, "prompt", "66 tokens (65 in the prompt, 1 for"),
    ):
        error = error_of(server.ask("POST", "/v1/completions", {**OK, **change}), 400)
        assert error["code"] == "context_length_exceeded"
        assert f"maximum context length is {CONTEXT} tokens" in error["message"]
        assert numbers in error["message"]
        assert error["param"] == param
        assert error["n_ctx"] == CONTEXT
    for change in ({"prompt": [1] * 60}, {"prompt": [1] * 59, "max_tokens": 5}):
        assert server.ask("POST", "/v1/completions", {**OK, **change})[0] == 200


def test_other_models_paths_methods_and_types(server):
    error = error_of(server.ask("POST", "/v1/completions", {**OK, "model": "gpt-4"}), 404)
    assert error["code"] == "model_not_found"
    assert "this server has tiny" in error["message"]
    error = error_of(server.ask("POST", "/v1/completions", {"prompt": "a"}), 400)
    assert error["param"] == "model"
    error_of(server.ask("GET", "/v2/none"), 404)
    answer = server.ask("GET", "/v1/completions")
    error_of(answer, 405)
    assert answer[1]["Allow"] == "POST"
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    error_of(server.ask("POST", "/v1/completions", raw="a=b", headers=form), 415)
    large = json.dumps({**OK, "user": "x" * (2 << 20)})
    assert error_of(server.ask("POST", "/v1/completions", raw=large), 413)["code"] == (
        "request_too_large"
    )


def test_other_names_and_other_pages_are_refused(server):
    """A web page whose name points here, and one that sends requests from elsewhere."""
    for headers in (
        {"Host": "evil.example"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://["},
    ):
        error_of(server.ask("GET", "/v1/models", headers=headers), 403)
        assert "Access-Control-Allow-Origin" not in server.ask("GET", "/", headers=headers)[1]
    own = {"Origin": f"http://127.0.0.1:{server.port}"}
    assert server.ask("GET", "/v1/models", headers=own)[0] == 200


def test_every_route_but_the_public_ones_needs_a_key(engine, served, tmp_path):
    with running(engine, served, keys=keys_in(tmp_path)) as server:
        routes = [
            (route.method, route.resource.canonical)
            for route in Api(server.service).app().router.routes()
        ]
        assert {path for _, path in routes} >= {*PUBLIC, "/v1/completions", "/metrics"}
        for method, route in routes:
            if method == "HEAD":
                continue
            for headers in ({}, {"Authorization": "Bearer wrong-key-of-nobody"}):
                answer = server.ask(method, route, headers=headers)
                if route in PUBLIC:
                    assert answer[0] in (200, 503)
                else:
                    error = error_of(answer, 401)
                    assert error["code"] == "invalid_api_key"
                    assert answer[1]["WWW-Authenticate"] == "Bearer"

        def cached(key):
            headers = {"Authorization": f"Bearer {KEYS[key]}"}
            body = {**OK, "prompt": [1, *range(30, 60)]}
            status, _, body = server.ask("POST", "/v1/completions", body, headers=headers)
            assert status == 200
            return body["usage"]["prompt_tokens_details"]["cached_tokens"]

        assert [cached("first"), cached("second"), cached("first")] == [0, 0, 16]


def test_a_full_queue_is_429_and_says_when_to_come_back(server, engine, monkeypatch):
    monkeypatch.setattr(engine, "queue", 2)
    answer = server.ask("POST", "/v1/completions", {**OK, "n": 3})
    assert error_of(answer, 429)["code"] == "queue_full"
    assert int(answer[1]["Retry-After"]) > 0
    # All of a request's prompts are taken or none.
    error_of(server.ask("POST", "/v1/completions", {**OK, "prompt": ["a", "b", "c"]}), 429)
    wait_until(lambda: engine.idle)
    assert engine.scheduler.pool.held == 0


@pytest.mark.parametrize(
    ("param", "asked"),
    [
        ("prompt", {"prompt": ["a"] * 65}),
        ("n", {"prompt": ["a"] * 13, "n": 5}),
        ("best_of", {"prompt": ["a"] * 13, "best_of": 5}),
    ],
)
def test_more_answers_than_can_ever_wait_are_refused_by_the_field_that_asks(server, param, asked):
    error = error_of(server.ask("POST", "/v1/completions", {**OK, **asked}), 400)
    assert error["param"] == param
    assert error["message"].startswith(
        f"{param} asks for 65 answers at once, and the queue of this server holds 64: "
    )
    assert "--queue" in error["message"]
    many = document(server.service.served, server.service.settings)
    prompts = many["components"]["schemas"]["CompletionRequest"]["properties"]["prompt"]
    assert prompts["anyOf"][2]["maxItems"] == 64


def test_a_server_that_loads_or_ends_says_so(engine, served):
    with running(None, served) as server:
        assert server.ask("GET", "/health")[0] == 200
        assert server.ask("GET", "/ready")[0] == 503
        answer = server.ask("POST", "/v1/completions", OK)
        assert error_of(answer, 503)["code"] == "loading"
        assert answer[1]["Retry-After"]
        server.service.engine = engine
        assert server.ask("GET", "/ready")[0] == 200
        server.service.draining = True
        assert error_of(server.ask("POST", "/v1/completions", OK), 503)["code"] == "draining"
        assert server.ask("GET", "/ready")[0] == 503


def test_a_request_that_takes_too_long_is_504_and_frees_its_pages(engine, served):
    with running(engine, served, deadline_seconds=0.0) as server:
        assert error_of(server.ask("POST", "/v1/completions", OK), 504)["code"] == "timeout"
        wait_until(lambda: engine.idle)
        assert engine.scheduler.pool.held == 0


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 3])
def test_a_client_that_goes_away_frees_its_rows_and_pages(server, engine, stream, n, monkeypatch):
    real = engine._device.draw

    def slowly(drawing, steps):
        time.sleep(0.02 * steps)
        return real(drawing, steps)

    monkeypatch.setattr(engine._device, "draw", slowly)
    asked = raw_request(server, max_tokens=50, n=n, stream=stream, ignore_eos=True)
    for wait in (0.0, 0.05, 0.2):
        drawn = engine.totals.generation_tokens
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(asked)
            time.sleep(wait)
        wait_until(lambda: not server.service.open and engine.idle)
        assert engine.scheduler.pool.held == 0
        assert engine.waiting == 0
        assert engine.totals.generation_tokens - drawn < 50 * n


def test_a_failing_device_is_an_error_event_and_then_the_server_goes_on(
    server, engine, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setattr("llama_jax.infer.engine.programs.draw_steps", lambda *_, **__: 1 / 0)
        status, _, content = server.ask("POST", "/v1/completions", {**OK, "stream": True})
        assert status == 200
        lines = content.decode().strip().split("\n\n")
        assert json.loads(lines[-1].removeprefix("data: "))["error"]["type"] == "server_error"
    engine._failed_at = -float("inf")
    assert server.ask("POST", "/v1/completions", OK)[0] == 200
    assert "ZeroDivision" not in content.decode()


def test_a_device_that_stalls_is_not_healthy_and_one_that_is_slow_is(server, engine, monkeypatch):
    """How long it may be silent is at least some seconds, and five times what it ever took."""
    gate = Gate(engine._device.draw)
    monkeypatch.setattr(engine._device, "draw", gate.draw)
    monkeypatch.setattr(engine, "longest", 0.0)
    monkeypatch.setattr(service, "STALLED_SECONDS", 0.2)

    def health():
        return server.ask("GET", "/health")[0]

    asked = {**OK, "max_tokens": 4, "ignore_eos": True}
    client = threading.Thread(target=server.ask, args=("POST", "/v1/completions", asked))
    client.start()
    try:
        wait_until(lambda: engine.running)
        wait_until(lambda: health() == 503)
        assert server.ask("GET", "/ready")[0] == 503
        gate.let(1)
        wait_until(lambda: health() == 200)
        # This draw took more than 0.2 s, so that the next one may take more than a second.
        assert engine.longest > 0.2
        held = time.monotonic()
        while time.monotonic() < held + 0.6:
            assert health() == 200
        wait_until(lambda: health() == 503)
    finally:
        gate.free = True
        client.join()
    wait_until(lambda: engine.idle)
    assert health() == 200


@pytest.mark.parametrize("ends", ["answered", "refused", "failed"])
def test_no_word_of_a_prompt_is_logged(server, engine, monkeypatch, caplog, ends):
    caplog.set_level(logging.INFO)
    words = "xylophone quarry"
    body = {**OK, "prompt": words, "user": words, "stop": [words]}
    chat = {**CHAT, "messages": [{"role": "user", "content": words}], "user": words}
    change, status = {"refused": ({"temperature": words}, 400), "answered": ({}, 200)}.get(
        ends, ({}, 500)
    )
    for path, asked in (("completions", body), ("chat/completions", chat)):
        with monkeypatch.context() as patch:
            if ends == "failed":
                patch.setattr("llama_jax.infer.engine.programs.draw_steps", lambda *_, **__: 1 / 0)
            assert server.ask("POST", f"/v1/{path}", {**asked, **change})[0] == status
        engine._failed_at = -float("inf")
    assert f"POST /v1/completions {status}" in caplog.text
    assert "xylophone" not in caplog.text
    assert "quarry" not in caplog.text
