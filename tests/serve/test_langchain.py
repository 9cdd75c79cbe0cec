"""LangChain's chat model, unchanged, against the server; nothing is traced, and no network used."""

import socket
from typing import Literal

import pytest

from tests.serve.test_api import CHAT
from tests.serve.test_clients import imported

MESSAGES = [(message["role"], message["content"]) for message in CHAT]
HI = [("user", "Hi")]


@pytest.fixture
def chat(server, monkeypatch):
    """Greedy answers of at most ten tokens."""
    for name in ("LANGSMITH_TRACING", "LANGCHAIN_TRACING_V2"):
        monkeypatch.setenv(name, "false")
    named = socket.getaddrinfo

    def only_here(host, *arguments, **named_arguments):
        assert host == "127.0.0.1"
        return named(host, *arguments, **named_arguments)

    monkeypatch.setattr(socket, "getaddrinfo", only_here)
    return imported("langchain_openai").ChatOpenAI(
        model="tiny", base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none",
        temperature=0, max_tokens=10, max_retries=0, timeout=60, stream_usage=True,
    )  # fmt: skip


def said_to(server, messages):
    """What the server says without LangChain between."""
    return server.post(
        "/v1/chat/completions", temperature=0, max_tokens=10,
        messages=[{"role": role, "content": content} for role, content in messages],
    )  # fmt: skip


def test_langchain_invokes_and_streams(chat, server):
    alone = said_to(server, MESSAGES)
    text = alone["choices"][0]["message"]["content"]
    whole = chat.invoke(MESSAGES)
    assert whole.content == text != ""
    assert whole.response_metadata["finish_reason"] == alone["choices"][0]["finish_reason"]
    assert whole.usage_metadata["input_tokens"] == alone["usage"]["prompt_tokens"]
    assert whole.usage_metadata["output_tokens"] == alone["usage"]["completion_tokens"] > 0
    parts = list(chat.stream(MESSAGES))
    assert "".join(part.content for part in parts) == text
    together = parts[0]
    for part in parts[1:]:
        together += part
    assert together.usage_metadata["output_tokens"] == whole.usage_metadata["output_tokens"]


def test_langchain_asks_for_many_at_once(chat, server):
    alone = {
        text: said_to(server, [("user", text)])["choices"][0]["message"]["content"]
        for text in ("Hi", "A cat", "Once")
    }
    asked = ["Hi", "A cat", "Once", "Hi"]
    found = chat.batch([[("user", text)] for text in asked])
    assert [answer.content for answer in found] == [alone[text] for text in asked]
    assert len(set(alone.values())) > 1


def test_langchain_parses_answers_of_a_schema(chat):
    pytest.importorskip("llguidance")
    from pydantic import BaseModel

    class Pet(BaseModel):
        kind: Literal["cat", "dog"]
        legs: Literal[2, 4]

    pets = chat.with_structured_output(Pet, method="json_schema")
    assert type(pets.invoke(HI, max_tokens=45)) is Pet


def test_langchain_hears_why_it_is_refused(chat):
    openai = imported("openai")
    with pytest.raises(openai.BadRequestError, match="maximum context length is 64"):
        chat.invoke(HI, max_tokens=1000)
