"""Small, known defects to put into an answer that was right."""

import re
from collections.abc import Callable

from llama_jax.data.corpora.tales.dice import Dice
from llama_jax.data.corpora.tales.prose import sentences, words
from llama_jax.data.corpora.tales.teller import a
from llama_jax.data.corpora.tales.wishes import ANIMALS, NAMES, PLACES, TOYS

type Draft = tuple[str, bool]
"""An answer, and whether it is finished."""

FILLERS = (
    "The sun was shining.", "The sky was blue.", "Birds sang in the trees.", "It was a long day.",
    "The wind was warm.", "A cat walked by.", "There was a big tree.", "The grass was green.",
    "It smelled of flowers.", "The day was almost over.",
)  # fmt: skip
_ANIMALS, _TOYS, _PLACES = tuple(ANIMALS), tuple(TOYS), tuple(PLACES)


def other_hero(parts: list[str], dice: Dice) -> None:
    """From some sentence on, the child has another name."""
    name = next((word for word in words(" ".join(parts)) if word in NAMES), None)
    if name is None:
        return swap_words(parts, dice)
    whole = re.compile(rf"\b{name}\b")
    other = dice.other(NAMES, name)
    start = 1 + int(dice.random() * (len(parts) - 1))
    if not any(map(whole.search, parts[start:])):
        start = len(parts) - 1
        parts[start] = f"{other} went home."
    parts[start:] = [whole.sub(other, part) for part in parts[start:]]


def repeat(parts: list[str], dice: Dice) -> None:
    """One sentence is said twice."""
    i = int(dice.random() * len(parts))
    parts.insert(i, parts[i])


def drop(parts: list[str], dice: Dice) -> None:
    """A sentence is missing, so the length is wrong and its content is lost."""
    if len(parts) > 1:
        del parts[int(dice.random() * len(parts))]


def pad(parts: list[str], dice: Dice) -> None:
    """An unrelated sentence is added."""
    parts.insert(1 + int(dice.random() * len(parts)), dice.pick(FILLERS))


def swap_words(parts: list[str], dice: Dice) -> None:
    """The words of one sentence in a wrong order."""
    i = int(dice.random() * len(parts))
    said = parts[i].split(" ")
    order = dice.draws(len(said))
    moved = [word for _, word in sorted(zip(order, said, strict=True))]
    parts[i] = " ".join(moved if moved != said else said[::-1])


def enumerate_things(parts: list[str], dice: Dice) -> None:
    """A list of things, as if the wished one had to be among them."""
    things = dice.pick((_ANIMALS, _TOYS, _PLACES))
    some = [dice.pick(things) for _ in range(5)]
    listed = ", ".join(map(a, some[:-1]))
    parts[int(dice.random() * len(parts))] = f"There was {listed} and {a(some[-1])}."


def stutter(parts: list[str], dice: Dice) -> None:
    """A sentence that goes round in circles."""
    i = int(dice.random() * len(parts))
    said = parts[i].rstrip(".!?").split(" ")
    parts[i] = " ".join(said + said[-4:] + said[-4:]) + "."


def cut(parts: list[str], dice: Dice) -> None:
    """The last sentence breaks off."""
    said = parts[-1].split(" ")
    parts[-1] = " ".join(said[: 1 + int(dice.random() * (len(said) - 1))]).rstrip(".!?,")


def jumbled(text: str, dice: Dice) -> str:
    """The words of each sentence in a wrong order: no English."""
    parts = sentences(text)
    for i, part in enumerate(parts):
        one = [part]
        swap_words(one, dice)
        parts[i] = one[0]
    return " ".join(parts)


_DEFECTS: tuple[tuple[Callable[[list[str], Dice], None], float], ...] = (
    (other_hero, 0.2),
    (repeat, 0.15),
    (drop, 0.12),
    (pad, 0.13),
    (swap_words, 0.12),
    (enumerate_things, 0.05),
    (stutter, 0.08),
    (cut, 0.15),
)


def damage(text: str, count: int, dice: Dice) -> Draft:
    """A text with `count` defects, and whether it is finished."""
    parts, finished = sentences(text), True
    for _ in range(count):
        defect = dice.weighted(_DEFECTS)
        defect(parts, dice)
        finished &= defect is not cut
    return " ".join(parts), finished
