"""English text that ships with every CPython: help topics and standard-library docstrings.

The text belongs to the running Python, so it differs a little between versions. The standard
library is parsed, never imported, and its tests are left out.
"""

import ast
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from llama_jax.data.split import in_validation

VERSION = f"{sys.version_info.major}.{sys.version_info.minor}.{sys.version_info.micro}"
"""Version of the Python that the text comes from."""
MIN_CHARACTERS = 80
"""Shorter docstrings are left out."""
_LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}


@dataclass(frozen=True)
class PythonDocs:
    """The embedded English text."""

    name = "python_docs"

    @property
    def identity(self) -> str:
        """Version of the Python whose documentation it is."""
        return f"python_docs {VERSION}"

    def chunks(self, split: str) -> list[None]:
        """A single chunk: parsing the standard library is the work."""
        return [None]

    def documents(self, split: str, chunk: None) -> Iterator[str]:
        """Help topics, then docstrings."""
        return iter(documents(split))


@cache
def documents(split: str) -> tuple[str, ...]:
    """Documents of `train` or `validation` (about 5 %), without duplicates, in a fixed order."""
    unique = dict.fromkeys([*_topics(), *_docstrings()])
    wanted = split == "validation"
    return tuple(text for text in unique if in_validation(text) == wanted)


def _topics() -> Iterator[str]:
    from pydoc_data.topics import topics

    for _, text in sorted(topics.items()):
        yield text.strip()


def _docstrings() -> Iterator[str]:
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        if _LEFT_OUT.isdisjoint(path.relative_to(root).parts):
            yield from _docstrings_of(path)


def _docstrings_of(path: Path) -> Iterator[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in old modules
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # templates that are no Python
        return
    todo: list[ast.AST] = [tree]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text and len(text) >= MIN_CHARACTERS:
                yield text.strip()
        # Statements only: nothing inside an expression has a docstring.
        for inner in ("finalbody", "orelse", "handlers", "cases", "body"):
            todo.extend(reversed(getattr(node, inner, ())))
