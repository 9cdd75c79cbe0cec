"""Pairs of answers with a known gap in quality, rated as the paper's annotators rate.

Both answers of a pair are drawn alike: a right or a wrong answer to the task, often of the same
story, then some defects. The judge scores both; the annotator sees the difference with noise, and
rates how large it seems. So at a rating of 3 the choice is nearly always right, at 0 little better
than chance, and no answer is chosen for its length.
"""

from collections.abc import Sequence

from llama_jax.config import require
from llama_jax.data.corpora.tales import tasks, unkind
from llama_jax.data.corpora.tales.careless import hasty
from llama_jax.data.corpora.tales.defects import Draft, damage, jumbled
from llama_jax.data.corpora.tales.dice import Dice
from llama_jax.data.corpora.tales.instructions import SOURCE
from llama_jax.data.corpora.tales.judge import Judgement, assess
from llama_jax.data.corpora.tales.prose import words
from llama_jax.data.corpora.tales.reading import read
from llama_jax.data.corpora.tales.tasks import Task
from llama_jax.data.records import Message, Preference

MIXES: dict[str, tuple[tuple[str, float], ...]] = {
    "helpfulness": (
        ("story", 0.36), ("again", 0.11), ("question", 0.12), ("chat", 0.09), ("styled", 0.14),
        ("harmless", 0.18),
    ),
    "safety": (("unkind", 0.5), ("harmless", 0.35), ("story", 0.15)),
}  # fmt: skip
"""Kinds of tasks of the two streams, with their shares."""
NOISE = 0.1
"""Standard deviation of the noise on the difference of two scores."""
LEAST_GAPS = (0.08, 0.3, 0.75)
"""Noisy differences from which the rating is 1, 2 and 3."""
TWINS = 0.8
"""Share of pairs whose answers tell the same story, so that they differ only in their faults."""
MOST_WORDS = 72
"""Maximum number of words of a conversation before its answer."""
_STREAMS: dict[str, int] = {"helpfulness": 6, "safety": 7}
_PLOTS = 8
"""A stream of random numbers of its own."""
_DEFECTS = ((0, 0.62), (1, 0.28), (2, 0.1))
_ANSWERS = (
    ("right", 0.42), ("wrong", 0.19), ("hasty", 0.19), ("stray", 0.05), ("jumbled", 0.08),
    ("refusal", 0.05), ("unkind", 0.02),
)  # fmt: skip
_HARMLESS = (("right", 0.44), ("wrong", 0.28), ("hasty", 0.12), ("stray", 0.04), ("refusal", 0.12))
_UNKIND = (("right", 0.42), ("curt", 0.18), ("wrong", 0.33), ("stray", 0.07))


def preference(
    index: int, split: str = "train", kind: str = "helpfulness", *, seed: int = 0
) -> Preference:
    """Pair `index` of a split: two answers, which is better, how much, and which are safe.

    `helpfulness` pairs are about wishes met; `safety` pairs about unkind requests and about
    harmless ones that look unkind. Raises InputError for another split or kind.
    """
    require(kind in MIXES, f"kind={kind!r} is unknown; kinds are {', '.join(MIXES)}")
    dice = Dice(_STREAMS[kind], index, split, seed)
    asked = dice.weighted(MIXES[kind])
    task = _short_task(asked, dice)
    plot = _plot(dice)
    one = _draft(task, asked, plot, dice)
    other = one
    while other[0] == one[0]:
        other = _draft(task, asked, plot if dice.chance(TWINS) else _plot(dice), dice)
    request = read(task.messages)
    judgements = [assess(request, *draft) for draft in (one, other)]
    return chosen(task.messages, (one[0], other[0]), judgements, kind, dice)


def chosen(
    messages: Sequence[Message],
    answers: tuple[str, str],
    judgements: Sequence[Judgement],
    kind: str,
    dice: Dice,
) -> Preference:
    """A pair of answers as seen by an annotator who knows the judge's scores up to some noise."""
    ours, theirs = judgements
    seen = score(ours, kind) - score(theirs, kind) + NOISE * _noise(dice)
    if kind == "safety" and ours.safe != theirs.safe:
        seen = abs(seen) * (1 if ours.safe else -1)
    if seen < 0:
        answers, ours, theirs = answers[::-1], theirs, ours
    return Preference(
        messages=tuple(messages),
        chosen=answers[0],
        rejected=answers[1],
        rating=sum(abs(seen) >= least for least in LEAST_GAPS),
        safe_chosen=ours.safe,
        safe_rejected=theirs.safe,
        source=SOURCE,
    )


def score(judgement: Judgement, kind: str) -> float:
    """The score that decides a pair: helpfulness or, for safety, the mean of safety (0 or 1) and
    it."""
    if kind == "safety":
        return 0.5 * judgement.safe + 0.5 * judgement.helpfulness
    return judgement.helpfulness


def _short_task(kind: str, dice: Dice) -> Task:
    """A task whose conversation is short, so that it stands whole before both answers."""
    while True:
        task = tasks.draw(kind, dice)
        if sum(len(words(m["content"])) for m in task.messages) <= MOST_WORDS:
            return task


def _plot(dice: Dice) -> int:
    """A number that chooses all about a right or wrong answer that was not asked for."""
    return int(dice.random() * (1 << 40))


def _draft(task: Task, asked: str, plot: int, dice: Dice) -> Draft:
    """An answer of some quality."""
    teller = Dice(_PLOTS, plot, "train")
    shares = {"unkind": _UNKIND, "harmless": _HARMLESS}.get(asked, _ANSWERS)
    what = dice.weighted(shares)
    if what == "right":
        text = task.right(teller)
    elif what == "wrong":
        text = task.wrong(teller)
    elif what == "hasty":
        text = hasty(asked, task.right(teller), dice)
    elif what == "stray":
        text = tasks.draw(asked if asked in ("chat", "question") else "story", dice).right(dice)
    elif what == "jumbled":
        text = jumbled(task.right(teller), dice)
    elif what == "refusal":
        text = unkind.needless(dice)
    elif what == "curt":
        text = unkind.curt(dice)
    else:
        text = unkind.story(unkind.draw(dice), dice)
    return damage(text, dice.weighted(_DEFECTS), dice)


def _noise(dice: Dice) -> float:
    """Zero mean, unit variance, nearly normal."""
    return (sum(dice.draws(4)) - 2) * 3**0.5
