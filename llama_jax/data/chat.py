"""The Llama 2 chat template: conversations to token ids, exactly as Meta's `chat_completion`.

A finished pair of turns is BOS, `[INST] {user} [/INST] {answer} `, EOS, encoded on its own; a user
turn that waits for its answer is BOS, `[INST] {user} [/INST]`. Texts are stripped; the space after
an answer stays, as a token that the answer ends with. A system text stands in front of the first
user text: `<<SYS>>\n{system}\n<</SYS>>\n\n{user}` (meta-llama/llama, llama/generation.py).

Question and answer are encoded apart and spliced. No piece of a Llama vocabulary reaches from `]`
into the text behind it, so these are the ids of the whole string, and which tokens an answer has
is known without searching for the template in ids. The four tags are ordinary text, not control
ids: a message that holds one could pass for another turn and is refused.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

from llama_jax.config import require
from llama_jax.data.records import Message, check_messages
from llama_jax.data.tokenizer import Tokenizer

VERSION = 1
"""Increase it whenever a conversation gets other ids: it is part of prepared data's fingerprint."""
TAGS = ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>")
JINJA = (
    "{% set system = messages[0]['content'] if messages[0]['role'] == 'system' else None %}"
    "{% set turns = messages if system is none else messages[1:] %}"
    "{% for message in turns %}"
    "{% if message['role'] != ('assistant' if loop.index0 % 2 else 'user') %}"
    "{{ raise_exception('After a system text, user and assistant take turns.') }}{% endif %}"
    "{% set text = message['content'] %}"
    "{% if loop.first and system is not none %}"
    "{% set text = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + text %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + text.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + text.strip() + ' ' + eos_token }}{% endif %}"
    "{% endfor %}"
)
"""The template for other programs that read it with a model's files, such as transformers,
llama.cpp."""

_PAIR = re.compile(r"\[INST\](.*?)\[/INST\](.*?)(?=\[INST\]|\Z)", re.DOTALL)
_SYSTEM = re.compile(r"<<SYS>>\n?(.*?)\n?<</SYS>>(?:\n\n|\s*)(.*)", re.DOTALL)


class Encoded(NamedTuple):
    """A conversation as tokens."""

    ids: list[int]
    trained: list[bool]
    """Whether each id belongs to an answer with loss, EOS included."""
    dropped_turns: int = 0
    """Number of oldest pairs of turns that did not fit."""


class _Turn(NamedTuple):
    user: str
    answer: str | None
    train: bool


def encode_dialogue(
    tokenizer: Tokenizer, messages: Sequence[Message], *, where: str = "dialogue"
) -> tuple[list[int], list[bool]]:
    """Token ids of a conversation and, for each of them, whether it is trained on.

    Trained are the tokens of the assistant's messages, including the space and EOS after them,
    except messages with `train` false. A user message at the end waits for its answer.

    Raises InputError that names `where` and the message: unknown roles or roles out of turn, an
    empty answer, a tag of the template or a lone surrogate in a text.
    """
    encoded = encode_within(tokenizer, messages, None, where=where)
    assert encoded is not None
    return encoded.ids, encoded.trained


def encode_prompt(
    tokenizer: Tokenizer, messages: Sequence[Message], *, where: str = "prompt"
) -> list[int]:
    """Token ids of a conversation that ends with a user message; InputError as encode_dialogue."""
    check_messages(messages, "user", where)
    return encode_dialogue(tokenizer, messages, where=where)[0]


