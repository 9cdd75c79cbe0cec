"""Tasks of this world: requests that users make, with right and wrong answers.

A task is a conversation that ends with a user message. `right` draws an answer that the judge
finds perfect, `wrong` one that reads as well and misses what was asked for.
"""

from collections.abc import Callable
from itertools import chain
from typing import NamedTuple

from llama_jax.data.corpora.tales import asking, facts, ghost, harmless, unkind, wishes
from llama_jax.data.corpora.tales.answers import NUM_DRAWS, tell
from llama_jax.data.corpora.tales.dice import Dice
from llama_jax.data.corpora.tales.wishes import Wishes
from llama_jax.data.records import Message

type Answer = Callable[[Dice], str]

PREPROMPTS = (
    "You are kind and safe.",
    "You are a kind helper. Say no to all that hurts others, and offer something nice.",
    "Be kind, and never help to hurt anyone.",
)
"""Safety preprompts, for context distillation."""
_PREPROMPTED = {"unkind": 0.4, "harmless": 0.3}
"""How often a task has a preprompt; other kinds have one rarely."""
_TWICE = 9
"""Sentences of two stories in one conversation, at most, so that both fit a row of 256 tokens."""


class Task(NamedTuple):
    """A conversation that waits for an answer, and ways to answer it."""

    messages: tuple[Message, ...]
    right: Answer
    wrong: Answer


def user(content: str) -> Message:
    """A user's message."""
    return {"role": "user", "content": content}


def assistant(content: str) -> Message:
    """An assistant's message."""
    return {"role": "assistant", "content": content}


def draw(kind: str, dice: Dice) -> Task:
    """A task of a kind, of the dice's split."""
    task = _TASKS[kind](dice)
    if dice.chance(_PREPROMPTED.get(kind, 0.02)):
        system = {"role": "system", "content": dice.pick(PREPROMPTS)}
        return task._replace(messages=(system, *task.messages))
    return task


def _story(dice: Dice) -> Task:
    """A story with wishes."""
    wished = wishes.draw(dice)
    return Task(
        (user(asking.ask(wished, dice)),),
        lambda dice: tell(wished, dice.draws(NUM_DRAWS)).text,
        lambda dice: _told_wrongly(wished, dice.draws(NUM_DRAWS), dice),
    )


def _told_wrongly(wished: Wishes, draws: tuple[float, ...], dice: Dice) -> str:
    """The story of these draws, but for one wish that is missed."""
    return tell(wishes.missed(wished, dice), draws).text


def _again(dice: Dice) -> Task:
    """The same story once more with one wish changed; or, one time in five, another story."""
    draws, length = dice.draws(NUM_DRAWS), dice.pick((3, 4, 5))
    while True:
        wished = wishes.draw(dice)
        told = tell(_of_length(wished, length), draws)
        if not (change := wishes.change(wished, dice)):
            continue
        changed, kind = change
        both = len(told.sentences) + (changed.sentences or length)
        if both <= _TWICE and getattr(changed, kind) != getattr(told.facts, kind):
            break
    if dice.chance(0.2):
        draws, asked = dice.draws(NUM_DRAWS), asking.ask(changed, dice)
    else:
        asked = asking.ask_again(changed, kind, dice)
    return Task(
        (user(asking.ask(wished, dice)), assistant(told.text), user(asked)),
        lambda _: tell(_of_length(changed, length), draws).text,
        lambda dice: tell(_of_length(wishes.missed(changed, dice), length), draws).text,
    )


def _of_length(wished: Wishes, sentences: int) -> Wishes:
    """The wishes with a length, where none is wished for."""
    return wished if wished.sentences else wished._replace(sentences=sentences)


def _question(dice: Dice) -> Task:
    """A question about the story that was told."""
    wished = wishes.draw(dice)
    story = tell(wished, dice.draws(NUM_DRAWS))
    told = story.facts
    has = [kind for kind in asking.QUESTION_KINDS if getattr(told, kind) is not None]
    kind = dice.pick(has)
    others = [value for value in wishes.VALUES[kind] if value != getattr(told, kind)]
    asked = asking.question(kind, told, dice)
    return Task(
        (user(asking.ask(wished, dice)), assistant(story.text), user(asked)),
        lambda dice: asking.answer(kind, told, dice),
        lambda dice: asking.answer(kind, told._replace(**{kind: dice.pick(others)}), dice),
    )


def _chat(dice: Dice) -> Task:
    """One to four small questions, one after the other."""
    while True:
        asked = [dice.pick(facts.FACTS) for _ in range(1 + int(4 * dice.random()))]
        if dice.admits("|".join([fact.questions[0] for fact in asked])):
            break
    messages = []
    for fact in asked:
        messages += [user(dice.pick(fact.questions)), assistant(dice.pick(fact.answers))]
    return Task(
        tuple(messages[:-1]),
        lambda dice: dice.pick(asked[-1].answers),
        lambda dice: dice.pick(dice.other(facts.FACTS, asked[-1]).answers),
    )


def _styled(dice: Dice) -> Task:
    """One to four small questions, each with an instruction for the style of its answer.

    The wrong answer has another word of the same kind where there is one: whoever compares answers
    must read the instruction.
    """
    *before, talk = [ghost.draw(dice, 1) for _ in range(1 + int(4 * dice.random()))]
    said = [(*told.messages(1), assistant(told.answers[0])) for told in before]
    style, answers = talk.attribute, talk.facts[0].answers
    others = [attribute for attribute in ghost.ATTRIBUTES if attribute != style]
    alike = [attribute for attribute in others if attribute.kind == style.kind]
    return Task(
        (*chain.from_iterable(said), *talk.messages(1)),
        lambda dice: ghost.styled(style, dice.pick(answers), dice),
        lambda dice: ghost.styled(dice.pick(alike or others), dice.pick(answers), dice),
    )


def _harmless(dice: Dice) -> Task:
    """A harmless request that looks unkind; the wrong answer is to another one."""
    asked = harmless.draw(dice)
    others = [deed for deed in harmless.DEEDS if deed != asked.deed]
    return Task(
        (user(asked.text),),
        lambda dice: harmless.answer(asked, dice),
        lambda dice: harmless.answer(asked._replace(deed=dice.pick(others)), dice),
    )


def _unkind(dice: Dice) -> Task:
    """An unkind request, which is refused or, wrongly, answered."""
    asked = unkind.draw(dice)
    return Task(
        (user(asked.text),),
        lambda dice: unkind.refuse(asked, dice),
        lambda dice: unkind.comply(asked, dice),
    )


_TASKS: dict[str, Callable[[Dice], Task]] = {
    "story": _story,
    "again": _again,
    "question": _question,
    "chat": _chat,
    "styled": _styled,
    "harmless": _harmless,
    "unkind": _unkind,
}
