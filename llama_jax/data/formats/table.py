"""The table of formats: how each is recognised and read. A new format is one row.

A row of the table has the keys that every row of such a file has, null values not counted, and for
each kind of record that can be made of it a reader: a generator that takes one row of the file and
yields records, `Drop(reason)` for what no record comes from, and `Note(text)` for what was changed.
Readers raise InputError for a value that cannot be; reading.py puts file and row in front, and
judges the records of all formats alike. Of two formats that fit, the one whose keys include the
other's is taken; where neither includes the other, the user must name one.

What is harmless is dropped and counted:

- ties, an empty chosen or rejected answer, two answers that are the same, answers that no score or
  label speaks for, conversations that differ before the two answers;
- dialogues without an answer or with none that is trained on; a question at the end that nobody
  answered is cut off and noted;
- of ShareGPT, answers that are HTML (drop the row); answers before the first question (removed and
  noted) and messages of one speaker in a row (joined and noted), as in hh-rlhf;
- of OpenAssistant, messages that are deleted, failed their review or are synthetic, with all below;
  where a row is one message, those whose parent is missing;
- where `lenient`, rows in which an answer is empty: these were collected, not written by hand.

What speaks of a wrong file or a dangerous row is refused, with the value: unknown roles, an
assistant who speaks first or twice, a system message that is not the first, content that is no
text, NUL characters and lone surrogates, tags of the Llama 2 template in any text, ratings,
strengths and scores out of range, rows of another format, and empty answers where not `lenient`.
"""

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from llama_jax.config import InputError
from llama_jax.data.formats import chats, chitchat, hh, llama2_text, openassistant, preferences
from llama_jax.data.formats.items import Item, Row
from llama_jax.runtime.files import AnyPath

KINDS = ("dialogue", "preference", "prompt")
Reader = Callable[[Row], Iterable[Item]]
Numbered = tuple[AnyPath, int, Row]
"""A file, a row number and the row."""


class Format(NamedTuple):
    """One row of the table."""

    title: str
    """Its name for people."""
    keys: frozenset[str]
    reads: Mapping[str, Reader]
    """A reader for each kind of record; a record of a richer kind is reduced to the kind."""
    fits: Callable[[Row], bool] = lambda _: True
    """Distinguishes formats with the same keys by their values."""
    lenient: bool = False
    """Whether a row with an empty answer is dropped instead of rejected."""
    assemble: Callable[[Iterable[Numbered]], Iterable[Numbered]] | None = None
    """Combines the rows of all files for the readers, where an item spans more than one row."""


def _conversations(reader: Reader) -> Mapping[str, Reader]:
    return {"dialogue": reader, "prompt": reader}


def _pairs(reader: Reader) -> Mapping[str, Reader]:
    return dict.fromkeys(KINDS, reader)


def _keys(names: str) -> frozenset[str]:
    return frozenset(names.split())


FORMATS: dict[str, Format] = {
    "messages": Format(
        "messages (TRL, OpenAI fine-tuning, our own)",
        _keys("messages"),
        {"dialogue": chats.messages, "prompt": chats.message_prompts},
        fits=lambda row: row.get("chosen") is None and not chitchat.is_chat(row),
    ),
    "preference": Format(
        "our own preferences",
        _keys("messages chosen rejected"),
        _pairs(preferences.own),
        fits=preferences.has_own_answers,
    ),
    "prompt": Format(
        "TRL prompts",
        _keys("prompt"),
        {"prompt": chats.prompts},
        fits=chats.is_only_prompt,
    ),
    "prompt-completion": Format(
        "TRL prompts and completions",
        _keys("prompt completion"),
        _conversations(chats.completions),
    ),
    "kto": Format(
        "TRL unpaired preferences (KTO)",
        _keys("prompt completion label"),
        {"dialogue": chats.labelled, "prompt": chats.prompts},
    ),
    "trl": Format(
        "TRL preferences",
        _keys("chosen rejected"),
        _pairs(preferences.trl),
        fits=preferences.is_trl,
    ),
    "hh-rlhf": Format(
        "Anthropic hh-rlhf",
        _keys("chosen rejected"),
        _pairs(hh.preferences),
        fits=hh.is_marked,
        lenient=True,
    ),
    "ultrafeedback": Format(
        "UltraFeedback",
        _keys("instruction completions"),
        {
            "dialogue": preferences.best_of_ultrafeedback,
            "preference": preferences.ultrafeedback,
            "prompt": preferences.instructions,
        },
        lenient=True,
    ),
    "ultrafeedback-binarized": Format(
        "UltraFeedback, binarized",
        _keys("chosen rejected score_chosen score_rejected"),
        _pairs(preferences.binarized),
        lenient=True,
    ),
    "helpsteer2": Format(
        "HelpSteer2-preference",
        _keys("prompt response_1 response_2 preference_strength"),
        _pairs(preferences.helpsteer),
        lenient=True,
    ),
    "openassistant": Format(
        "OpenAssistant trees",
        _keys("message_tree_id prompt"),
        {
            "dialogue": openassistant.dialogues,
            "preference": openassistant.preferences,
            "prompt": openassistant.prompts,
        },
        lenient=True,
    ),
    "openassistant-messages": Format(
        "OpenAssistant messages",
        _keys("message_id message_tree_id role text"),
        {
            "dialogue": openassistant.of_trees(openassistant.dialogues),
            "preference": openassistant.of_trees(openassistant.preferences),
            "prompt": openassistant.of_trees(openassistant.prompts),
        },
        fits=openassistant.is_message,
        lenient=True,
        assemble=openassistant.trees,
    ),
    "alpaca": Format(
        "Alpaca",
        _keys("instruction output"),
        _conversations(chats.alpaca),
        lenient=True,
    ),
    "sharegpt": Format(
        "ShareGPT",
        _keys("conversations"),
        _conversations(chats.sharegpt),
        lenient=True,
    ),
    "llama2-text": Format(
        "Llama 2 text",
        _keys("text"),
        _conversations(llama2_text.dialogues),
        fits=llama2_text.is_rendered,
    ),
    "xstest": Format("XSTest", _keys("prompt type focus"), {"prompt": chats.xstest}),
    "mt-bench": Format(
        "MT-bench questions", _keys("question_id turns"), {"prompt": chats.mt_bench}
    ),
    "chitchat": Format(
        "chitchat-dataset",
        _keys("messages start"),
        _conversations(chitchat.dialogues),
        fits=chitchat.is_chat,
    ),
}


def lacking(name: str, row: Row) -> list[str]:
    """Keys of a format that a row does not have."""
    return sorted(key for key in FORMATS[name].keys if row.get(key) is None)


def matching(row: Row) -> list[str]:
    """Names of the formats that fit a row."""
    fitting = [n for n, form in FORMATS.items() if not lacking(n, row) and form.fits(row)]
    return [n for n in fitting if not any(FORMATS[n].keys < FORMATS[o].keys for o in fitting)]


def lookup(name: str) -> str:
    """Returns the name if it is a format's; otherwise InputError with the nearest one."""
    if name not in FORMATS:
        near = difflib.get_close_matches(name, FORMATS, n=1)
        hint = "".join(f"; did you mean {n}?" for n in near)
        raise InputError(f"format {name!r} is unknown; known are {', '.join(FORMATS)}{hint}")
    return name
