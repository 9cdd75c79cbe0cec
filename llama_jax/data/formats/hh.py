r"""Anthropic hh-rlhf: each side is a whole conversation as one text with `\n\nHuman:` markers.

The conversation up to the last `\n\nAssistant:` is the prompt, which both sides share; what follows
is the answer. Some copies keep the prompt in a column of its own, which is read too. Dropped: rows
whose two conversations differ before the answer (5 of the 2,312 in harmless-base/test), rows whose
conversation does not end with the human. Messages of one speaker in a row are joined. Nobody rated
the pairs. (github.com/anthropics/hh-rlhf)
"""

import re
from collections.abc import Iterator

from llama_jax.data.formats.items import (
    MERGED,
    Drop,
    Item,
    Row,
    joined,
    message,
    must,
    text,
)
from llama_jax.data.records import Message, Preference

ASSISTANT = "\n\nAssistant:"
_ROLES = {"Human": "user", "Assistant": "assistant"}
_MARKERS = re.compile(r"\n\n(Human|Assistant):")


def is_marked(row: Row) -> bool:
    """Whether the texts of a row are conversations with markers."""
    shared = row.get("prompt")
    value = row.get("chosen") if shared is None else shared
    return isinstance(value, str) and ASSISTANT in value


def preferences(row: Row) -> Iterator[Item]:
    """The pair of answers of a row."""
    chosen, rejected = text(row, "chosen"), text(row, "rejected")
    if row.get("prompt") is not None:
        shared = text(row, "prompt").rstrip().removesuffix(ASSISTANT.strip())
    else:
        shared, marker, chosen = chosen.rpartition(ASSISTANT)
        other, other_marker, rejected = rejected.rpartition(ASSISTANT)
        must(marker, f"chosen must hold {ASSISTANT!r}", chosen)
        must(other_marker, f"rejected must hold {ASSISTANT!r}", rejected)
        if shared != other:
            yield Drop("the conversations differ before the two answers")
            return
    said = _messages(shared)
    messages = joined(said)
    if messages[-1]["role"] != "user":
        yield Drop("the conversation does not end with the human")
        return
    if len(messages) < len(said):
        yield MERGED
    yield Preference(
        messages=tuple(messages), chosen=chosen.strip(), rejected=rejected.strip(), source="hh-rlhf"
    )


def _messages(conversation: str) -> list[Message]:
    before, *parts = _MARKERS.split(conversation)
    good = parts and not before.strip()
    must(good, "a conversation must begin with '\\n\\nHuman:'", conversation)
    return [
        message(_ROLES[speaker], said.strip())
        for speaker, said in zip(parts[::2], parts[1::2], strict=True)
    ]
