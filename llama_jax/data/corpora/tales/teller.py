"""Tools that all plots share: a story's dice, its people, and ways to say things."""

from collections.abc import Callable, Sequence
from random import Random

from llama_jax.data.corpora.tales import words
from llama_jax.data.corpora.tales.words import Animal, Person, Place, Toy

HOLD_OUT = 16
"""One in so many pairs of plot and hero is kept for the validation split."""


def person(name: str, girl: bool) -> Person:
    """The pronouns that go with a name."""
    return Person(name, *(("she", "her", "her") if girl else ("he", "him", "his")))


class Teller:
    """Draws from one story's random numbers, and remembers nothing but the hero.

    Only `Random.random` is used: Python promises its sequence for a seed in every version.
    """

    def __init__(self, seed: int, plot: int, validation: bool):
        self._random: Callable[[], float] = Random(seed).random
        self.hero, self._girl, self._index = self._hero(plot, validation)

    def _hero(self, plot: int, validation: bool) -> tuple[Person, bool, int]:
        """A child whose pair with this plot belongs to the split."""
        size = len(words.GIRLS)
        girl = self.chance(0.5)
        index = self._name(size)
        held_out = (5 * plot + 7 * girl) % HOLD_OUT  # one name of each list for each plot
        if validation:
            index = index // HOLD_OUT * HOLD_OUT + held_out
        elif index % HOLD_OUT == held_out:
            index = (index + 1 + int(self._random() * (HOLD_OUT - 1))) % size
        return person((words.GIRLS if girl else words.BOYS)[index], girl), girl, index

    def _name(self, size: int) -> int:
        """A place in a list of names. Some names are common and most are not, as in life: the first
        of 16 comes up in 25 % of the draws, the last one in 3 %.

        Repetition between stories lets attention find out sooner that a name comes back (Zucchet
        et al. 2025, arXiv 2505.17863).
        """
        u = self._random()
        return int(u * u * size)

    def chance(self, p: float) -> bool:
        """True with probability p."""
        return self._random() < p

    def pick[X](self, options: Sequence[X]) -> X:
        """One of the options."""
        return options[int(self._random() * len(options))]

    def one(self, *options: str) -> str:
        """One of several ways to say a thing."""
        return options[int(self._random() * len(options))]

    def two[X](self, options: Sequence[X]) -> tuple[X, X]:
        """Two different options."""
        size = len(options)
        first = int(self._random() * size)
        second = (first + 1 + int(self._random() * (size - 1))) % size
        return options[first], options[second]

    def friend(self) -> Person:
        """Another child."""
        girl = self.chance(0.5)
        names = words.GIRLS if girl else words.BOYS
        index = self._name(len(names))
        if girl == self._girl and index == self._index:
            index = (index + 1) % len(names)
        return person(names[index], girl)

    def grown_up(self, kinds: str = "") -> Person:
        """A relative of the hero: `his mom`, `her grandpa`; of the kinds named, if any."""
        woman = self.chance(0.5)
        names = words.WOMEN if woman else words.MEN
        names = [name for name in names if name in kinds.split(",")] if kinds else names
        return person(f"{self.hero.his} {self.pick(names)}", woman)

    def parent(self) -> Person:
        """The hero's mom or dad."""
        woman = self.chance(0.5)
        return person(f"{self.hero.his} {'mom' if woman else 'dad'}", woman)

    def place(self) -> Place:
        """Somewhere outside."""
        return self.pick(words.PLACES)

    def toy(self) -> tuple[Toy, str]:
        """A toy, and what it is called with one of its looks: `red ball`."""
        toy = self.pick(words.TOYS)
        return toy, f"{self.pick(toy.looks)} {toy.name}"

    def animal(self) -> tuple[Animal, str]:
        """An animal, and what it is called with one of its looks."""
        animal = self.pick(words.ANIMALS)
        return animal, f"{self.pick(animal.looks)} {animal.name}"

    def opening(self) -> str:
        """The sentence that brings in the hero."""
        hero = self.hero
        child = "girl" if hero.he == "she" else "boy"
        kind = self.pick(("little ", "kind ", "happy ", "small ", ""))
        return self.one(
            f"Once upon a time, there was a {kind}{child} named {hero.call}.",
            f"Once upon a time, there was a {kind}{child} named {hero.call}.",
            f"Once there was a {kind}{child} named {hero.call}.",
            f"{hero.call} was a {kind}{child}.",
            f"There once was a {kind}{child} called {hero.call}.",
        )

    def day(self) -> str:
        """`One morning` and the like, without the comma."""
        return self.pick(words.MORNINGS)

    def said(self, who: Person, quote: str) -> str:
        """A line of dialogue; `quote` ends with its own mark."""
        mark = quote[-1]
        verb = "asked" if mark == "?" else "said"
        if self.chance(0.5):
            return f'{who.Call} {verb}, "{quote}"'
        if mark == ".":
            quote = quote[:-1] + ","
        elif mark == "!" and self.chance(0.4):
            verb = "shouted" if len(quote) < 30 else "cried"
        return f'"{quote}" {verb} {who.call}.'


def a(noun: str) -> str:
    """The noun with `a` or `an`."""
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def tell(*sentences: str) -> str:
    """One paragraph; empty sentences are left out."""
    return " ".join([sentence for sentence in sentences if sentence])
