"""Plain files as documents: JSON lines and text, gzip or not, alone or in folders, also remote.

A file is scanned (digest, UTF-8, line lengths) and cut at document ends into chunks of some
megabytes, which processes then read on their own.
"""

import codecs
import gzip
import hashlib
import io
import itertools
import json
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

from llama_jax.config import InputError, require
from llama_jax.data import folders
from llama_jax.runtime.files import AnyPath, as_path, reason

_PLAIN = (".jsonl", ".ndjson", ".json", ".txt")
SUFFIXES = (*_PLAIN, *(f"{suffix}.gz" for suffix in _PLAIN))
SEPARATOR = "<|endoftext|>"
"""A line that holds only this ends a document in a .txt file."""
MAX_LINE_BYTES = 64 << 20
CHUNK_BYTES = 4 << 20
_PASSAGE_CHARS = 4096  # a .txt without separators is cut at the first blank line after these ...
_PASSAGE_MAX = 1 << 20  # ... or at the first line end after these


@dataclass(frozen=True)
class Chunk:
    """Bytes [start, stop) of a file, starting with line number `line`."""

    path: str
    start: int
    stop: int
    line: int
    separated: bool
    """Whether the .txt file holds separator lines."""


@dataclass(frozen=True)
class Scan:
    """The result of a scan: the SHA-256 of the text and the places where it can be cut."""

    digest: str
    chunks: tuple[Chunk, ...]
    """None for an empty file."""


def find_files(path: AnyPath, suffixes: tuple[str, ...] = SUFFIXES) -> list[AnyPath]:
    """The data files that `folders.search` finds; the others are logged."""
    files, left = folders.search(path, suffixes)
    folders.say(path, len(files), left)
    return files


def scan(path: AnyPath, chunk_bytes: int = CHUNK_BYTES) -> Scan:
    """Read a file once and find its chunks.

    Raises InputError, with the line, if it is not UTF-8 or holds a line above 64 MiB.
    """
    digest, separated, size, lines = hashlib.sha256(), False, 0, 0
    cuts = [(0, 1)]
    mark = SEPARATOR.encode()
    with open_file(path) as file:
        for number, line in raw_lines(path, file):
            digest.update(line.removeprefix(codecs.BOM_UTF8))
            separated = separated or line.strip() == mark
            size, lines = size + len(line), number
            if size - cuts[-1][0] >= chunk_bytes:
                cuts.append((size, number + 1))
    if path.name.endswith(".gz"):
        cuts = [(0, 1)]  # only whole: gzip cannot start in the middle
    elif _is_text(path):
        cuts = _text_cuts(path, separated, chunk_bytes)
    if cuts[-1][0] < size:
        cuts.append((size, lines + 1))
    chunks = [
        Chunk(str(path), start, stop, line, separated)
        for (start, line), (stop, _) in itertools.pairwise(cuts)
    ]
    return Scan(digest.hexdigest(), tuple(chunks))


def read_chunk(chunk: Chunk, field: str) -> Iterator[str]:
    """The documents of a chunk. InputError, with file and line, for a line without a document."""
    path = as_path(chunk.path)
    with open_file(path) as file:
        file.seek(chunk.start)
        lines = _lines_until(path, file, chunk)
        if _is_text(path):
            yield from (text for text, _, _ in _text_documents(lines, chunk.separated))
        else:
            for number, line in lines:
                if line.strip():
                    yield _json_text(path, number, line, field)


def begins_with(path: AnyPath, field: str) -> bool:
    """Whether the first line of a file is an object with text in a field, as in JSON lines."""
    with open_file(path) as file:
        try:
            value: Any = json.loads(file.readline(MAX_LINE_BYTES))
        except (OSError, EOFError, ValueError, RecursionError):
            return False
    return isinstance(value, dict) and isinstance(value.get(field), str)


def _is_text(path: AnyPath) -> bool:
    return path.name.removesuffix(".gz").endswith(".txt")


