"""Wishes that a story can meet: a hero, an animal, a toy, a place, a mood, an end, a length.

The words of this module are all that a wish can name; `asking` puts wishes into sentences,
`answers` tells stories that meet them, `reading` finds them in text again.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

from llama_jax.data.corpora.tales import words
from llama_jax.data.corpora.tales.dice import HOLD_OUT, Dice
from llama_jax.data.corpora.tales.prose import word_set
from llama_jax.data.corpora.tales.words import Place

GIRLS, BOYS = frozenset(words.GIRLS), frozenset(words.BOYS)
NAMES = (*words.GIRLS, *words.BOYS)
ANIMALS = {animal.name: animal for animal in words.ANIMALS}
TOYS = {toy.name: toy for toy in words.TOYS}
PLACES: dict[str, Place] = {place.at.split()[-1]: place for place in words.PLACES}
"""By their nouns: garden, park, beach, ..."""

MOODS: dict[str, frozenset[str]] = {
    "happy": word_set("happy happily smiled smile smiling glad joy proud hooray cheered"),
    "sad": word_set("sad sadly cried cry crying tears tear alone lonely missed wept"),
    "funny": word_set("funny silly laughed laugh laughing giggled giggle joke"),
    "scary": word_set("scary scared afraid dark shook shaking screamed fear shadow storm"),
    "quiet": word_set("quiet quietly calm soft softly gently slowly peaceful silent"),
}
"""Moods, and the words by which a story shows them."""

ENDINGS: dict[str, frozenset[str]] = {
    "hug": word_set("hug hugged hugs"),
    "song": word_set("song sang songs"),
    "dance": word_set("dance danced dancing"),
    "nap": word_set("nap naps asleep slept"),
    "cake": word_set("cake cakes"),
    "rainbow": word_set("rainbow rainbows"),
    "kiss": word_set("kiss kissed kisses"),
}
"""Endings of a story, and the words that show them; a story can also end at a place."""
MERRY = ("dance", "cake")
"""Endings that suit neither a sad nor a scary story."""

LENGTHS = {3: "three", 4: "four", 5: "five", 6: "six", 7: "seven"}
"""Numbers of sentences of a story."""

VALUES: dict[str, tuple] = {
    "hero": NAMES,
    "animal": tuple(ANIMALS),
    "toy": tuple(TOYS),
    "place": tuple(PLACES),
    "mood": tuple(MOODS),
    "ending": (*ENDINGS, *ENDINGS, *PLACES),
    "sentences": tuple(LENGTHS),
}
"""All possible wishes, by kind."""

_COUNTS = ((1, 0.2), (2, 0.4), (3, 0.3), (4, 0.1))
_OTHER_KINDS = ("animal", "toy", "place", "mood", "ending", "sentences")


class Wishes(NamedTuple):
    """The wishes of a request; None for what was not asked."""

    hero: str | None = None
    animal: str | None = None
    toy: str | None = None
    place: str | None = None
    mood: str | None = None
    ending: str | None = None
    """One of ENDINGS or, for the place that a story ends at, of PLACES."""
    sentences: int | None = None

    def items(self) -> Iterator[tuple[str, Any]]:
        """The wishes that are set, by kind."""
        return ((k, v) for k, v in zip(self._fields, self, strict=True) if v is not None)

    @property
    def combination(self) -> str:
        """Equal for equal wishes; decides the split into training and validation."""
        return "|".join([f"{kind}={value}" for kind, value in self.items()])


class Facts(NamedTuple):
    """Properties of a story, one for each kind of wish; None for what it lacks."""

    hero: str
    animal: str | None
    toy: str | None
    place: str
    mood: str
    ending: str | None
    sentences: int


def suits(mood: str | None, ending: str | None) -> bool:
    """Whether a story of this mood can end like that."""
    return mood not in ("sad", "scary") or ending not in MERRY


def draw(dice: Dice, *, ending: bool = False) -> Wishes:
    """One to four wishes that belong to the split and can be met together.

    ending: whether one of them must be for an ending; without, one in four has such a wish.
    """
    while True:
        count = dice.weighted(_COUNTS)
        kinds = ["hero"] if dice.chance(0.75) else []
        kinds += ["ending"] if ending else []
        while len(kinds) < count:
            kind = dice.pick(_OTHER_KINDS)
            if kind not in kinds:
                kinds.append(kind)
        wishes = Wishes(**{kind: dice.pick(VALUES[kind]) for kind in kinds})
        if _sound(wishes) and dice.admits(wishes.combination):
            return wishes


def change(wishes: Wishes, dice: Dice) -> tuple[Wishes, str] | None:
    """The wishes with one of them changed or added, and its kind; None if no attempt succeeded.

    The changed wishes must belong to the same split, which few or none may.
    """
    for _ in range(4 * HOLD_OUT):
        kind = dice.pick(("hero", "hero", *_OTHER_KINDS))
        changed = wishes._replace(**{kind: dice.pick(VALUES[kind])})
        if changed != wishes and _sound(changed) and dice.admits(changed.combination):
            return changed, kind
    return None


def missed(wishes: Wishes, dice: Dice) -> Wishes:
    """The wishes with one of them misunderstood: changed to another value, or forgotten."""
    kind, meant = dice.pick(tuple(wishes.items()))
    while True:
        wrong: Any = None if kind == "ending" else dice.other(VALUES[kind], meant)
        other = wishes._replace(**{kind: wrong})
        if _sound(other):
            return other


def _sound(wishes: Wishes) -> bool:
    """Whether the wishes do not contradict each other."""
    return suits(wishes.mood, wishes.ending) and (
        wishes.ending is None or wishes.ending != wishes.place
    )
