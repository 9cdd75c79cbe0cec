"""The chitchat-dataset package: 7,168 conversations between two strangers (MIT licence).

A conversation is a list of turns, a turn a list of utterances that one person sent in a row. Who
speaks first becomes the user. The utterances of a turn become one message, one line each. Dropped:
conversations in which one person speaks, and those of less than two exchanges, which hold little
but a greeting. (github.com/BYU-PCCL/chitchat-dataset; BYU Chit-Chat Challenge, 2018)
"""

import importlib.util
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llama_jax.config import InputError
from llama_jax.data.formats.items import Drop, Item, Row, entries, message, must, text
from llama_jax.data.records import Dialogue, Message

NAME = "chitchat"
"""Names the installed package in the place of a path."""
MIN_MESSAGES = 4


def package_file() -> Path:
    """The data file of the installed package. InputError if it is not installed."""
    spec = importlib.util.find_spec("chitchat_dataset")
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            "data chitchat needs the package chitchat-dataset: pip install chitchat-dataset"
        )
    return Path(spec.submodule_search_locations[0]) / "dataset.json"


def is_chat(row: Row) -> bool:
    """Whether messages are lists of utterances."""
    messages = row.get("messages")
    return isinstance(messages, list) and bool(messages) and isinstance(messages[0], list)


def dialogues(row: Row) -> Iterator[Item]:
    """The conversation of a row."""
    speakers: list[str] = []
    said: list[Message] = []
    for utterance in itertools.chain.from_iterable(map(_utterances, entries(row, "messages"))):
        sender, words = text(utterance, "sender"), text(utterance, "text").strip()
        if not words:
            continue
        if sender not in speakers:
            speakers.append(sender)
        role = ("user", "assistant")[min(speakers.index(sender), 1)]
        if said and said[-1]["role"] == role:
            words = f"{said.pop()['content']}\n{words}"
        said.append(message(role, words))
    if len(speakers) != 2:
        yield Drop("not a conversation of two people")
    elif len(said) - len(said) % 2 < MIN_MESSAGES:
        yield Drop(f"less than {MIN_MESSAGES // 2} exchanges")
    else:
        yield Dialogue(messages=tuple(said))


def _utterances(turn: Any) -> list[Any]:
    good = isinstance(turn, list) and all(isinstance(utterance, dict) for utterance in turn)
    must(good, "a turn must be a list of utterances", turn)
    return turn
