"""Rows that hold one conversation or one prompt: chat messages, TRL, Alpaca, ShareGPT, XSTest,
MT-bench."""

import re
from collections.abc import Iterator
from typing import Any

from llama_jax.data.formats.items import (
    MERGED,
    Drop,
    Item,
    Note,
    Row,
    entries,
    flag,
    joined,
    message,
    must,
    parse_messages,
    text,
    turns,
)
from llama_jax.data.records import Dialogue, Message, Prompt

_SPEAKERS = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
}  # fmt: skip
_MARKUP = re.compile(r"\s*<(div|p)\b[^>]*>.*</\1>\s*", re.DOTALL)

_ANSWERS = (
    "messages", "completion", "completions", "chosen", "rejected", "response", "output", "answer",
)  # fmt: skip
"""Columns that make of a row with a prompt more than a prompt."""


def messages(row: Row) -> Iterator[Item]:
    """A list of messages as a dialogue."""
    yield Dialogue(messages=tuple(parse_messages(row.get("messages"), "messages")))


def message_prompts(row: Row) -> Iterator[Item]:
    """A list of messages as a prompt; our own records may add a safety flag and an answer."""
    said = parse_messages(row.get("messages"), "messages")
    answer = None if row.get("answer") is None else text(row, "answer")
    yield Prompt(messages=tuple(said), safety=flag(row, "safety") or False, answer=answer)


def is_only_prompt(row: Row) -> bool:
    """Whether a row with a prompt holds no answer to it."""
    return all(row.get(key) is None for key in _ANSWERS)


def prompts(row: Row) -> Iterator[Item]:
    """A prompt alone: a text or a list of messages."""
    said = turns(row, "prompt", "user")
    yield Prompt(messages=tuple(said), safety=flag(row, "safety") or False)


def completions(row: Row) -> Iterator[Item]:
    """A prompt, which is not trained on, and its completion."""
    before = [_untrained(entry) for entry in turns(row, "prompt", "user")]
    yield Dialogue(messages=(*before, *turns(row, "completion", "assistant")))


def labelled(row: Row) -> Iterator[Item]:
    """A prompt and a completion labelled good or bad; only good ones are trained on."""
    label = flag(row, "label")
    must(label is not None, "label must be true or false", label)
    if label:
        yield from completions(row)
    else:
        yield Drop("labelled as a bad answer")


def alpaca(row: Row) -> Iterator[Item]:
    """An instruction, perhaps with an input below it, and its output."""
    question = text(row, "instruction")
    given = "" if row.get("input") is None else text(row, "input")
    if given.strip():
        question = f"{question}\n\n{given}"
    yield Dialogue(messages=(message("user", question), message("assistant", text(row, "output"))))


def sharegpt(row: Row) -> Iterator[Item]:
    """A conversation from ShareGPT, cleaned up: see the table."""
    given = entries(row, "conversations")
    said = [_shared(entry, f"conversations[{i}]") for i, entry in enumerate(given)]
    if isinstance(row.get("system"), str) and said and said[0]["role"] != "system":
        said.insert(0, message("system", row["system"]))
    first = next((i for i, entry in enumerate(said) if entry["role"] == "user"), len(said))
    kept = [entry for i, entry in enumerate(said) if i >= first or entry["role"] == "system"]
    tidy = joined(kept)
    if not tidy or tidy[-1]["role"] == "system":
        yield Drop("no message of the user")
    elif any(m["role"] == "assistant" and _MARKUP.fullmatch(m["content"]) for m in tidy):
        yield Drop("an answer is HTML")
    else:
        if len(kept) < len(said):
            yield Note("answers before the first question were removed")
        if len(tidy) < len(kept):
            yield MERGED
        yield Dialogue(messages=tuple(tidy))


def xstest(row: Row) -> Iterator[Item]:
    """A prompt of XSTest; its kind becomes the source. The contrast prompts are the unsafe ones."""
    kind, label = text(row, "type"), row.get("label")
    must(label in (None, "safe", "unsafe"), "label must be safe or unsafe", label)
    unsafe = kind.startswith("contrast") if label is None else label == "unsafe"
    yield Prompt(
        messages=(message("user", text(row, "prompt")),), safety=unsafe, source=f"xstest {kind}"
    )


def mt_bench(row: Row) -> Iterator[Item]:
    """The first question of a conversation that MT-bench asks; those that follow hang on its
    answer."""
    asked = entries(row, "turns")
    must(asked and all(isinstance(t, str) for t in asked), "turns must be a list of texts", asked)
    if len(asked) > 1:
        yield Note("questions after the first were left out")
    source = f"mt-bench {text(row, 'category')}" if "category" in row else "mt-bench"
    yield Prompt(messages=(message("user", asked[0]),), source=source)


def _untrained(entry: Message) -> Message:
    if entry["role"] != "assistant":
        return entry
    return message("assistant", entry["content"], train=False)


def _shared(value: Any, name: str) -> Message:
    must(isinstance(value, dict), f"{name} must be an object", value)
    speaker, said = value.get("from", value.get("role")), value.get("value", value.get("content"))
    known = isinstance(speaker, str) and speaker in _SPEAKERS
    must(known, f"{name} must be from one of {', '.join(_SPEAKERS)}", speaker)
    must(isinstance(said, str), f"the value of {name} must be text", said)
    return message(_SPEAKERS[speaker], said)
