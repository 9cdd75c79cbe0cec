"""Tokenizer and text settings of a Hugging Face folder, from seven files.

A damaged or unusual file loses only its own information, with a note; the weights are unaffected.
"""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llama_jax.config import InputError
from llama_jax.convert.usage import INSTEAD, Named, Usage, Words, end_ids, unusable
from llama_jax.data import tokenizer_json
from llama_jax.data.sentencepiece_proto import UnusableTokenizer
from llama_jax.data.tokenizer import (
    JSON_FILE,
    MAX_BYTES,
    MAX_JSON_BYTES,
    MODEL_FILE,
    Tokenizer,
)
from llama_jax.data.vocabulary_repairs import AddedToken, with_added
from llama_jax.runtime.files import read_bytes, read_json, shown

GENERATION = "generation_config.json"
SETTINGS, MAP, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
TEMPLATES = ("chat_template.jinja", "chat_template.json")
_OF_FILES = {"bos_token_id", "eos_token_id", "transformers_version", "_from_model_config"}
_SIDE_BYTES = 4 << 20
_ROLES = ("bos_token", "eos_token", "unk_token")


class _Folder:
    """The side files of a folder, each read once, and notes on those that cannot be."""

    def __init__(self, path: Path):
        self.path = path
        self.notes: list[str] = []
        self.generation = self._json(GENERATION)
        self.settings = self._json(SETTINGS)
        self.map = self._json(MAP)
        self.added = self._json(ADDED)

    def _json(self, name: str) -> dict[str, Any]:
        if not (self.path / name).exists():
            return {}
        try:
            return read_json(self.path / name, limit=_SIDE_BYTES)
        except InputError as error:
            self.notes.append(f"Left out: {error}.")
            return {}

    def special(self) -> dict[str, str]:
        """Texts of special tokens by their role, as AutoTokenizer takes them."""
        found = {}
        for values in (self.map, self.settings):
            for role, value in values.items():
                text = value.get("content") if isinstance(value, dict) else value
                if role.endswith("_token") and isinstance(text, str) and text:
                    found[role] = text
        return found

    def template(self) -> str | None:
        """The chat template; notes name the others."""
        for name in TEMPLATES:
            file = self.path / name
            if not file.exists():
                continue
            try:
                if name.endswith(".json"):
                    text = read_json(file, limit=_SIDE_BYTES).get("chat_template")
                    return text if isinstance(text, str) else None
                return read_bytes(file, limit=_SIDE_BYTES).decode("utf-8-sig")
            except (InputError, UnicodeDecodeError) as error:
                self.notes.append(f"Left out: {name} ({error!s:.200}).")
        given = self.settings.get("chat_template")
        if not isinstance(given, list):
            return given if isinstance(given, str) else None
        texts = {
            row.get("name"): row.get("template")
            for row in given
            if isinstance(row, dict) and isinstance(row.get("name"), str)
        }
        default = texts.pop("default", None)
        if texts:
            self.notes.append(f"Left out: further chat templates ({shown(list(texts))}).")
        return default if isinstance(default, str) else None

    def added_tokens(self) -> list[AddedToken]:
        """Added tokens of all files that list some, each id once."""
        special = {*self.special().values()}
        others = [
            row.get("content") if isinstance(row, dict) else row
            for values in (self.map, self.settings)
            for row in _list(values.get("additional_special_tokens"))
        ]
        special |= {text for text in others if isinstance(text, str)}
        found: dict[int, AddedToken] = {}
        decoder = self.settings.get("added_tokens_decoder")
        for number, row in (decoder if isinstance(decoder, dict) else {}).items():
            sound = isinstance(row, dict) and isinstance(row.get("content"), str)
            if sound and number.isascii() and number.isdecimal() and len(number) < 10:
                special_one = row.get("special") is True
                found[int(number)] = AddedToken(int(number), row["content"], special_one)
        for text, token in self.added.items():
            if type(token) is int and 0 <= token < 2**31:
                found.setdefault(token, AddedToken(token, text, False))
        if (self.path / JSON_FILE).exists():
            try:
                values = read_json(self.path / JSON_FILE, limit=MAX_JSON_BYTES)
                listed = tokenizer_json.added_tokens(values.get("added_tokens"), JSON_FILE)
                for token in listed:
                    found.setdefault(token.id, token)
            except InputError as error:
                self.notes.append(f"Left out: the added tokens of {error}.")
        return [
            AddedToken(t.id, t.text, t.special or t.text in special)
            for t in itertools.islice(found.values(), 1 << 16)
        ]