@contextmanager
def open_file(path: AnyPath) -> Iterator[BinaryIO]:
    """The bytes of a file, decompressed if it is gzip. InputError if it cannot be opened."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise InputError(f"data {path} cannot be read: {reason(error)}") from error
    with file:
        if not isinstance(file, io.BufferedReader):  # an object store's knows no limit of a line
            file = io.BufferedReader(file)
        yield gzip.GzipFile(fileobj=file) if path.name.endswith(".gz") else file  # type: ignore


def raw_lines(path: AnyPath, file: BinaryIO, first: int = 1) -> Iterator[tuple[int, bytes]]:
    """Numbered lines. InputError for one above 64 MiB, with a NUL byte or not UTF-8."""
    number = first
    while True:
        try:
            line = file.readline(MAX_LINE_BYTES + 1)
        except (OSError, EOFError, zlib.error) as error:  # of gzip: truncated, damaged or none
            raise InputError(f"data {path} cannot be read at line {number}: {error}") from error
        if not line:
            return
        require(
            len(line) <= MAX_LINE_BYTES,
            f"data {path}, line {number} is longer than {MAX_LINE_BYTES >> 20} MiB; "
            "cut it into documents",
        )
        require(
            number > 1 or not line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)),
            f"data {path} is UTF-16; convert it: iconv -f UTF-16 -t UTF-8",
        )
        require(b"\0" not in line, f"data {path}, line {number} holds a NUL byte: not a text file")
        try:
            line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(
                f"data {path}, line {number}, byte {error.start} is not UTF-8; "
                "convert the file, for example with iconv"
            ) from error
        yield number, line
        number += 1


def _lines_until(path: AnyPath, file: BinaryIO, chunk: Chunk) -> Iterator[tuple[int, bytes]]:
    left = chunk.stop - chunk.start
    for number, line in raw_lines(path, file, chunk.line):
        yield number, line
        left -= len(line)
        if left <= 0:
            return


def _text_cuts(path: AnyPath, separated: bool, chunk_bytes: int) -> list[tuple[int, int]]:
    """(byte, line) at the ends of documents, at least `chunk_bytes` apart."""
    cuts = [(0, 1)]
    with open_file(path) as file:
        for _, end, line in _text_documents(raw_lines(path, file), separated):
            if end - cuts[-1][0] >= chunk_bytes:
                cuts.append((end, line))
    return cuts


def _text_documents(
    lines: Iterator[tuple[int, bytes]], separated: bool
) -> Iterator[tuple[str, int, int]]:
    """(text, bytes read so far, next line) of each document of a .txt file."""
    parts: list[str] = []
    chars = offset = number = 0
    for number, raw in lines:
        offset += len(raw)
        line = raw.removeprefix(codecs.BOM_UTF8).decode("utf-8")
        blank = not line.strip()
        if separated:
            ends = line.strip() == SEPARATOR
        else:
            ends = chars >= _PASSAGE_MAX or (blank and chars >= _PASSAGE_CHARS)
        if not (separated and ends):
            parts.append(line)
            chars += len(line)
        if ends:
            if text := "".join(parts).strip("\r\n"):
                yield text, offset, number + 1
            parts, chars = [], 0
    if text := "".join(parts).strip("\r\n"):
        yield text, offset, number + 1


def _json_text(path: AnyPath, number: int, line: bytes, field: str) -> str:
    """The text field of one JSON line."""
    where = f"data {path}, line {number}"
    try:
        value: Any = json.loads(line)  # which knows byte order marks
    except (ValueError, RecursionError) as error:
        hint = "; a JSON array becomes lines with jq -c '.[]'" if line.strip() == b"[" else ""
        raise InputError(f"{where} is not JSON: {error}{hint}") from error
    array = "; jq -c '.[]' makes lines of a JSON array" if isinstance(value, list) else ""
    require(isinstance(value, dict), f"{where} is not a JSON object{array}")
    text = text_of(value, field, where)
    if b"\\u" in line:  # only an escape can bring in a lone surrogate
        surrogate = any("\ud800" <= character <= "\udfff" for character in text)
        require(not surrogate, f"{where} holds a lone surrogate, which is not valid Unicode")
    return text


def text_of(record: Mapping[str, Any], field: str, where: str) -> str:
    """The text field of a record. Otherwise InputError says what the field holds, or which fields
    exist."""
    if field not in record:
        raise InputError(
            f"{where} has no field {field!r}; it has {sorted(map(str, record))[:8]}; name the "
            "right one with --data.text-field"
        )
    value = record[field]
    require(
        isinstance(value, str),
        f"{where} has {_kind(value)} in its field {field!r}, where text belongs; leave such "
        "records out, or name another field with --data.text-field",
    )
    return value


def _kind(value: Any) -> str:
    """What a JSON value is, for messages: "null", "a list", "the number 5"."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, int | float):
        return f"the number {value!r:.20}"
    return {dict: "an object", list: "a list", str: "a text"}.get(type(value), type(value).__name__)
