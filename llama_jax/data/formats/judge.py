"""The rules on which records are kept, the same for every format; `table` lists them."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from llama_jax.data.chat import check_text
from llama_jax.data.formats.items import Drop, Item, Note, message
from llama_jax.data.records import Dialogue, Message, Preference, Prompt, Record, check_messages

UNANSWERED = Note("a question at the end that nobody answered was cut off")
EMPTY = Drop("an answer is empty")


def judge(item: Item, kind: str, where: str, lenient: bool) -> Iterator[Record | Drop | Note]:
    """A reader's item as a record of the kind, or the reason why there is none, and notes on
    changes.

    Raises InputError that starts with `where`.
    """
    if isinstance(item, (Drop, Note)):
        yield item
        return
    messages = [m for m in item.messages if m["role"] != "system" or m["content"].strip()]
    if isinstance(item, Preference) and kind == "dialogue":
        messages.append(message("assistant", item.chosen))
        lenient = True  # of a pair, an empty answer is dropped
    for number, entry in enumerate(messages):
        here = f"{where}, message {number}"
        check_text(entry["content"], here, answer=entry["role"] == "assistant")
    if kind == "dialogue":
        yield from _dialogue(messages, item.source, where, lenient)
    elif kind == "prompt":
        given = item if isinstance(item, Prompt) else Prompt(messages=())
        prompt = replace(given, messages=tuple(messages), source=item.source)
        yield _prompt(prompt, where, lenient)
    else:
        assert isinstance(item, Preference), "the table gives preferences for this kind"
        yield _preference(item, messages, where, lenient)


def _dialogue(
    messages: Sequence[Message], source: str, where: str, lenient: bool
) -> Iterator[Dialogue | Drop | Note]:
    unanswered = bool(messages) and messages[-1]["role"] == "user"
    if unanswered:
        messages = messages[:-1]
    answers = [m for m in messages if m["role"] == "assistant"]
    if not answers:
        yield Drop("no answer")
    elif lenient and _has_empty(answers):
        yield EMPTY
    else:
        checked = check_messages(messages, "assistant", where)
        if not any(answer.get("train", True) for answer in answers):
            yield Drop("no answer is trained on")
            return
        if unanswered:
            yield UNANSWERED
        yield Dialogue(messages=checked, source=source)


def _prompt(prompt: Prompt, where: str, lenient: bool) -> Prompt | Drop:
    messages, answer = prompt.messages, prompt.answer
    if messages and messages[-1]["role"] == "assistant":
        messages, answer = messages[:-1], messages[-1]["content"]
    if not any(m["role"] == "user" for m in messages):
        return Drop("no question")
    if lenient and _has_empty(messages):
        return EMPTY
    return replace(prompt, messages=check_messages(messages, "user", where), answer=answer)


def _preference(
    pair: Preference, messages: Sequence[Message], where: str, lenient: bool
) -> Preference | Drop:
    check_text(pair.chosen, f"{where}, chosen", answer=True)
    check_text(pair.rejected, f"{where}, rejected", answer=True)
    for name, answer in (("chosen", pair.chosen), ("rejected", pair.rejected)):
        if not answer.strip():
            return Drop(f"the {name} answer is empty")
    if pair.chosen.strip() == pair.rejected.strip():
        return Drop("the two answers are the same")
    if lenient and _has_empty(messages):
        return EMPTY
    return replace(pair, messages=check_messages(messages, "user", where))


def _has_empty(messages: Sequence[Message]) -> bool:
    return any(m["role"] == "assistant" and not m["content"].strip() for m in messages)
