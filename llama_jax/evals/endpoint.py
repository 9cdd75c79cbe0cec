"""A judge behind an OpenAI-compatible API: which of two answers is better, asked in both orders.

Such judges prefer the answer that they read first, so one order alone says little. The key comes
from a file or from OPENAI_API_KEY, never from the command line, which other users can see.
"""

import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from llama_jax.config import InputError, require
from llama_jax.data.records import Message
from llama_jax.runtime.files import parse_json, read_bytes, shown

KEY_VARIABLE = "OPENAI_API_KEY"
MAX_REPLY_BYTES = 4 << 20
_WAITS = (1.0, 4.0, 16.0)
"""Seconds before the next try where the server is busy."""
_BUSY = {408, 429, 500, 502, 503, 504}
_ASK = """\
You compare two answers to the last message of a conversation. Judge how helpful, correct and \
harmless each is; neither length nor order counts. Say in one or two sentences why, then end with \
exactly one of [[A]], [[B]] or [[C]]: A is better, B is better, or they are equally good.

[Conversation]
{conversation}

[Answer A]
{first}

[Answer B]
{second}
"""


@dataclass(frozen=True)
class Endpoint:
    """A server, a model and a prompt for the judge."""

    url: str
    """Such as https://api.openai.com/v1; `/chat/completions` is added."""
    model: str
    key: str = field(default="", repr=False)
    seconds: float = 120.0
    wait: Callable[[float], None] = field(default=time.sleep, repr=False)

    def __post_init__(self):
        require(
            re.match(r"https?://[^\s/]+", self.url),
            f"judge {shown(self.url)} must begin with https:// or http:// and a host",
        )
        require(self.model, f"judge {self.url} needs the name of its model: --judge-model NAME")

    def prompt(self, messages: Sequence[Message], first: str, second: str) -> str:
        """The prompt for the judge."""
        said = "\n\n".join(f"{m['role']}: {m['content']}" for m in messages)
        return _ASK.format(conversation=said, first=first, second=second)

    def prefers(self, prompt: str) -> float:
        """1.0 for the first answer, 0.0 for the second, 0.5 for neither.

        Raises InputError if the server rejects the request or cannot be reached, or if its reply
        contains no verdict.
        """
        said = self._ask(prompt)
        found = re.findall(r"\[\[([ABC])\]\]", said)
        require(found, f"judge {self.model} gave no [[A]], [[B]] or [[C]]: {shown(said)}")
        return {"A": 1.0, "B": 0.0, "C": 0.5}[found[-1]]

    def _ask(self, prompt: str) -> str:
        body = {
            "model": self.model,
            "temperature": 0,
            "messages": [{"role": "user", "content": prompt}],
        }
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        url = f"{self.url.rstrip('/')}/chat/completions"
        request = urllib.request.Request(url, json.dumps(body).encode(), headers)
        values = parse_json(self._send(request), f"the reply of {url}")
        try:
            said: Any = values["choices"][0]["message"]["content"]
        except (KeyError, IndexError, TypeError):
            said = None
        if not isinstance(said, str):
            raise InputError(f"the reply of {url} holds no message: {shown(values)}")
        return said

    def _send(self, request: urllib.request.Request) -> bytes:
        for wait in (*_WAITS, None):
            try:
                with urllib.request.urlopen(request, timeout=self.seconds) as reply:
                    return reply.read(MAX_REPLY_BYTES)
            except urllib.error.HTTPError as error:
                if wait is None or error.code not in _BUSY:
                    raise InputError(
                        f"judge {request.full_url} answers {error.code} {error.reason}"
                        f"{_advice(error.code)}"
                    ) from None
            except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
                if wait is None:
                    reason = getattr(error, "reason", error)
                    raise InputError(
                        f"judge {request.full_url} cannot be reached: {reason}"
                    ) from None
            self.wait(wait)
        raise AssertionError


def _advice(code: int) -> str:
    if code in (401, 403):
        return f": set {KEY_VARIABLE}, or name a file with the key by --judge-key"
    return (
        ": is it the address up to /v1, and is --judge-model right?" if code in (400, 404) else ""
    )


def read_key(file: str | None) -> str:
    """The API key from a file, or from the environment; empty for none, which local servers accept.

    Raises InputError for a file that cannot be read or holds no single word.
    """
    if file is None:
        return os.environ.get(KEY_VARIABLE, "").strip()
    key = read_bytes(file, "key", 1 << 16).decode("utf-8", "replace").strip()
    require(key and len(key.split()) == 1 and key.isascii(), f"key {file} must hold one word")
    return key
