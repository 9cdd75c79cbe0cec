"""Records that format readers yield, and the checks of a row's values.

Errors here say what is wrong with a value; reading.py puts the file and the row in front.
"""

import math
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from llama_jax.config import InputError, require
from llama_jax.data.records import ROLES, Dialogue, Message, Preference, Prompt

Row = dict[str, Any]
"""An object of a JSON file, or a row of a table."""


class Drop(NamedTuple):
    """A row, or a part of it, that gives no record; counted in the report."""

    reason: str


class Note(NamedTuple):
    """A change made to a record that is kept; counted in the report."""

    text: str


Item = Dialogue | Preference | Prompt | Drop | Note

MERGED = Note("messages of one speaker in a row were joined")
TIE = Drop("a tie: neither answer is better")

_SHORT = reprlib.Repr(maxlevel=2, maxlist=3, maxdict=3, maxstring=60, maxother=60, maxlong=40)


def shown(value: Any) -> str:
    """A value for an error message, shortened to one line."""
    return _SHORT.repr(value)


def must(good: object, rule: str, value: Any) -> None:
    """Raise InputError("RULE, not VALUE") unless the value is good.

    The value is formatted only if it is bad, since that takes longer than the check.
    """
    if not good:
        raise InputError(f"{rule}, not {shown(value)}")


def text(row: Mapping[str, Any], key: str) -> str:
    """The text under a key."""
    value: Any = row.get(key)
    must(isinstance(value, str), f"{key} must be text", value)
    return value


def entries(row: Mapping[str, Any], key: str) -> list[Any]:
    """The list under a key."""
    value: Any = row.get(key)
    must(isinstance(value, list), f"{key} must be a list", value)
    return value


def flag(row: Mapping[str, Any], key: str) -> bool | None:
    """True, false, or None where the key is missing or null."""
    value: Any = row.get(key)
    must(value is None or isinstance(value, bool), f"{key} must be true or false", value)
    return value


def number(row: Mapping[str, Any], key: str, low: float | int, high: float | int) -> float:
    """The number under a key, between `low` and `high` inclusive."""
    value: Any = row.get(key)
    good = isinstance(value, (int, float)) and not isinstance(value, bool)
    good = good and math.isfinite(value) and low <= value <= high
    must(good, f"{key} must be a number from {low:g} to {high:g}", value)
    return float(value)


def whole(row: Mapping[str, Any], key: str, low: int, high: int) -> int:
    """The whole number under a key, between `low` and `high` inclusive."""
    value = number(row, key, low, high)
    must(value == int(value), f"{key} must be a whole number", value)
    return int(value)


def message(role: str, content: str, train: bool | None = None) -> Message:
    """A message of a record; `train` only if it was given."""
    made: dict[str, Any] = {"role": role, "content": content}
    return made if train is None else made | {"train": train}


def parse_messages(value: Any, name: str) -> list[Message]:
    """Messages from a list of objects; fields other than role, content, train, weight are left out.

    `weight` 0 or 1, as in OpenAI's files for fine-tuning, becomes `train`. The order of roles is
    not checked.
    """
    must(isinstance(value, list) and value, f"{name} must be a list of messages", value)
    return [_parse_message(entry, f"{name}[{i}]") for i, entry in enumerate(value)]


def _parse_message(value: Any, name: str) -> Message:
    must(isinstance(value, dict), f"{name} must be an object", value)
    role, content = value.get("role"), value.get("content")
    known = isinstance(role, str) and role in ROLES
    must(known, f"the role of {name} must be {', '.join(ROLES[:-1])} or {ROLES[-1]}", role)
    must(isinstance(content, str), f"the content of {name} must be text", content)
    train, weight = flag(value, "train"), value.get("weight")
    if weight is not None:
        require(train is None, f"{name} has both train and weight; keep one of them")
        train = bool(whole(value, "weight", 0, 1))
    if train is not None and role != "assistant":
        raise InputError(f"{name} is the {role}'s; only the assistant's have a weight or train")
    return message(role, content, train)


def turns(row: Mapping[str, Any], key: str, role: str) -> list[Message]:
    """Messages under a key: a list of them, or a text as the one message of `role`."""
    value: Any = row.get(key)
    return [message(role, value)] if isinstance(value, str) else parse_messages(value, key)


def joined(messages: Sequence[Message]) -> list[Message]:
    """Messages in which consecutive messages of one role are joined, with a blank line between."""
    made: list[Message] = []
    for entry in messages:
        if made and made[-1]["role"] == entry["role"]:
            content = f"{made[-1]['content']}\n\n{entry['content']}"
            made[-1] = message(entry["role"], content)
        else:
            made.append(entry)
    return made


def rating_of(difference: float) -> int:
    """Rating 0 to 3 of a pair whose answers were scored 1 to 10, from the difference of scores."""
    return min(3, math.floor(difference))
