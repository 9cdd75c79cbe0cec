"""Text with fields of a row in braces: `{goal}`, `{choices.text}`, `{answer|after:####|strip}`.

A path names a field, then what lies inside it (elements of a list by number); filters after `|`
change the text. `{{` and `}}` are braces. There is nothing else: a task file can name data and
cannot compute.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from llama_jax.config import InputError, require
from llama_jax.runtime.files import shown

_PART = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_PATH = re.compile(r"[A-Za-z_]\w*(\.\w+)*")


def _wikihow(text: str) -> str:
    """Without the marks that WikiHow's pages left in HellaSwag, as lm-evaluation-harness does."""
    text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ")


FILTERS: dict[str, Callable[[str], str]] = {
    "strip": str.strip,
    "lower": str.lower,
    "capitalize": str.capitalize,
    "words": lambda text: text.replace("_", " "),
    "wikihow": _wikihow,
}
_SPLITS: dict[str, Callable[[str, str], str]] = {
    "before": lambda text, mark: text.partition(mark)[0],
    "after": lambda text, mark: text.rpartition(mark)[2],
}
"""Filters of a mark: what stands before the first one, what stands after the last one."""


def render(template: str, row: Mapping[str, Any], where: str) -> str:
    """The template with the row's values. InputError names `where` and a field that is missing or
    is neither text nor a number."""
    return _PART.sub(lambda part: _put(part, row, where), template)


def _put(part: re.Match[str], row: Mapping[str, Any], where: str) -> str:
    if part[0] in ("{{", "}}"):
        return part[0][0]
    path, *filters = part[1].split("|")
    text = as_text(lookup(row, path, where), f"{where}, field {path}")
    for name in filters:
        text = _filter(name)(text)
    return text


def check(template: str, where: str) -> None:
    """Raise InputError for unbalanced braces, and for invalid paths and filters."""
    for part in _PART.finditer(template):
        if part[0] in ("{{", "}}"):
            continue
        require(part[1] is not None, f"{where} has a single {part[0]}; write it twice to mean it")
        path, *filters = part[1].split("|")
        require(_PATH.fullmatch(path), f"{where} has {part[0]}, which names no field")
        for name in filters:
            try:
                _filter(name)
            except KeyError:
                known = ", ".join([*FILTERS, *(f"{split}:MARK" for split in _SPLITS)])
                raise InputError(
                    f"{where} has the filter {shown(name)}, which is unknown; known are {known}"
                ) from None


def _filter(name: str) -> Callable[[str], str]:
    kind, colon, mark = name.partition(":")
    if not (colon and mark):
        return FILTERS[name]
    split = _SPLITS[kind]
    return lambda text: split(text, mark)


def lookup(row: Mapping[str, Any], path: str, where: str) -> Any:
    """The value at a path such as `choices.text`. Otherwise InputError says what is there
    instead."""
    value: Any = row
    for name in path.split("."):
        if isinstance(value, list) and name.isdecimal() and int(name) < len(value):
            value = value[int(name)]
            continue
        if not (isinstance(value, Mapping) and name in value):
            there = sorted(map(str, value))[:8] if isinstance(value, Mapping) else shown(value)
            raise InputError(f"{where} has no field {path}; it has {there}")
        value = value[name]
    return value


def as_text(value: Any, where: str) -> str:
    """Text or a number as text. InputError for anything else."""
    if isinstance(value, str):
        return value
    require(isinstance(value, int | float), f"{where} must be text, not {shown(value)}")
    return str(value)
