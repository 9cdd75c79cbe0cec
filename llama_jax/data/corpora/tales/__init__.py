"""Tales: short stories for small models, told by rules and one seed.

In the spirit of TinyStories (Eldan and Li 2023), with about a thousand words. Each plot is a
function that draws people, places and things first and then tells causes before effects, so that
what is lost under a tree is found under that tree. Story `i` of a split is a pure function of
(seed, split, i). One pair in 16 of plot and hero belongs to the validation split, so no training
story has it.

Two kinds of text are told for pretraining: `story`, and short stories (`instructions.short_story`).

A world to be helpful in stands beside them, for the stages after pretraining:

- `instructions`: dialogues, prompts, unkind requests, conversations for ghost attention
- `preferences`: pairs of answers, rated, for helpfulness and for safety
- `judge`: a score for any answer to any of these, from the conversation's text alone

Below them: `wishes` (what can be asked for), `asking` and `reading` (wishes into words and back),
`arcs` and `answers` (stories that meet wishes), `facts` (small talk), `unkind`, `kindness` and
`harmless` (what to refuse, and what only looks like it), `ghost` (attributes that must hold), and
`tasks` (all of these with right and wrong answers). Every record is a pure function of its stream,
seed, split and index.
"""

from collections.abc import Callable
from functools import partial

from llama_jax.config import require
from llama_jax.data.corpora.tales import instructions, preferences
from llama_jax.data.corpora.tales.stories import NUM_TRAIN, NUM_VALIDATION, VERSION, story
from llama_jax.data.records import Record

RECORDS_VERSION = instructions.VERSION
__all__ = [
    "CORPORA",
    "NUM_TRAIN",
    "NUM_VALIDATION",
    "RECORDS_VERSION",
    "VERSION",
    "generator",
    "story",
]

_GENERATORS: dict[str, dict[str, Callable[[int, str], Record]]] = {
    "tales": {
        "dialogue": instructions.demonstration,
        "preference": preferences.preference,
        "prompt": instructions.prompt,
    },
    "tales_safety": {
        "preference": partial(preferences.preference, kind="safety"),
        "prompt": instructions.adversarial,
    },
    "tales_harmless": {"prompt": partial(instructions.prompt, kind="harmless")},
}
CORPORA = tuple(_GENERATORS)
"""All of them, unkind requests, and harmless ones that look unkind."""


def generator(corpus: str, kind: str) -> Callable[[int, str], Record]:
    """The function (index, split) -> record of a kind of records in one of CORPORA.

    Raises InputError where there are none.
    """
    found = _GENERATORS[corpus]
    has = " and ".join(f"{name}s" for name in found)
    require(kind in found, f"{corpus} has {has}, no {kind}s")
    return found[kind]
