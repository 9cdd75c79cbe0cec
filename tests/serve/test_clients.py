"""Clients that others wrote, unchanged, against the server: openai, lm-evaluation-harness,
LangChain, curl, and a fuzzer that reads `/openapi.json`."""

import json
import os
import shutil
import subprocess
import sys
import warnings
from typing import Literal

import pytest

from llama_jax.serve.openapi import document
from tests.serve.server import CONTEXT, running
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


@pytest.mark.slow
def test_langchain_answers_whole_and_in_pieces(server):
    langchain = imported("langchain_openai")
    chat = langchain.ChatOpenAI(
        model="tiny", base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", seed=3,
        max_tokens=12, temperature=0.8, max_retries=0, stream_usage=True,
    )  # fmt: skip
    found = chat.invoke([("system", "Be kind."), ("user", "Hi")])
    assert found.content
    assert found.usage_metadata["output_tokens"] > 0
    parts = list(chat.stream([("system", "Be kind."), ("user", "Hi")]))
    assert "".join(part.content for part in parts) == found.content
    text = langchain.OpenAI(
        model="tiny", base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none",
        max_tokens=5, temperature=0, max_retries=0,
    )  # fmt: skip
    assert text.invoke(PROMPT)


# A question, and the answer of another one beside its own; short enough for the context.
QUESTIONS = [
    ("who has the most wins", "the red team", "in the park"),
    ("where did the dog go", "to the park", "a boy"),
    ("what did the boy see", "a big dog", "the sun"),
    ("when is the sun up", "in the day", "a red ball"),
]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["local-completions", "local-chat-completions"])
def test_the_harness_finds_what_it_finds_in_process(server, model, tmp_path, monkeypatch, kind):
    """lm-evaluation-harness over HTTP, tokens and all, beside the same harness on the model."""
    lm_eval = imported("lm_eval")
    from llama_jax.evals.harness import adapt
    from llama_jax.evals.model_under_test import ModelUnderTest

    monkeypatch.setenv("OPENAI_API_KEY", "none")
    (tmp_path / "rows.json").write_text(
        "\n".join(json.dumps({"q": q, "choices": [a, b], "gold": 0}) for q, a, b in QUESTIONS)
    )
    common = {
        "dataset_path": "json", "dataset_kwargs": {"data_files": str(tmp_path / "rows.json")},
        "test_split": "train", "doc_to_text": "{{q}}",
    }  # fmt: skip
    choice = {
        **common, "task": "choose", "output_type": "multiple_choice", "doc_to_target": "gold",
        "doc_to_choice": "choices", "metric_list": [{"metric": "acc"}],
    }  # fmt: skip
    write = {
        **common, "task": "write", "output_type": "generate_until", "doc_to_target": "{{gold}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 8, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    }  # fmt: skip
    chat = kind == "local-chat-completions"
    route = "chat/completions" if chat else "completions"
    arguments = {
        "model": "tiny", "base_url": f"http://127.0.0.1:{server.port}/v1/{route}",
        "max_length": CONTEXT, "max_retries": 1,
    }  # fmt: skip
    if not chat:
        arguments |= {"tokenizer_backend": "remote", "num_concurrent": 2, "add_bos_token": True}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        over_http = lm_eval.simple_evaluate(
            model=kind, model_args=arguments, tasks=[write] if chat else [choice, write],
            batch_size=1 if chat else 4, apply_chat_template=chat, log_samples=True,
            bootstrap_iters=0,
        )  # fmt: skip
        if chat:
            answers = [s["resps"][0][0] for s in over_http["samples"]["write"]]
            assert all(isinstance(answer, str) for answer in answers)
            return
        inside = lm_eval.simple_evaluate(
            model=adapt(ModelUnderTest(model, 4)), tasks=[choice, write], log_samples=True,
            bootstrap_iters=0,
        )  # fmt: skip
    for ours, theirs in zip(
        inside["samples"]["choose"], over_http["samples"]["choose"], strict=True
    ):
        for (one,), (other,) in zip(ours["resps"], theirs["resps"], strict=True):
            assert float(one[0]) == pytest.approx(float(other[0]), abs=1e-3)
            assert str(one[1]) == str(other[1])
    assert [s["resps"] for s in inside["samples"]["write"]] == [
        s["resps"] for s in over_http["samples"]["write"]
    ]


# ---- What `/openapi.json` promises


def test_the_document_names_every_route_and_field(server, served):
    status, _, found = server.ask("GET", "/openapi.json")
    assert status == 200
    assert found == json.loads(json.dumps(document(served, server.service.settings)))
    names = set(found["components"]["schemas"])
    assert references(found) <= {f"#/components/schemas/{name}" for name in names}
    for path, operations in found["paths"].items():
        for method in set(operations) - {"parameters"}:
            if method == "get":
                assert server.ask("GET", path.replace("{name}", "tiny"))[0] == 200
            else:
                # It is there, and refuses a body that has nothing of what is required.
                assert server.ask("POST", path, {})[0] == 400
    asked = found["components"]["schemas"]["CompletionRequest"]["properties"]
    assert asked["logprobs"]["anyOf"][0] == {"type": "integer", "minimum": 0, "maximum": 20}
    assert asked["model"] == {"const": "tiny"}


def references(node):
    if isinstance(node, dict):
        own = {node["$ref"]} if "$ref" in node else set()
        return own.union(*map(references, node.values()))
    return set().union(*map(references, node)) if isinstance(node, list) else set()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_fuzzer_finds_no_failure_and_no_answer_that_the_document_does_not_have(engine, served):
    """schemathesis, valid and invalid data. `LLAMA_JAX_FUZZ` is the number of cases for each
    operation."""
    imported("schemathesis")
    cases = os.environ.get("LLAMA_JAX_FUZZ", "50")
    with running(engine, served, deadline_seconds=30.0) as server:
        done = subprocess.run(
            [sys.executable, "-m", "schemathesis.cli", "run",
             f"http://127.0.0.1:{server.port}/openapi.json", "--phases", "coverage,fuzzing",
             "--max-examples", cases, "--mode", "all", "--seed", "1", "--request-timeout", "60",
             "--checks", "not_a_server_error,status_code_conformance,content_type_conformance,"
             "response_schema_conformance,negative_data_rejection",
             "--suppress-health-check", "all", "--no-color"],
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-1000:]
        assert engine.scheduler.pool.held == 0
