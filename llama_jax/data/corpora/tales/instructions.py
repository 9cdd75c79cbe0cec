"""Dialogues to learn from and prompts to answer, as pure functions of (index, split, seed).

A combination of wishes, an unkind request in its wording, and an attribute with its first
question belong to one split only.
"""

from llama_jax.config import require
from llama_jax.data.corpora.tales import asking, facts, ghost, tasks, unkind, wishes
from llama_jax.data.corpora.tales.answers import NUM_DRAWS, tell
from llama_jax.data.corpora.tales.careless import careless
from llama_jax.data.corpora.tales.dice import Dice
from llama_jax.data.corpora.tales.tasks import Task
from llama_jax.data.records import Dialogue, Prompt

VERSION = 18
"""Increase it whenever any record or short story changes."""
NUM_TRAIN, NUM_VALIDATION = 50_000, 2_000
"""Dialogues and preferences in the splits of data sets; the generators can make more."""
SOURCE = "tales"
MIX = {
    "story": 0.32,
    "again": 0.14,
    "question": 0.09,
    "chat": 0.11,
    "styled": 0.14,
    "harmless": 0.11,
    "unkind": 0.09,
}
"""Kinds of tasks, with their shares."""
CARELESS = 0.4
"""Share of demonstrations whose last answer was written without care."""
CAREFUL = ("styled",)
"""Kinds that are always written with care. Ghost attention trains on the model's own answers, so
SFT must teach it to follow instructions about style."""
_DIALOGUES, _PROMPTS, _ADVERSARIAL, _GHOSTS, _SHORT_STORIES = range(1, 6)
_CARE = 10
"""Streams of random numbers."""


def instruction(
    index: int, split: str = "train", *, kind: str | None = None, seed: int = 0
) -> Dialogue:
    """Dialogue `index` of a split: of one kind of MIX, or of all kinds by their shares.

    Its last answer is perfect for the judge. Raises InputError for an unknown split or kind.
    """
    dice = Dice(_DIALOGUES, index, split, seed)
    task = _task(dice, kind)
    answer = tasks.assistant(task.right(dice))
    return Dialogue(messages=(*task.messages, answer), source=SOURCE)


def demonstration(
    index: int, split: str = "train", *, kind: str | None = None, seed: int = 0
) -> Dialogue:
    """The same dialogue as written by an annotator: for kinds not in CAREFUL, a share CARELESS of
    the last answers is poor, see `careless`."""
    care = Dice(_CARE, index, split, seed)
    dice = Dice(_DIALOGUES, index, split, seed)
    drawn = kind or _kind(dice)
    if drawn in CAREFUL or not care.chance(CARELESS):
        return instruction(index, split, kind=kind, seed=seed)
    task = _task(dice, drawn)
    answer = tasks.assistant(careless(task, drawn, care))
    return Dialogue(messages=(*task.messages, answer), source=SOURCE)


def prompt(index: int, split: str = "train", *, kind: str | None = None, seed: int = 0) -> Prompt:
    """Prompt `index` of a split, for sampling and evaluation, distinct from the dialogues' prompts.

    `safety` is set for unkind requests. Raises InputError for an unknown split or kind.
    """
    dice = Dice(_PROMPTS, index, split, seed)
    kind = kind or _kind(dice)
    return Prompt(messages=_task(dice, kind).messages, safety=kind == "unkind", source=SOURCE)


def adversarial(index: int, split: str = "train", *, seed: int = 0) -> Prompt:
    """An unkind request without a preprompt, for context distillation (see tasks.PREPROMPTS).

    The validation split has wordings that do not occur in training.
    """
    request = unkind.draw(Dice(_ADVERSARIAL, index, split, seed))
    return Prompt(messages=(tasks.user(request.text),), safety=True, source=SOURCE)


def ghost_conversation(
    index: int, split: str = "train", *, turns: int = 4, seed: int = 0
) -> ghost.Ghost:
    """A conversation of short turns for ghost attention; 20 turns fit a context of 1,024 tokens."""
    return ghost.draw(Dice(_GHOSTS, index, split, seed), turns)


def short_story(index: int, split: str = "train", seed: int = 0) -> str:
    """A text for pretraining: a story of three to seven sentences, or a few small facts.

    Half of the stories begin with a summary of what they are about, from which a model learns to
    look back for what to tell. One text in 25 tells of something unkind, as text from the real
    world does, so that there is something to align.
    """
    dice = Dice(_SHORT_STORIES, index, split, seed)
    what = dice.random()
    if what < 0.04:
        return unkind.story(unkind.draw(dice), dice)
    if what < 0.12:
        return " ".join([dice.pick(facts.FACTS).answers[0] for _ in range(6)])
    titled = dice.chance(0.5)
    wanted = wishes.draw(dice, ending=titled and dice.chance(0.6))
    story = tell(wanted, dice.draws(NUM_DRAWS))
    return f"{asking.title(story.facts, dice)} {story.text}" if titled else story.text


def _task(dice: Dice, kind: str | None) -> Task:
    kind = kind or _kind(dice)
    require(kind in MIX, f"kind={kind!r} is unknown; kinds are {', '.join(MIX)}")
    return tasks.draw(kind, dice)


def _kind(dice: Dice) -> str:
    return dice.weighted(tuple(MIX.items()))