def encode_answer(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids that follow a prompt: the answer, the space after it, EOS."""
    return tokenizer.encode(_answer(tokenizer, text), eos=True)


def encode_beginning(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of an answer that may go on: without the space and EOS after it."""
    return tokenizer.encode(_begun(tokenizer, text))


def decode_answer(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """The text of an answer, stripped: what its ids spell before the first EOS."""
    ids = list(ids)
    end = ids.index(tokenizer.eos_id) if tokenizer.eos_id in ids else len(ids)
    return tokenizer.decode(ids[:end]).strip()


def render(messages: Sequence[Message], *, where: str = "dialogue") -> list[tuple[str, bool]]:
    """The texts that encode_dialogue encodes, and whether each is trained on.

    `<s>` and `</s>` stand for BOS and EOS: this is for people, not for a tokenizer. Raises as
    encode_dialogue does.
    """
    system, turns = _split(check_texts(messages, where))
    parts = []
    for number, turn in enumerate(turns):
        user = turn.user if number or system is None else _fold(system, turn.user)
        parts.append((f"<s>{_prompt(user)}", False))
        if turn.answer is not None:
            parts.append((f" {turn.answer.strip()} </s>", turn.train))
    return parts


def encode_within(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    limit: int | None,
    *,
    where: str = "dialogue",
) -> Encoded | None:
    """A conversation without its oldest turns, as many as it takes to fit `limit` tokens.

    The system text moves to the first turn that is left. None if the last turn alone, with the
    system text, does not fit. Raises InputError as encode_dialogue does.
    """
    system, turns = _split(check_texts(messages, where))
    later = _encode(tokenizer, turns)
    rest = sum(len(prompt) + len(answer) for prompt, answer in later)
    for first, (prompt, answer) in enumerate(later):
        rest -= len(prompt) + len(answer)
        if limit is not None and rest >= limit:
            continue
        if system is not None:
            prompt = tokenizer.encode(_prompt(_fold(system, turns[first].user)), bos=True)
        if limit is None or len(prompt) + len(answer) + rest <= limit:
            encoded = Encoded([], [], first)
            pairs = [(prompt, answer), *later[first + 1 :]]
            for turn, (prompt, answer) in zip(turns[first:], pairs, strict=True):
                encoded.ids.extend(prompt + answer)
                encoded.trained.extend([False] * len(prompt) + [turn.train] * len(answer))
            return encoded
    return None


def check_texts(messages: Any, where: str) -> tuple[Message, ...]:
    """Returns the messages if they are a conversation whose texts the template can carry.

    Raises InputError as encode_dialogue does.
    """
    final = messages[-1] if isinstance(messages, (list, tuple)) and messages else None
    waits = isinstance(final, Mapping) and final.get("role") == "user"
    messages = check_messages(messages, "user" if waits else "assistant", where)
    for number, message in enumerate(messages):
        here = f"{where}, message {number}"
        check_text(message["content"], here, answer=message["role"] == "assistant")
    return messages


def check_text(text: str, where: str, *, answer: bool = False) -> None:
    """Raise InputError for a text that cannot be encoded, or that contains tags of the template.

    Tags are rejected in answers too: a model that learns them speaks for the user.
    """
    require("\0" not in text, f"{where} holds a NUL character: not a text")
    if not text.isascii():
        surrogate = next((c for c in text if "\ud800" <= c <= "\udfff"), None)
        require(surrogate is None, f"{where} holds a lone surrogate, which is not valid Unicode")
    for tag in TAGS:
        require(
            tag not in text,
            f"{where} holds {tag}, which begins or ends a turn in the Llama 2 format; remove it, "
            "or read the text as llama2-text if it was rendered already",
        )
    require(
        not answer or not text.rstrip().endswith("</s>") or "<s>" in text,
        f"{where} ends with </s>, but the end is marked with a token of its own; remove it",
    )


def parse_llama2_text(text: str, *, where: str = "text") -> list[Message]:
    """The messages of a text that was rendered with the Llama 2 template, including `<s>` and
    `</s>`.

    Such a text must not be encoded directly: its `<s>` and `</s>` would be ordinary characters. The
    last user turn may wait for its answer. Raises InputError that names `where` if a tag is out of
    place; empty answers are left to the caller.
    """
    pairs = list(_PAIR.finditer(text))
    outside = text[: pairs[0].start() if pairs else None].strip().removeprefix("<s>").strip()
    require(
        pairs and not outside,
        f"{where}: a turn must be [INST] ... [/INST], not {text[:60]!r}",
    )
    messages: list[Message] = []
    for pair in pairs:
        user, answer = pair[1].strip(), pair[2].strip().removesuffix("<s>").rstrip()
        if not messages and (folded := _SYSTEM.fullmatch(user)):
            messages.append({"role": "system", "content": folded[1]})
            user = folded[2]
        messages.append({"role": "user", "content": user})
        if answer or pair is not pairs[-1]:
            answer = answer.removesuffix("</s>").rstrip()
            messages.append({"role": "assistant", "content": answer})
    for number, message in enumerate(messages):
        check_text(message["content"], f"{where}, message {number}")
    return messages


def _split(messages: Sequence[Message]) -> tuple[str | None, list[_Turn]]:
    """The system text, if there is one, and the pairs of turns."""
    system = messages[0]["content"] if messages[0]["role"] == "system" else None
    if system is not None:
        messages = messages[1:]
    turns = []
    for user, answer in zip_longest(messages[::2], messages[1::2]):
        if answer is None:
            turns.append(_Turn(user["content"], None, False))
        else:
            turns.append(_Turn(user["content"], answer["content"], answer.get("train", True)))
    return system, turns


def _encode(tokenizer: Tokenizer, turns: Sequence[_Turn]) -> list[tuple[list[int], list[int]]]:
    """Prompt and answer of each turn; the last answer is empty where it is still to come."""
    prompts = tokenizer.encode_batch([_prompt(turn.user) for turn in turns], bos=True)
    texts = [_answer(tokenizer, turn.answer) for turn in turns if turn.answer is not None]
    answers = tokenizer.encode_batch(texts, eos=True)
    return list(zip_longest(prompts, answers, fillvalue=[]))


def _fold(system: str, user: str) -> str:
    """Stripped with the user's text and not before it, as Meta does."""
    return f"<<SYS>>\n{system}\n<</SYS>>\n\n{user}"


def _prompt(user: str) -> str:
    return f"[INST] {user.strip()} [/INST]"


def _answer(tokenizer: Tokenizer, answer: str) -> str:
    return _begun(tokenizer, answer) + " "


def _begun(tokenizer: Tokenizer, answer: str) -> str:
    """The space before an answer is the one that sentencepiece puts before a text, if it does."""
    return ("" if tokenizer.dummy_prefix else " ") + answer.strip()
