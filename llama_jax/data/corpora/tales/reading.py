"""Reads a conversation's wishes, and a story's features, from their text alone.

The judge goes by this and by nothing that a generator knows, so it can judge answers to records
that were read back from a file.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from llama_jax.data.corpora.tales import ghost
from llama_jax.data.corpora.tales.facts import FACT_OF, normal
from llama_jax.data.corpora.tales.ghost import Attribute
from llama_jax.data.corpora.tales.harmless import DEEDS
from llama_jax.data.corpora.tales.kindness import unkind_part
from llama_jax.data.corpora.tales.prose import words
from llama_jax.data.corpora.tales.wishes import (
    ANIMALS,
    ENDINGS,
    LENGTHS,
    MOODS,
    NAMES,
    PLACES,
    TOYS,
    Wishes,
)
from llama_jax.data.records import Message

_NAMES = frozenset(NAMES)
_ANIMAL_OF = {form: name for name in ANIMALS for form in (name, f"{name}s")} | {"mice": "mouse"}
_LONG_TOYS = tuple(name for name in TOYS if " " in name)
_SHORT_TOYS = frozenset(TOYS) - frozenset(_LONG_TOYS)
_ENDING_OF = {form: name for name, forms in ENDINGS.items() for form in forms}
_MOOD_OF = {sign: mood for mood, signs in MOODS.items() for sign in signs}
_LENGTH_OF = {word: n for n, word in LENGTHS.items()} | {str(n): n for n in LENGTHS}
_PLACE = re.compile(rf"\b(?:the|a) ({'|'.join(PLACES)})\b")
_LENGTH = re.compile(rf"\b({'|'.join(_LENGTH_OF)}) sentences?\b")
_END = re.compile(r"\bend(?:s|ing)?\b[^.!?]*")
_AGAIN = re.compile(r"\b(?:again|now|this time|same story)\b")
_ASKED = (
    ("animal", re.compile(r"(?:which|what) animal\b")),
    ("toy", re.compile(r"(?:which|what) toy\b")),
    ("mood", re.compile(r"what kind of story\b|is it a\b")),
    ("place", re.compile(r"where\b")),
    ("hero", re.compile(r"who\b")),
)
"""What a question about a story asks for, by how it begins."""


class Request(NamedTuple):
    """The request of the last user message, given those before it."""

    kind: str
    """story, question (about the story before it), fact, deed (harmless help) or unkind."""
    said: str
    """The message itself."""
    wishes: Wishes = Wishes()
    """The wishes for a story."""
    topic: tuple[str, ...] = ()
    """Words that an answer must have."""
    keys: frozenset[str] = frozenset()
    """Words of which the answer to a question must have at least one."""
    rivals: frozenset[str] = frozenset()
    """Words that it must not have."""
    attribute: Attribute | None = None
    """An attribute that every answer of the conversation must keep."""


def read(messages: Sequence[Message]) -> Request:
    """The request of a conversation that ends with a user message."""
    wishes: Wishes | None = None
    attribute, request, told = None, Request("other", ""), ""
    for message in messages:
        if message["role"] == "assistant":
            told = message["content"]
            continue
        found, text = ghost.find(message["content"])
        attribute = found or attribute
        if message["role"] == "system":
            continue
        request = _request(text, wishes, told)
        wishes = request.wishes if request.kind == "story" else wishes
    return request._replace(said=messages[-1]["content"], attribute=attribute)


def _request(text: str, before: Wishes | None, told: str) -> Request:
    """What one message asks for after a request with the wishes `before` and the story `told`."""
    if fact := FACT_OF.get(normal(text)):
        return Request("fact", text, keys=fact.keys, rivals=fact.rivals)
    if unkind_part(text):
        return Request("unkind", text)
    low = text.lower()
    for deed in DEEDS:
        for phrase in (deed.base, deed.third):
            if phrase in low:
                hero = next((w for w in words(text) if w in _NAMES), None)
                return Request("deed", text, wishes=Wishes(hero=hero), topic=deed.topic)
    if told and text.rstrip().endswith("?"):
        for kind, pattern in _ASKED:
            if pattern.match(low):
                return _question(kind, text, told)
    wishes = wishes_in(text)
    if before is not None and _AGAIN.search(low):
        return Request("story", text, before._replace(**dict(wishes.items())))
    if any(wishes) or "story" in low:
        return Request("story", text, wishes)
    return Request("other", text)


def wishes_in(text: str) -> Wishes:
    """The wishes that a message names."""
    low = text.lower()
    length = _LENGTH.search(low)
    ends = " ".join(_END.findall(low))
    low = _END.sub("", low)
    plain = words(low)
    return Wishes(
        hero=next((w for w in words(text) if w in _NAMES), None),
        animal=_first(animals_in(plain)),
        toy=_first(toys_in(low, plain)),
        place=_first(places_in(low)),
        mood=next((w for w in plain if w in MOODS), None),
        ending=_first(places_in(ends)) or _first(endings_in(words(ends))),
        sentences=_LENGTH_OF[length[1]] if length else None,
    )


def _question(kind: str, text: str, told: str) -> Request:
    """A question about the story `told`: right is what the story has, wrong the rest."""
    low = told.lower()
    plain = words(low)
    has: dict[str, tuple[set[str], Iterable[str]]] = {
        "hero": ({name for name, _ in names_in(words(told)).most_common(1)}, NAMES),
        "animal": (set(animals_in(plain)), ANIMALS),
        "toy": (set(toys_in(low, plain)), TOYS),
        "place": (set(places_in(low)[:1]), PLACES),
        "mood": ({mood for mood in (mood_of(plain),) if mood}, MOODS),
    }
    right, possible = has[kind]
    return Request("question", text, keys=frozenset(right), rivals=frozenset(possible) - right)


def _first[X](found: Sequence[X]) -> X | None:
    return found[0] if found else None


def names_in(written: Sequence[str]) -> Counter[str]:
    """How often each child is named."""
    return Counter([word for word in written if word in _NAMES])


def animals_in(plain: Sequence[str]) -> list[str]:
    """The animals among lower-case words, each once, in order."""
    return list(dict.fromkeys([_ANIMAL_OF[word] for word in plain if word in _ANIMAL_OF]))


def toys_in(low: str, plain: Sequence[str]) -> list[str]:
    """The toys in a lower-case text."""
    found = [toy for toy in _LONG_TOYS if toy in low]
    return found + list(dict.fromkeys([word for word in plain if word in _SHORT_TOYS]))


def places_in(low: str) -> list[str]:
    """The places in a lower-case text, each once, in order."""
    return list(dict.fromkeys(_PLACE.findall(low)))


def endings_in(plain: Sequence[str]) -> list[str]:
    """The endings that lower-case words show, each once, in order."""
    return list(dict.fromkeys([_ENDING_OF[word] for word in plain if word in _ENDING_OF]))


def moods_in(plain: Sequence[str]) -> dict[str, int]:
    """How many of the lower-case words show each mood."""
    counts = dict.fromkeys(MOODS, 0)
    for word in plain:
        if word in _MOOD_OF:
            counts[_MOOD_OF[word]] += 1
    return counts


def mood_of(plain: Sequence[str]) -> str | None:
    """The mood that most words show; None if there are none."""
    counts = moods_in(plain)
    best = max(counts, key=counts.__getitem__)
    return best if counts[best] else None
