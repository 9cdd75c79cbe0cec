"""Conversations for ghost attention: an instruction, and questions that a user asks under it."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from llama_jax.config import DataConfig, require
from llama_jax.data.corpora.tales import ghost, instructions
from llama_jax.data.formats import rows
from llama_jax.runtime.files import as_path, shown


@dataclass(frozen=True)
class Ghost:
    """An instruction that must hold for the answers to all questions."""

    instruction: str
    questions: tuple[str, ...]
    keeps: Callable[[str], bool]
    """Whether an answer keeps the instruction; always true where that cannot be checked."""


def ghost_conversations(
    config: DataConfig, count: int, turns: int, *, split: str = "train"
) -> list[Ghost]:
    """`count` conversations with this many turns: of `tales`, or of a file of JSON lines.

    A line holds `instruction`, text, and `turns`, a list of at least two user messages. Raises
    InputError, with file and row, for anything else.
    """
    if config.dataset == "tales":
        drawn = (instructions.ghost_conversation(i, split, turns=turns) for i in range(count))
        return [Ghost(g.instruction, g.questions, partial(ghost.keeps, g.attribute)) for g in drawn]
    path = as_path(config.dataset)
    require(path.is_file(), f"data {path} is not a file: give JSON lines of instruction and turns")
    found = []
    for number, values in itertools.islice(rows.read(path), count):
        where = f"data {path}, row {number}"
        require(
            values.keys() >= {"instruction", "turns"},
            f'{where} must be an object such as {{"instruction": "...", "turns": ["...", "..."]}}, '
            f"not {shown(values)}",
        )
        said, asked = values["instruction"], values["turns"]
        require(
            isinstance(said, str) and said.strip(),
            f"{where}: instruction must be text, not {shown(said)}",
        )
        require(
            isinstance(asked, list) and len(asked) > 1 and all(isinstance(q, str) for q in asked),
            f"{where}: turns must be a list of two texts or more, not {shown(asked)}",
        )
        found.append(Ghost(said, tuple(asked[:turns]), lambda answer: True))
    require(found, f"data {path} holds no conversation")
    return found
