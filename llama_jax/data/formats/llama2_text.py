"""Llama 2's template as text: back to messages, so that it can be encoded with control ids.

Such a text must not be tokenised as it stands: its `<s>` and `</s>` would become letters.
"""

import re
from collections.abc import Iterator

from llama_jax.config import InputError
from llama_jax.data.formats.items import Item, Row, message, shown, text
from llama_jax.data.records import Dialogue, Message

TAGS = ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>")
_PAIR = re.compile(r"(?:<s>)?\s*\[INST\](.*?)\[/INST\](.*?)(?:</s>|(?=<s>)|(?=\[INST\])|\Z)", re.S)
_SYSTEM = re.compile(r"\s*<<SYS>>(.*?)<</SYS>>(.*)", re.S)


def is_rendered(row: Row) -> bool:
    """Whether the text of a row is in the template."""
    value = row.get("text")
    return isinstance(value, str) and "[INST]" in value


def dialogues(row: Row) -> Iterator[Item]:
    """The conversation that the text of a row holds."""
    yield Dialogue(messages=tuple(parse_llama2_text(text(row, "text"))))


def parse_llama2_text(rendered: str) -> list[Message]:
    """Messages of `<s>[INST] <<SYS>> system <</SYS>> user [/INST] answer </s>...`, texts stripped.

    `<s>` and `</s>` may be missing, and the last answer. Raises InputError where a tag is out of
    place.
    """
    messages: list[Message] = []
    at = 0
    rest = rendered.strip()
    while at < len(rest):
        pair = _PAIR.match(rest, at)
        if pair is None:
            raise InputError(f"a turn must be [INST] ... [/INST], not {shown(rest[at : at + 60])}")
        question, answer = pair[1], pair[2].strip()
        system = None if messages else _SYSTEM.fullmatch(question)
        if system:
            messages.append(message("system", system[1].strip()))
            question = system[2]
        messages.append(message("user", question.strip()))
        at = _skip_space(rest, pair.end())
        if answer or at < len(rest):
            messages.append(message("assistant", answer))
    return messages


def _skip_space(rest: str, at: int) -> int:
    while at < len(rest) and rest[at].isspace():
        at += 1
    return at
