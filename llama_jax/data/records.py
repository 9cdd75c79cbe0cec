"""Record types of alignment data: dialogues, preferences and prompts.

A record is written as one line of JSON. Messages are plain mappings with `role` (system, user or
assistant), `content` and, on assistant messages, optionally `train` (false for an answer that gets
no loss). `data/formats` reads what people have into these; `data/chat.py` turns them into tokens.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from llama_jax.config import InputError, require

Message = Mapping[str, Any]
"""role, content and, on an assistant's message, optionally train."""
ROLES = ("system", "user", "assistant")
RATINGS = ("negligibly", "slightly", "better", "significantly")
"""How much better the chosen answer is, by its rating 0 to 3 (Llama 2, section 3.2.1)."""


@dataclass(frozen=True, kw_only=True)
class Dialogue:
    """A conversation to train on: user and assistant alternate, the assistant last."""

    messages: tuple[Message, ...]
    source: str = ""
    """Where it comes from, for reports."""


@dataclass(frozen=True, kw_only=True)
class Preference:
    """Two answers to one conversation, the better one chosen."""

    messages: tuple[Message, ...]
    """Ends with a user message."""
    chosen: str
    rejected: str
    rating: int | None = None
    """0 negligibly better or unsure, to 3 significantly better; None if unrated."""
    margin: float | None = None
    """An explicit margin for the loss, which overrides the rating's."""
    safe_chosen: bool | None = None
    safe_rejected: bool | None = None
    source: str = ""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A conversation that waits for an answer."""

    messages: tuple[Message, ...]
    """Ends with a user message."""
    safety: bool = False
    """Whether the safety reward model judges its answer."""
    source: str = ""
    answer: str | None = None
    """A reference answer from the record, for reward functions; no model reads it."""


Record = Dialogue | Preference | Prompt


def to_json(record: Record) -> str:
    """One line of JSON; fields at their defaults are left out."""
    values = {f.name: getattr(record, f.name) for f in fields(record)}
    kept = {f.name: values[f.name] for f in fields(record) if values[f.name] != f.default}
    return json.dumps(kept, ensure_ascii=False)


def check_messages(messages: Any, last: str, where: str) -> tuple[Message, ...]:
    """Returns the messages of a record if valid: known roles, text, alternating turns, `last` at
    the end.

    A system message may come first. Raises InputError that names `where` and the message.
    """
    if not isinstance(messages, (list, tuple)) or not messages:
        raise InputError(
            f"{where}: messages must be a list that is not empty, not {messages!r:.60}"
        )
    expected = "user"
    for number, message in enumerate(messages):
        here = f"{where}, message {number}"
        if not isinstance(message, Mapping):
            raise InputError(f"{here} must be an object, not {message!r:.60}")
        role, content, train = message.get("role"), message.get("content"), message.get("train")
        if role not in ROLES:
            known = ", ".join(ROLES)
            raise InputError(f"{here}: role {role!r:.40} is unknown; roles are {known}")
        if not isinstance(content, str):
            raise InputError(f"{here}: content must be text, not {content!r:.60}")
        require(
            "train" not in message or isinstance(train, bool),
            f"{here}: train={train!r:.40} must be true or false",
        )
        if role == "system":
            require(number == 0, f"{here}: a system message must be the first message")
            continue
        if role != expected:
            raise InputError(
                f"{here}: expected a {expected} message, not {role}: a conversation starts with "
                "the user, and user and assistant take turns"
            )
        require(
            content.strip() or (role == "user"),
            f"{here}: the assistant's answer is empty; remove the dialogue or fill it in",
        )
        expected = "assistant" if role == "user" else "user"
    if messages[-1]["role"] != last:
        raise InputError(
            f"{where}: the last message must be the {last}'s, not the {messages[-1]['role']}'s"
        )
    return tuple(messages)
