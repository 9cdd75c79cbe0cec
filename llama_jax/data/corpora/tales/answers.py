"""Short stories of three to seven sentences that meet given wishes."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

from llama_jax.data.corpora.tales import arcs
from llama_jax.data.corpora.tales.arcs import ARCS, Arc
from llama_jax.data.corpora.tales.teller import a, person
from llama_jax.data.corpora.tales.wishes import (
    ANIMALS,
    GIRLS,
    MOODS,
    NAMES,
    PLACES,
    TOYS,
    Facts,
    Wishes,
    suits,
)

NUM_DRAWS = 23
"""Random numbers that a story takes, whatever its wishes."""
_ANIMALS, _TOYS, _PLACES = tuple(ANIMALS), tuple(TOYS), tuple(PLACES)
_FREE_LENGTHS = (3, 3, 4, 4, 5, 5, 6, 7)
_FREE_MOODS = ("happy", "happy", "happy", "funny", "funny", "sad", "scary", "quiet")
_PARENTS = ("mom", "dad", "grandma", "grandpa")
_ARCS = {
    (mood, animal, toy): tuple(
        arc
        for arc in ARCS
        if arc.mood == mood
        and (not animal or "animal" in arc.cast)
        and (not toy or "toy" in arc.cast)
    )
    for mood in MOODS
    for animal in (False, True)
    for toy in (False, True)
}
"""Arcs of a mood that have an animal, if it is asked for, and a toy, if it is."""

type Pick = Callable[[Sequence], Any]


class Story(NamedTuple):
    """A story and its contents."""

    sentences: tuple[str, ...]
    facts: Facts

    @property
    def text(self) -> str:
        """The sentences on one line."""
        return " ".join(self.sentences)


def tell(wishes: Wishes, draws: Sequence[float]) -> Story:
    """The story that meets the wishes; `draws`, NUM_DRAWS numbers in [0, 1), determine the rest.

    The same draws with one wish changed give the same story except for that wish and its
    consequences.
    """
    pick = partial(_pick, iter(draws))
    facts, arc = _facts(wishes, pick)
    slots = _slots(facts, pick)
    opening, going = pick(arcs.OPENS[arc.owned]), pick(arcs.GOINGS[arc.owned])
    n = facts.sentences
    lead = pick(arcs.LEADS if n < 5 else arcs.LATER_LEADS)
    event, detail, turn, result = (pick(part) for part in arc[3:7])
    parts = [opening, lead + event + "."]
    # A longer story adds its parts in this order: the turn, the way there, a detail, the result.
    if n >= 5:
        parts.insert(1, going)
    if n >= 6:
        parts.append(detail)
    if n >= 4:
        parts.append(turn)
    if n >= 7:
        parts.append(result)
    parts.append(_close(arc, facts.ending, pick))
    return Story(tuple([part.format_map(slots) for part in parts]), facts)


def _pick(draws: Iterator[float], options: Sequence) -> Any:
    return options[int(next(draws) * len(options))]


def _facts(wishes: Wishes, pick: Pick) -> tuple[Facts, Arc]:
    """What the story will have, and the arc that it follows."""
    name, animal, toy, place, mood, length = (
        pick(options) for options in (NAMES, _ANIMALS, _TOYS, _PLACES, _FREE_MOODS, _FREE_LENGTHS)
    )
    if place == wishes.ending:
        place = _PLACES[_PLACES.index(place) - 1]
    mood = wishes.mood or (mood if suits(mood, wishes.ending) else "happy")
    arc = pick(_ARCS[mood, wishes.animal is not None, wishes.toy is not None])
    facts = Facts(
        hero=wishes.hero or name,
        animal=(wishes.animal or animal) if "animal" in arc.cast else None,
        toy=(wishes.toy or toy) if "toy" in arc.cast else None,
        place=wishes.place or place,
        mood=mood,
        ending=wishes.ending,
        sentences=wishes.sentences or length,
    )
    return facts, arc


def _slots(facts: Facts, pick: Pick) -> dict[str, str]:
    """The words for the slots of an arc's sentences; see `arcs`."""
    hero = person(facts.hero, facts.hero in GIRLS)
    slots = {
        "h": hero.call, "he": hero.he, "him": hero.him, "his": hero.his,
        "He": hero.He, "His": hero.His, "kid": "girl" if hero.he == "she" else "boy",
        "parent": pick(_PARENTS), "day": pick(arcs.DAYS[facts.mood]),
        "at": PLACES[facts.place].at, "to": PLACES[facts.place].to,
    }  # fmt: skip
    look, feature, play = pick(range(4)), pick(range(4)), pick(range(3))
    if facts.animal:
        animal = ANIMALS[facts.animal]
        young = f"{animal.looks[look]} {animal.name}"
        slots |= {
            "an": a(young), "young": young, "animal": animal.name,
            "sound": animal.sound, "moved": animal.moved, "food": animal.food,
        }  # fmt: skip
    if facts.toy:
        toy = TOYS[facts.toy]
        thing = f"{toy.looks[feature]} {toy.name}"
        slots |= {"toy": toy.name, "thing": thing, "a_thing": a(thing), "played": toy.played[play]}
    if facts.ending and facts.ending in PLACES:
        end = PLACES[facts.ending]
        slots |= {"end_at": end.at, "end_to": end.to}
    return slots


def _close(arc: Arc, ending: str | None, pick: Pick) -> str:
    """The last sentence: the arc's own, or the end that is wished for in the arc's mood."""
    close, lead = pick(arc.close), pick(("In the end", "At last"))
    way = pick(arcs.ENDS.get(ending or "", arcs.ENDS["place"]))
    tail = pick(arcs.TAILS[arc.mood])
    return f"{lead}, {way}, {tail}." if ending else close
