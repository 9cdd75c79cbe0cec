"""Rows that hold two or more answers to compare: our own, TRL, UltraFeedback, HelpSteer2."""

import itertools
import re
from collections.abc import Iterator
from typing import Any

from llama_jax.config import InputError
from llama_jax.data.formats.hh import is_marked
from llama_jax.data.formats.items import (
    TIE,
    Drop,
    Item,
    Row,
    entries,
    flag,
    message,
    must,
    number,
    parse_messages,
    rating_of,
    text,
    turns,
    whole,
)
from llama_jax.data.records import Dialogue, Message, Preference, Prompt

_DIFFER = Drop("the conversations differ before the two answers")
_TURN = re.compile(r"\n?<extra_id_1>(User|Assistant)\n")
_LOUDEST = 1e6


def has_own_answers(row: Row) -> bool:
    """Whether the answers are texts, as in our records, and not lists of messages."""
    return isinstance(row.get("chosen"), str)


def own(row: Row) -> Iterator[Item]:
    """A preference in our own format."""
    rated, margin = row.get("rating") is not None, row.get("margin") is not None
    yield Preference(
        messages=tuple(parse_messages(row.get("messages"), "messages")),
        chosen=text(row, "chosen"),
        rejected=text(row, "rejected"),
        rating=whole(row, "rating", 0, 3) if rated else None,
        margin=number(row, "margin", 0, _LOUDEST) if margin else None,
        safe_chosen=flag(row, "safe_chosen"),
        safe_rejected=flag(row, "safe_rejected"),
    )


def is_trl(row: Row) -> bool:
    """Whether a row with two answers is neither in hh-rlhf's format nor scored."""
    return not is_marked(row) and row.get("score_chosen") is None


def trl(row: Row) -> Iterator[Item]:
    """TRL's preference, with a prompt of its own or with one that both sides begin with."""
    pair = _pair(row)
    if isinstance(pair, Drop):
        yield pair
        return
    before, chosen, rejected = pair
    margin = number(row, "margin", 0, _LOUDEST) if row.get("margin") is not None else None
    yield Preference(messages=before, chosen=chosen, rejected=rejected, margin=margin)


def binarized(row: Row) -> Iterator[Item]:
    """UltraFeedback reduced to two answers: their scores give the rating."""
    pair = _pair(row)
    if isinstance(pair, Drop):
        yield pair
        return
    better = number(row, "score_chosen", 0, 10)
    worse = number(row, "score_rejected", 0, 10)
    if better == worse:
        yield TIE
    elif better < worse:
        yield Drop("the rejected answer has the higher score")
    else:
        before, chosen, rejected = pair
        yield Preference(
            messages=before, chosen=chosen, rejected=rejected, rating=rating_of(better - worse)
        )


def ultrafeedback(row: Row) -> Iterator[Item]:
    """Every pair of UltraFeedback's scored answers to an instruction."""
    scored = yield from _scored(row)
    if len(scored) < 2:
        yield Drop("less than two scored answers")
    for (better, chosen), (worse, rejected) in itertools.combinations(scored, 2):
        if better == worse:
            yield TIE
            continue
        yield Preference(
            messages=_instruction(row),
            chosen=chosen,
            rejected=rejected,
            rating=rating_of(better - worse),
        )


def best_of_ultrafeedback(row: Row) -> Iterator[Item]:
    """The instruction with its answer of the highest score."""
    scored = yield from _scored(row)
    if not scored:
        yield Drop("no scored answer")
        return
    yield Dialogue(messages=(*_instruction(row), message("assistant", scored[0][1])))


def instructions(row: Row) -> Iterator[Item]:
    """UltraFeedback's instruction alone."""
    yield Prompt(messages=_instruction(row))


def helpsteer(row: Row) -> Iterator[Item]:
    """HelpSteer2: strength from -3 (response_1 is much better) to 3 (response_2 is)."""
    strength = whole(row, "preference_strength", -3, 3)
    first, second = text(row, "response_1"), text(row, "response_2")
    if strength == 0:
        yield TIE
        return
    chosen, rejected = (first, second) if strength < 0 else (second, first)
    yield Preference(
        messages=_helpsteer_turns(text(row, "prompt")),
        chosen=chosen,
        rejected=rejected,
        rating=abs(strength),
    )


def _pair(row: Row) -> tuple[tuple[Message, ...], str, str] | Drop:
    """The shared messages and the two answers.

    Answers that are whole conversations share their messages but the last; a prompt beside them
    is a copy of those. No prompt is ever guessed from characters that two texts share.
    """
    chosen, rejected = turns(row, "chosen", "assistant"), turns(row, "rejected", "assistant")
    if max(len(chosen), len(rejected)) > 1:
        before, other = chosen[:-1], rejected[:-1]
        if before != other:
            return _DIFFER
    elif row.get("prompt") is not None:
        before = turns(row, "prompt", "user")
    else:
        raise InputError(
            "chosen and rejected hold answers without what they answer; add a prompt, or make "
            "each a list of messages that begins with it"
        )
    for side, answer in (("chosen", chosen[-1]), ("rejected", rejected[-1])):
        spoken = answer["role"] == "assistant"
        must(spoken, f"the last message of {side} must be the assistant's", answer["role"])
    return tuple(before), chosen[-1]["content"], rejected[-1]["content"]


def _scored(row: Row) -> Iterator[Drop]:
    """Yields a Drop for each answer without a score; returns the others, best first."""
    scored: list[tuple[float, str]] = []
    for answer in entries(row, "completions"):
        must(isinstance(answer, dict), "a completion must be an object", answer)
        if answer.get("overall_score") in (None, "N/A"):
            yield Drop("an answer has no score")
        else:
            scored.append((number(answer, "overall_score", 0, 10), text(answer, "response")))
    return sorted(scored, key=lambda pair: -pair[0])


def _instruction(row: Row) -> tuple[Message, ...]:
    return (message("user", text(row, "instruction")),)


def _helpsteer_turns(prompt: str) -> tuple[Message, ...]:
    r"""The first question, then turns that begin with `<extra_id_1>Assistant\n` and `...User\n`."""
    first, *rest = _TURN.split(prompt)
    said: list[Any] = [message("user", first)]
    for speaker, words in zip(rest[::2], rest[1::2], strict=True):
        said.append(message(speaker.lower(), words))
    return tuple(said)
