"""Checks that a story keeps its hero: a rule on the text alone, for stories of any origin."""

import re

from llama_jax.data.corpora.tales import words

_NAME = re.compile(r"\b(?:" + "|".join(words.GIRLS + words.BOYS) + r")\b")
_INTRODUCED = re.compile(r"(?:friend|friend was|named|name is|I am) $")


def hero(text: str) -> str | None:
    """The first child's name in a text; None if it names no child of the tales."""
    found = _NAME.search(text)
    return found[0] if found else None


def hero_kept(text: str) -> bool:
    """Whether the child that a story begins with is still its hero at the end.

    The hero is the first child named. It is kept if the last paragraph names it and nobody else
    takes its place: at most one other child appears, and is introduced (`his friend Tom`, `a boy
    named Tom`, `"My name is Tom."`). Every story of the corpus keeps its hero.
    """
    name = hero(text)
    if name is None or name not in _NAME.findall(text.strip().rsplit("\n", 1)[-1]):
        return False
    others = [found for found in _NAME.finditer(text) if found[0] != name]
    if not others:
        return True
    one_friend = len({found[0] for found in others}) == 1
    return one_friend and bool(_INTRODUCED.search(text[: others[0].start()]))
