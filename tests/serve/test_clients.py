"""Clients that others wrote, unchanged, against the server; and what `/openapi.json` promises."""

import json
import shutil
import subprocess
import warnings
from typing import Literal

import pytest

from llama_jax.serve.app import PAGE, Api
from llama_jax.serve.openapi import document
from tests.serve.test_api import CHAT, PROMPT, greedy


def imported(name):
    """A package that may be absent, whose own warnings on being imported are not ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name)


@pytest.fixture
def client(server):
    openai = imported("openai")
    with openai.OpenAI(
        base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", max_retries=0, timeout=60
    ) as client:
        yield client


def test_openai_completions(client, model):
    found = client.completions.create(
        model="tiny", prompt=PROMPT, max_tokens=10, temperature=0, logprobs=2, n=2
    )
    assert [c.text for c in found.choices] == [greedy(model)] * 2
    assert found.usage.completion_tokens == 20
    # The client checks nothing by itself; its types do.
    type(found).model_validate(found.model_dump(), strict=True)
    parts = client.completions.create(
        model="tiny", prompt=PROMPT, max_tokens=10, temperature=0, stream=True
    )
    assert "".join(part.choices[0].text for part in parts) == greedy(model)


def test_openai_chat_completions(client):
    wanted = {"model": "tiny", "messages": CHAT, "max_completion_tokens": 12, "seed": 3,
              "temperature": 0.8, "logprobs": True, "top_logprobs": 3}  # fmt: skip
    found = client.chat.completions.create(**wanted)
    type(found).model_validate(found.model_dump(), strict=True)
    said = found.choices[0].message.content
    assert len(found.choices[0].logprobs.content[0].top_logprobs) == 3
    parts = list(
        client.chat.completions.create(
            **wanted, stream=True, stream_options={"include_usage": True}
        )
    )
    for part in parts:
        type(part).model_validate(part.model_dump(), strict=True)
    assert "".join(p.choices[0].delta.content or "" for p in parts if p.choices) == said
    # The prompt of the second request is in the cache: what else it took is the same.
    assert parts[-1].usage.completion_tokens == found.usage.completion_tokens
    assert parts[-1].usage.prompt_tokens == found.usage.prompt_tokens
    with client.chat.completions.stream(**wanted) as stream:
        assert "".join(e.delta for e in stream if e.type == "content.delta") == said


def test_openai_parses_answers_of_a_schema(client):
    pytest.importorskip("llguidance")
    from pydantic import BaseModel

    class Pet(BaseModel):
        kind: Literal["cat", "dog"]
        legs: Literal[2, 4]

    pets = client.chat.completions.parse(
        model="tiny", messages=[{"role": "user", "content": "Hi"}], response_format=Pet,
        max_completion_tokens=45, n=3,
    )  # fmt: skip
    assert all(type(c.message.parsed) is Pet for c in pets.choices)
    assert len(pets.choices) == 3


def test_openai_models_and_errors(client, engine, monkeypatch):
    openai = imported("openai")
    assert [m.id for m in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("other")
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="maximum context length is 64") as caught:
        client.completions.create(model="tiny", prompt="a", max_tokens=1000)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "max_tokens")
    assert caught.value.request_id
    monkeypatch.setattr(engine, "queue", 0)
    with pytest.raises(openai.RateLimitError) as caught:
        client.completions.create(model="tiny", prompt="a")
    assert caught.value.code == "queue_full"


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here")
def test_curl_streams(server, model):
    body = {"model": "tiny", "prompt": PROMPT, "max_tokens": 10, "temperature": 0, "stream": True}
    done = subprocess.run(
        ["curl", "-sN", f"http://127.0.0.1:{server.port}/v1/completions",
         "-H", "Content-Type: application/json", "-d", json.dumps(body)],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    events = done.stdout.strip().split("\n\n")
    assert events[-1] == "data: [DONE]"
    texts = [json.loads(e.removeprefix("data: "))["choices"][0]["text"] for e in events[:-1]]
    assert "".join(texts) == greedy(model)


# ---- What `/openapi.json` promises


def test_the_document_names_every_route_and_field(server, served):
    status, _, found = server.ask("GET", "/openapi.json")
    assert status == 200
    assert found == json.loads(json.dumps(document(served, server.service.settings)))
    names = set(found["components"]["schemas"])
    assert references(found) <= {f"#/components/schemas/{name}" for name in names}
    routes = {route.resource.canonical for route in Api(server.service).app().router.routes()}
    assert set(found["paths"]) == routes - set(PAGE)
    for path, operations in found["paths"].items():
        for method in set(operations) - {"parameters"}:
            if method == "get":
                assert server.ask("GET", path.replace("{name}", "tiny"))[0] == 200
            else:
                # It is there, and refuses a body that has nothing of what is required.
                assert server.ask("POST", path, {})[0] == 400
    asked = found["components"]["schemas"]["CompletionRequest"]["properties"]
    assert asked["logprobs"]["anyOf"][0] == {"type": "integer", "minimum": 0, "maximum": 20}
    assert asked["model"] == {"enum": ["tiny"]}


def references(node):
    if isinstance(node, dict):
        own = {node["$ref"]} if "$ref" in node else set()
        return own.union(*map(references, node.values()))
    return set().union(*map(references, node)) if isinstance(node, list) else set()
