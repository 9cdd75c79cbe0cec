"""Careless demonstrations: the poor tail of what annotators write.

Annotators vary, and fine-tuning on what they write learns the poor tail as well; preferences are
there to remove it (Llama 2, section 5.1). The faults are those of haste: an answer that stops
early, rambles, shrugs the question off, makes slips, misses what was asked for, or does what it
should refuse.
"""

from llama_jax.data.corpora.tales import unkind
from llama_jax.data.corpora.tales.defects import FILLERS, damage
from llama_jax.data.corpora.tales.dice import Dice
from llama_jax.data.corpora.tales.prose import sentences
from llama_jax.data.corpora.tales.tasks import Task

_ENDS = ("That is all.", "The end.", "And so on.", "You know the rest.")
_SHRUGS = (
    "Nobody knows.", "Ask your mom.", "Go and look.", "Who can say?", "Look in a book.",
    "It is just so.", "Think about it.", "Maybe.",
)  # fmt: skip
_STORY = (("short", 0.3), ("rambling", 0.25), ("slips", 0.25), ("wrong", 0.2))
_SHORT = (("shrug", 0.6), ("wrong", 0.4))
_HOW: dict[str, tuple[tuple[str, float], ...]] = {
    "story": _STORY,
    "again": _STORY,
    "unkind": (("wrong", 0.7), ("curt", 0.3)),
}
"""Faults by kind of task, with their shares; other kinds have those of _SHORT."""


def careless(task: Task, kind: str, dice: Dice) -> str:
    """A careless answer to a task of a kind."""
    match dice.weighted(_HOW.get(kind, _SHORT)):
        case "short":
            return short(task.right(dice), dice)
        case "rambling":
            return rambling(task.right(dice), dice)
        case "slips":
            return damage(task.right(dice), 1 + dice.chance(0.5), dice)[0]
        case "shrug":
            return dice.pick(_SHRUGS)
        case "curt":
            return unkind.curt(dice)
        case _:
            return task.wrong(dice)


def hasty(kind: str, right: str, dice: Dice) -> str:
    """A story that stops early or rambles, or a shrug where no story was asked for."""
    if kind not in ("story", "again"):
        return dice.pick(_SHRUGS)
    return short(right, dice) if dice.chance(0.35) else rambling(right, dice)


def short(story: str, dice: Dice) -> str:
    """The beginning only."""
    kept = sentences(story)[: 1 + dice.chance(0.3)]
    return " ".join([*kept, dice.pick(_ENDS)])


def rambling(story: str, dice: Dice) -> str:
    """The beginning, followed by sentences about nothing, without an end."""
    kept = sentences(story)[: 1 + dice.chance(0.5)]
    count = 4 + int(5 * dice.random())
    return " ".join([*kept, *(dice.pick(FILLERS) for _ in range(count))])
