"""The rows of a task: from files below a folder of data, or from a Hugging Face data set."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from llama_jax.config import InputError, require
from llama_jax.data.formats import rows
from llama_jax.data.sources import HfData
from llama_jax.evals.task import Source, Task
from llama_jax.evals.templates import lookup
from llama_jax.runtime.files import as_path, read_bytes, shown

SUFFIXES = rows.SUFFIXES


@dataclass(frozen=True)
class Row:
    """One row, and its location for messages."""

    values: Mapping[str, Any]
    where: str


@dataclass(frozen=True)
class TaskData:
    """The location of the tasks' data on this machine."""

    folder: str = ""
    """Folder of all tasks; empty for the folder of each task's own file."""

    def rows(self, task: Task, source: Source) -> list[Row]:
        """All rows of a source, in their order.

        Raises InputError if there is none, it cannot be read, or holds no rows.
        """
        found = list(self._rows(task, source))
        require(found, f"task {task.name}: {source.file or source.hf} holds no rows")
        return found

    def text(self, task: Task, name: str) -> str:
        """The text of a file. InputError if it cannot be read."""
        folder = self.folder or task.folder
        require(folder, f"task {task.name} needs the file {name}: name its folder with --task-data")
        file = as_path(folder) / name
        try:
            return read_bytes(file, f"task {task.name}:").decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{file} is not UTF-8 at byte {error.start}") from error

    def _rows(self, task: Task, source: Source) -> Iterator[Row]:
        folder = self.folder or task.folder
        files = sorted(as_path(folder).glob(source.file)) if folder and source.file else []
        if not files:
            yield from self._downloaded(task, source)
            return
        for file in files:
            require(
                file.name.endswith(SUFFIXES),
                f"task {task.name}: {file} is none of {', '.join(SUFFIXES)}",
            )
            for number, values in rows.read(file):
                for where, row in _inner(values, source.rows, f"{file}, row {number}"):
                    yield Row({"_file": file.name.split(".")[0], **row}, where)

    def _downloaded(self, task: Task, source: Source) -> Iterator[Row]:
        missing = f"task {task.name} has no data: "
        folder = self.folder or task.folder
        if source.file:
            missing += f"{as_path(folder) / source.file} does not exist. " if folder else ""
            missing += f"Put {source.file} into a folder and name it with --task-data"
        if not source.hf:
            raise InputError(missing)
        try:
            found = HfData(source.hf, "").split(source.split)
        except InputError as error:
            raise InputError(f"{missing or f'task {task.name}'}; {error}") from error
        for number in range(len(found)):
            yield Row(found[number], f"{source.hf} {source.split}, row {number + 1}")


def _inner(values: Any, path: str, where: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if not path:
        yield where, values
        return
    found = lookup(values, path, where)
    require(isinstance(found, list), f"{where}: {path} must be a list, not {shown(found)}")
    for number, row in enumerate(found, 1):
        here = f"{where}, {path} {number}"
        require(isinstance(row, dict), f"{here} must be an object, not {shown(row)}")
        yield here, row
