"""Stores a model's answers by question, so that an interrupted evaluation resumes.

There is one file of JSON lines for each model and task. A line is found by the digest of all that
decides the answer (`questions.key`), so lines of an older version of a task are simply not used.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from llama_jax.runtime.files import json_text, open_file

MAX_LINE_BYTES = 32 << 20


class KeptAnswers:
    """A context that reads stored answers, then appends one line for each new answer."""

    def __init__(self, folder: str, model: str, task: str):
        """model: its digest; task: its name."""
        self.path = Path(folder) / model[:16] / f"{task}.jsonl"
        self._found: dict[str, Any] = {}

    def __enter__(self) -> "KeptAnswers":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        whole = 0
        if self.path.exists():
            with open_file(self.path, "kept answers") as file:
                while (line := file.readline(MAX_LINE_BYTES)).endswith(b"\n"):
                    whole += len(line)
                    self._read(line)
        self._file = self.path.open("ab")
        self._file.truncate(whole)  # a line that was cut off
        return self

    def _read(self, line: bytes) -> None:
        try:
            values = json.loads(line)
            self._found[values["key"]] = values["found"]
        except (ValueError, KeyError, TypeError, RecursionError):
            return  # damaged: it is answered again

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._file.close()

    def get(self, key: str) -> Mapping[str, Any] | None:
        """The stored result of a question; None if it was not asked yet."""
        return self._found.get(key)

    def add(self, key: str, question: str, found: Mapping[str, Any]) -> None:
        """Store a result; `question` is for people who read the file."""
        self._found[key] = found
        line = {"key": key, "question": question, "found": found}
        self._file.write(json_text(line).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