def read(path: Path, config: Mapping[str, Any], rows: int, named: Named) -> Words:
    """The tokenizer and usage settings of a folder, for `config` from its config.json and `rows`
    rows.

    Raises InputError if its own tokenizer is wanted but damaged, since it was lost on the way and
    can be fetched again. An intact one of another kind is left out, with a note.
    """
    folder = _Folder(path)
    if named == "own":
        model, notes = _model(folder, rows)
    else:
        model, notes = named, []
    usage = _usage(folder, config, rows, model)
    return Words(model, usage, (*folder.notes, *notes))


def _model(folder: _Folder, rows: int) -> tuple[bytes | None, list[str]]:
    """The folder's tokenizer, with the tokens that were added to it; and notes."""
    roles = {role: text for role, text in folder.special().items() if role in _ROLES}
    reasons, model = [], None
    for name in (MODEL_FILE, JSON_FILE):
        file = folder.path / name
        if model is not None or not file.exists():
            continue
        try:
            limit = MAX_JSON_BYTES if name == JSON_FILE else MAX_BYTES
            content = read_bytes(file, limit=limit)
            if name == JSON_FILE:
                model = Tokenizer.from_json(content, str(file), roles).model_bytes
            else:
                model = Tokenizer.from_bytes(content, str(file)).model_bytes
        except UnusableTokenizer as error:
            reasons.append(unusable(error))
        except InputError as error:
            raise InputError(f"{error}; or name another with `{INSTEAD}`") from error
    if model is None:
        return None, reasons[-1:]
    read_json_alone = not (folder.path / MODEL_FILE).exists() or reasons
    notes = [f"The tokenizer was read from {JSON_FILE}."] if read_json_alone else []
    model, more = with_added(model, folder.added_tokens(), rows)
    return model, notes + more


def _usage(folder: _Folder, config: Mapping[str, Any], rows: int, model: bytes | None) -> Usage:
    ends: list[int] = []
    tokenizer = None if model is None else Tokenizer.from_bytes(model)
    texts = [] if tokenizer is None else [piece.text for piece in tokenizer.vocabulary.pieces]
    ids = {text: token for token, text in enumerate(texts)}
    special = folder.special()
    if special.get("eos_token") in ids:
        ends.append(ids[special["eos_token"]])
    for name, values in ((GENERATION, folder.generation), ("config.json", config)):
        found, notes = end_ids(values.get("eos_token_id"), rows, f"{name}: eos_token_id")
        ends += found
        folder.notes += notes
    bos = config.get("bos_token_id")
    if tokenizer is not None and type(bos) is int and bos != tokenizer.bos_id:
        folder.notes.append(
            f"config.json has bos_token_id={bos} and the tokenizer {tokenizer.bos_id}, which was "
            "taken."
        )
    if folder.settings.get("add_prefix_space") is False:
        folder.notes.append("Left out: add_prefix_space=false; the tokenizer's own rule holds.")
    if folder.settings.get("add_eos_token") is True:
        folder.notes.append("Left out: add_eos_token=true (prompts are continued, and not ended).")
    own = {role: texts[getattr(tokenizer, f"{role[:3]}_id")] for role in _ROLES if texts}
    return Usage(
        end_ids=tuple(dict.fromkeys(ends)),
        add_bos=folder.settings.get("add_bos_token") is not False,
        chat_template=folder.template(),
        special_tokens={r: t for r, t in special.items() if own.get(r) != t},
        generation={
            name: value
            for name, value in folder.generation.items()
            if name not in _OF_FILES and (name, value) != ("do_sample", False)
        },
    )


def _list(value: Any) -> list:
    return value if isinstance(value, list) else []
