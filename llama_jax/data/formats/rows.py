"""The rows of a data file: .jsonl, .jsonl.gz, .json, .csv and .parquet, one at a time.

Rows are numbered as people count them: the line of a .jsonl file, from 1; the element of a JSON
array; the record of a table, after its header. A .json file is an array of objects, objects one
after another, or one object whose values are the rows. A row is a JSON object of at most 64 MiB.
"""

import codecs
import contextlib
import csv
import json
import re
from collections.abc import Generator, Iterator
from typing import Any, NoReturn

from llama_jax.config import InputError, require
from llama_jax.data import textfiles
from llama_jax.data.formats.items import Row, must
from llama_jax.runtime.files import AnyPath, reason

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".csv", ".parquet")
_MAX_DIGITS = 300
"""A longer number is no float64."""
_PARQUET_ROWS = 256  # converted at a time
_SOLID = re.compile(r"[^ \t\r\n]")


def find(path: AnyPath) -> list[AnyPath]:
    """The file itself, or every readable data file below a folder, sorted by path."""
    return textfiles.find_files(path, SUFFIXES)


def read(path: AnyPath) -> Iterator[tuple[int, Row]]:
    """Numbered rows. InputError, with file and row, for anything that is not a row."""
    if path.suffix == ".parquet":
        yield from _parquet_rows(path)
        return
    by_suffix = {".json": _json_rows, ".csv": _csv_rows}
    # Closed at once where a row is refused, however long somebody holds the exception.
    with contextlib.closing(_lines(path)) as lines:
        yield from by_suffix.get(path.suffix, _jsonl_rows)(path, lines)


_Lines = Iterator[tuple[int, str]]


def _jsonl_rows(path: AnyPath, lines: _Lines) -> Iterator[tuple[int, Row]]:
    for number, line in lines:
        if not line.strip():
            continue
        where = f"{path}, row {number}"
        row = _decode(line, where)
        if isinstance(row, list):
            raise InputError(f"{where} is a JSON array; name the file .json to read its elements")
        must(isinstance(row, dict), f"{where} must be a JSON object", row)
        yield number, row


def _lines(path: AnyPath) -> Generator[tuple[int, str]]:
    with textfiles.open_file(path) as file:
        for number, line in textfiles.raw_lines(path, file):
            yield number, line.removeprefix(codecs.BOM_UTF8).decode("utf-8")


def _unknown_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _number(kind: type) -> Any:
    def parse(digits: str) -> Any:
        if len(digits) > _MAX_DIGITS:
            raise ValueError(f"a number of {len(digits)} digits is too long")
        value = kind(digits)
        if value in (float("inf"), float("-inf")):
            raise ValueError(f"{digits:.40} is too large")
        return value

    return parse


_JSON = json.JSONDecoder(
    parse_constant=_unknown_constant, parse_int=_number(int), parse_float=_number(float)
)


def _decode(line: str, where: str) -> Any:
    try:
        return _JSON.decode(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not JSON: {_problem(error, 0)}") from error


def _problem(error: Exception, start: int) -> str:
    """What the decoder says of a value that starts at character `start`."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg}, at character {error.pos - start + 1}"
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)


class _Scanner:
    """Reads one JSON value after another from lines of text, and holds only what it needs."""

    def __init__(self, lines: Iterator[tuple[int, str]]):
        self._lines, self._text, self._at = lines, "", 0

    def _more(self, size: int) -> bool:
        """Read on by at least `size` characters; whether there were any."""
        parts, read = [self._text[self._at :]], 0
        for _, line in self._lines:
            parts.append(line)
            read += len(line)
            if read >= size:
                break
        self._text, self._at = "".join(parts), 0
        return read > 0

    def next(self) -> str:
        """The character that stands next, white space aside; empty at the end."""
        while True:
            if found := _SOLID.search(self._text, self._at):
                self._at = found.start()
                return found[0]
            self._at = len(self._text)
            if not self._more(1):
                return ""

    def skip(self) -> None:
        """Go past the next character."""
        self._at += 1

    def value(self, where: str) -> Any:
        """The value that stands next."""
        while True:
            try:
                value, self._at = _JSON.raw_decode(self._text, self._at)
                return value
            except (ValueError, RecursionError) as error:
                problem = f"{where} is not JSON: {_problem(error, self._at)}"
                held, limit = len(self._text) - self._at, textfiles.MAX_LINE_BYTES
                if held > limit:
                    problem += f" (or it is longer than {limit >> 20} MiB)"
                    raise InputError(problem) from error
                if not self._more(max(held, 1 << 16)):  # else it may only have been cut off
                    raise InputError(problem) from error


def _json_rows(path: AnyPath, lines: _Lines) -> Iterator[tuple[int, Row]]:
    number = 0
    for value in _objects(path, lines):
        for row in value.values() if _holds_rows(value) else [value]:
            number += 1
            yield number, row


def _objects(path: AnyPath, lines: _Lines) -> Iterator[Row]:
    """The objects of an array, or those that stand one after another."""
    scanner, number = _Scanner(lines), 0
    in_array = scanner.next() == "["
    if in_array:
        scanner.skip()
    if scanner.next() == "]" if in_array else not scanner.next():
        return
    while True:
        number += 1
        where = f"{path}, object {number}"
        found = scanner.next()
        require(found == "{", f"{where} must begin with {{, not with {found or 'the end'}")
        yield scanner.value(where)
        after = scanner.next()
        if not in_array and not after:
            return
        if in_array:
            require(after in (",", "]"), f"{where} must end with , or ], not {after or 'the file'}")
            scanner.skip()
        if in_array and after == "]":
            after = scanner.next()
            require(not after, f"{path}: {after} stands after the end of the array")
            return


def _holds_rows(value: Row) -> bool:
    return bool(value) and all(isinstance(entry, dict) for entry in value.values())


def _csv_rows(path: AnyPath, lines: _Lines) -> Iterator[tuple[int, Row]]:
    reader = csv.reader((line for _, line in lines), strict=True)
    header: list[str] | None = None
    number = 0
    while True:
        where = f"{path}, row {number + 1}" if header else f"{path}, the header"
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise InputError(f"{where} is not CSV: {error}") from error
        if fields is None:
            return
        if not fields:
            continue
        if header is None:
            header = fields
            require(len(set(header)) == len(header), f"{where} names a column twice")
            continue
        number += 1
        require(
            len(fields) == len(header),
            f"{where} has {len(fields)} fields, but the header has {len(header)}",
        )
        yield number, dict(zip(header, fields, strict=True))


def _parquet_rows(path: AnyPath) -> Iterator[tuple[int, Row]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise InputError(
            f"{path} needs the package pyarrow: pip install pyarrow, or write it as .jsonl"
        ) from error
    number = 0
    try:
        with path.open("rb") as file:
            for batch in parquet.ParquetFile(file).iter_batches(_PARQUET_ROWS):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except pyarrow.ArrowException as error:
        said = str(error).partition("\n")[0]
        raise InputError(f"{path} cannot be read at row {number + 1}: {said}") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {reason(error)}") from error
