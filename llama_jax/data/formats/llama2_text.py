"""Parses text that was already rendered with the Llama 2 chat template back into messages."""

from collections.abc import Iterator

from llama_jax.data.chat import parse_llama2_text
from llama_jax.data.formats.items import Item, Row, text
from llama_jax.data.records import Dialogue


def is_rendered(row: Row) -> bool:
    """Whether the text of a row is in the template."""
    value = row.get("text")
    return isinstance(value, str) and "[INST]" in value


def dialogues(row: Row) -> Iterator[Item]:
    """The conversation that the text of a row holds."""
    yield Dialogue(messages=tuple(parse_llama2_text(text(row, "text"))))
