"""Usage settings stored with a model: end tokens, chat template, sampling defaults.

Chat models end their turns with tokens of their own, expect a template around messages, and come
with sampling settings. A model folder of ours keeps them in usage.json, beside config.json, if
there are any; other formats keep those that they have a place for.
"""

import os
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

from etils import epath

from llama_jax.config import InputError, require
from llama_jax.data.tokenizer import Tokenizer
from llama_jax.runtime.files import json_text, parse_json, read_bytes, shown, write_atomic

FILENAME = "usage.json"
FORMAT_VERSION = 1
INSTEAD = "llama-jax convert --tokenizer"
_MAX_ENDS = 64
_TITLES = {
    "end_ids": "ends of text besides the tokenizer's own",
    "add_bos": "add_bos_token=false",
    "chat_template": "the chat template",
    "special_tokens": "the names of special tokens",
    "generation": "the settings of generation",
}


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Settings that differ from the defaults of a pretrained Llama 2."""

    end_ids: tuple[int, ...] = ()
    """Tokens that end a text, besides the tokenizer's EOS."""
    add_bos: bool = True
    """Whether a prompt begins with BOS."""
    chat_template: str | None = None
    """Jinja template, as in Hugging Face and llama.cpp."""
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    """Tokens by their role, such as `pad_token`, that the tokenizer alone does not define."""
    generation: Mapping[str, Any] = field(default_factory=dict)
    """Sampling settings by Hugging Face's names, such as `temperature`."""

    def left_out(self, kept: Collection[str], title: str) -> list[str]:
        """A sentence naming the settings that are lost in a format that keeps only the fields
        `kept`."""
        mine, usual = asdict(self), asdict(Usage())
        lost = []
        for name in (name for name in mine if name not in kept and mine[name] != usual[name]):
            values = mine[name]
            detail = f" ({shown(list(values), 80)})" if isinstance(values, dict | tuple) else ""
            lost.append(_TITLES[name] + detail)
        return [f"Left out, since {title} has no place for it: {'; '.join(lost)}."] if lost else []

    def to_json(self) -> str:
        """The text of usage.json."""
        return json_text({"format_version": FORMAT_VERSION, **asdict(self)}, indent=2) + "\n"

    @staticmethod
    def read(folder: epath.PathLike) -> "Usage":
        """Read usage.json of a folder of ours. Raises InputError as `from_json` does."""
        file = epath.Path(folder) / FILENAME
        return Usage.from_json(read_bytes(file), os.fspath(file)) if file.exists() else Usage()

    def write(self, folder: epath.PathLike) -> None:
        """Write usage.json to a folder of ours, unless all settings are defaults."""
        if self != Usage():
            write_atomic(epath.Path(folder) / FILENAME, self.to_json().encode())

    @staticmethod
    def from_json(text: bytes, where: str) -> "Usage":
        """Parse usage.json. Raises InputError naming the invalid value."""
        values = parse_json(text, where)
        require(isinstance(values, dict), f"{where} must hold a JSON object, not {shown(values)}")
        version = values.pop("format_version", None)
        require(version == FORMAT_VERSION, f"{where} has format_version {shown(version)}, not 1")
        unknown = sorted(set(values) - {f.name for f in fields(Usage)})
        require(not unknown, f"{where} has unknown keys {shown(unknown)}")
        values = asdict(Usage()) | values
        ends, named = values["end_ids"], values["special_tokens"]
        whole = isinstance(ends, list | tuple) and len(ends) <= _MAX_ENDS
        sound = {
            "end_ids": whole and all(type(n) is int and 0 <= n < 2**31 for n in ends),
            "add_bos": isinstance(values["add_bos"], bool),
            "chat_template": isinstance(values["chat_template"], str | None),
            "special_tokens": isinstance(named, dict)
            and all(isinstance(t, str) for t in named.values()),
            "generation": isinstance(values["generation"], dict),
        }
        for name, fits in sound.items():
            require(fits, f"{where}: {name}={shown(values[name])} is invalid")
        return Usage(**values | {"end_ids": tuple(ends)})


@dataclass(frozen=True)
class Words:
    """The text part of a model's files: a tokenizer, its usage, and notes on both."""

    tokenizer: bytes | None
    """A serialised sentencepiece model."""
    usage: Usage = field(default_factory=Usage)
    notes: tuple[str, ...] = ()
    """Sentences for the report and the log on what was left out, changed or assumed."""

    @property
    def own_ends(self) -> "Words":
        """The same without the end tokens that the tokenizer defines itself."""
        if self.tokenizer is None:
            return self
        eos = Tokenizer.from_bytes(self.tokenizer).eos_id
        ends = tuple(i for i in dict.fromkeys(self.usage.end_ids) if i != eos)
        return replace(self, usage=replace(self.usage, end_ids=ends))


Named = bytes | None | Literal["own"]
"""The tokenizer that a reader shall use: the source's own, another one that was named (the own one
is not read then), or none."""


def end_ids(values: Any, rows: int, where: str) -> tuple[list[int], list[str]]:
    """The token ids that a setting such as eos_token_id names, and notes on invalid ones."""
    given = values if isinstance(values, list) else [] if values is None else [values]
    good = [n for n in given[:_MAX_ENDS] if type(n) is int and 0 <= n < rows]
    bad = [n for n in given[: _MAX_ENDS + 1] if n not in good]
    notes = [f"{where} names {shown(bad)} as ends of text, which the model has not: left out."]
    return good, notes if bad else []


def unusable(error: InputError) -> str:
    """The note on a tokenizer that is left out, with the reason."""
    return f"The tokenizer is left out: {error}. `{INSTEAD}` takes another."
