"""Ghost attention: instructions for a whole conversation, and checks that answers keep them.

An attribute is asked for in the first turn and must still hold in the twentieth (Llama 2, section
3.3). Every attribute here can be checked by a program in any text.
"""

# ruff: noqa: E501 (one attribute with its wordings to a line reads best)

import re
from typing import NamedTuple

from llama_jax.data.corpora.tales.dice import Dice
from llama_jax.data.corpora.tales.facts import FACTS, Fact
from llama_jax.data.corpora.tales.prose import sentences, words
from llama_jax.data.corpora.tales.teller import a
from llama_jax.data.corpora.tales.wishes import ANIMALS, NAMES

ENDING_WORDS = ("splash", "boom", "hooray", "meow", "tick", "bingo", "zoom", "pop")
OPENING_WORDS = ("Ahoy", "Listen", "Look", "Aha", "Hey", "Psst")


class Attribute(NamedTuple):
    """Something that every answer of a conversation must have."""

    kind: str
    """One of KINDS."""
    word: str = ""
    """Its word, animal or name, if it has one."""


_WORDS = {
    "ends": ENDING_WORDS,
    "begins": OPENING_WORDS,
    "mentions": tuple(ANIMALS),
    "name": NAMES,
    "two": ("",),
    "asks": ("",),
}
KINDS = {
    "ends": 0.18, "begins": 0.28, "mentions": 0.18, "name": 0.18, "two": 0.09, "asks": 0.09
}  # fmt: skip
"""Kinds of attributes, with their shares: the first word of an answer needs the most examples."""
ATTRIBUTES = tuple(Attribute(kind, word) for kind, of_kind in _WORDS.items() for word in of_kind)

_WORDINGS = {
    "ends": ("Always end your answer with the word {word}.", "End every answer with the word {word}.", "Last word: {word}."),
    "begins": ("Always begin your answer with the word {word}.", "Begin every answer with the word {word}.", "First word: {word}."),
    "mentions": ("Always say something about {a_word}.", "Talk about {a_word} in every answer.", "Always about {a_word}."),
    "name": ("Always call me {word}.", "From now on, call me {word}.", "My name: {word}."),
    "two": ("Always answer in two sentences.", "Use two sentences in every answer.", "Always two sentences."),
    "asks": ("Always end with a question.", "Ask me a question at the end of every answer.", "Always ask back."),
}  # fmt: skip
"""How attributes are asked for; the last wording of each is the shortened one."""
_FIND = tuple(
    (kind, re.compile(re.escape(wording).replace(r"\{word\}", r"(\w+)").replace(r"\{a_word\}", r"an? (\w+)")))
    for kind, wordings in _WORDINGS.items()
    for wording in wordings
)  # fmt: skip

_ADDED = {
    "ends": ("{answer} {Word}!",),
    "begins": ("{Word}! {answer}",),
    "mentions": ("{answer} {A_word} knows that too.", "{answer} That is what {a_word} told me.", "{answer} Ask {a_word}!"),
    "name": ("Yes, {word}. {answer}", "{answer} I hope that helps, {word}.", "{answer} That is so, {word}."),
    "two": ("{answer} Every child knows that.", "{answer} I am sure of it.", "{answer} That is all."),
    "asks": ("{answer} What do you think?", "{answer} Did you know that?", "{answer} Do you like that?"),
}  # fmt: skip


class Ghost(NamedTuple):
    """A conversation in which every answer keeps what the first turn asks for."""

    attribute: Attribute
    instruction: str
    facts: tuple[Fact, ...]
    questions: tuple[str, ...]
    answers: tuple[str, ...]

    def messages(self, turns: int, *, every: bool = False) -> tuple[dict[str, str], ...]:
        """The first turns, the last one without its answer.

        The instruction is put before the first question, or before `every` one.
        """
        out = []
        for turn in range(turns):
            question = self.questions[turn]
            asked = f"{self.instruction} {question}" if every or turn == 0 else question
            out.append({"role": "user", "content": asked})
            out.append({"role": "assistant", "content": self.answers[turn]})
        return tuple(out[:-1])


def keeps(attribute: Attribute, answer: str) -> bool:
    """Whether an answer keeps the attribute."""
    kind, word = attribute
    said = words(answer)
    if not said:
        return False
    if kind == "ends":
        return said[-1].lower() == word.lower()
    if kind == "begins":
        return said[0].lower() == word.lower()
    if kind == "mentions":
        return not {word, f"{word}s"}.isdisjoint(x.lower() for x in said)
    if kind == "name":
        return word in said
    if kind == "two":
        return len(sentences(answer)) == 2
    return answer.rstrip().rstrip('"').endswith("?")


def find(text: str) -> tuple[Attribute | None, str]:
    """The attribute that a message asks for, if any, and the message without that sentence."""
    for kind, pattern in _FIND:
        if found := pattern.search(text):
            rest = f"{text[: found.start()]}{text[found.end() :]}".strip()
            return Attribute(kind, *found.groups()), rest
    return None, text


def instruction(attribute: Attribute, dice: Dice) -> str:
    """The attribute in words; shortened half of the time, as in the paper."""
    *long, short = _WORDINGS[attribute.kind]
    wording = short if dice.chance(0.5) else dice.pick(long)
    return wording.format_map(_slots(attribute))


def styled(attribute: Attribute, answer: str, dice: Dice) -> str:
    """A short answer, of one or two sentences, so that it keeps the attribute."""
    if attribute.kind == "two" and keeps(attribute, answer):
        return answer
    return dice.pick(_ADDED[attribute.kind]).format(answer=answer, **_slots(attribute))


def _slots(attribute: Attribute) -> dict[str, str]:
    word = attribute.word
    a_word = a(word) if word else ""
    return {
        "word": word,
        "Word": word.capitalize(),
        "a_word": a_word,
        "A_word": a_word.capitalize(),
    }


def draw(dice: Dice, turns: int) -> Ghost:
    """A conversation of this many turns; its attribute and first question belong to the split."""
    while True:
        kind = dice.weighted(tuple(KINDS.items()))
        attribute, first = Attribute(kind, dice.pick(_WORDS[kind])), dice.pick(FACTS)
        if dice.admits(f"{attribute.kind}|{attribute.word}|{first.questions[0]}"):
            break
    facts = [first]
    while len(facts) < turns:
        fact = dice.pick(FACTS)
        if fact not in facts or turns > len(FACTS):
            facts.append(fact)
    questions = tuple(dice.pick(fact.questions) for fact in facts)
    answers = tuple(styled(attribute, dice.pick(fact.answers), dice) for fact in facts)
    return Ghost(attribute, instruction(attribute, dice), tuple(facts), questions, answers)
