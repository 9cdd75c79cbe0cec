"""Resolves `DataConfig.dataset` for conversations, into parts that workers read separately.

It names `tales`, `tales:5000`, `tales_safety` (unkind requests), `tales_harmless` (requests that
only look unkind), a data file of any format that `formats` knows or a folder of them (gs:// too),
or a mixture such as `tales=0.7,my.jsonl=0.3`.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from llama_jax.config import InputError
from llama_jax.data import formats, sources
from llama_jax.data.corpora import tales
from llama_jax.data.records import Record
from llama_jax.data.sources import TRAIN, VALIDATION
from llama_jax.data.split import VALIDATION_SHARE, in_validation
from llama_jax.runtime.files import reason

VERSION = 1
"""Increase it whenever a file of the same bytes gives other records: it is part of fingerprints."""
DROPPED, NOTED = "dropped", "noted"
"""Prefixes of the names of counts of what was left out or changed, followed by the reason."""
NUM_TALES = 20_000
"""Training records of `tales` if no number is given."""
CORPORA = (*tales.CORPORA, "chitchat")
"""Names that are not files; `chitchat` is an installed package."""
_PART_BYTES, _MAX_PARTS = 16 << 20, 16


@runtime_checkable
class RecordSource(Protocol):
    """A corpus of records that can be pickled, cut into chunks and read chunk by chunk."""

    @property
    def name(self) -> str:
        """Its name in messages and folders."""
        ...

    @property
    def identity(self) -> str:
        """Equal for equal records in equal order; part of the fingerprint."""
        ...

    def chunks(self, split: str) -> Sequence[Any]:
        """Pieces of the split in order, whatever the number of processes."""
        ...

    def records(self, split: str, chunk: Any, counts: Counter[str]) -> Iterator[tuple[str, Record]]:
        """(location, record) of the records in the chunk that belong to the split.

        What was left out or changed is added to `counts`, in one of the splits.
        """
        ...


def resolve_records(
    spec: str, kind: str, format: str | None = None
) -> list[tuple[RecordSource, float]]:
    """The sources of records of a `kind` that a specification names, with weights that sum to 1.

    `format` names the format of the files; by default the first row of each decides. Raises
    InputError for unknown names, bad weights, and files that are missing, empty or of no known
    format.
    """
    return sources.mix(spec, lambda name: _source(name, kind, format))


def _source(name: str, kind: str, format: str | None) -> RecordSource:
    corpus, _, number = name.partition(":")
    if corpus in tales.CORPORA:
        generate = tales.generator(corpus, kind)
        count = sources.count(name, number) if number else NUM_TALES
        return Generated(corpus, f"{corpus} {tales.RECORDS_VERSION} {kind}", generate, count)
    path = name if name in CORPORA else sources.existing(name, CORPORA)
    return RecordFiles(path, kind, format)


@dataclass(frozen=True)
class RecordFiles:
    """A data file or a folder of them; a hash of the first question decides a record's split."""

    path: str
    kind: str
    format: str | None = None

    @property
    def name(self) -> str:
        """The file's or folder's name without its ending."""
        return Path(self.path).name.split(".")[0] or "records"

    @cached_property
    def _content(self) -> tuple[str, int]:
        """SHA-256 of the files in order, and their bytes."""
        digest, size = hashlib.sha256(), 0
        for path in self._open().files:
            try:
                with path.open("rb") as file:
                    while block := file.read(1 << 20):
                        digest.update(block)
                        size += len(block)
            except OSError as error:
                raise InputError(f"data {path} cannot be read: {reason(error)}") from error
            digest.update(b"\0")
        return digest.hexdigest(), size

    def _open(self) -> formats.Reading:
        return formats.open_records(self.path, self.kind, self.format)

    @property
    def identity(self) -> str:
        """Digest of the contents, wherever the files lie, and of the way they are read."""
        return f"records {VERSION} {self.kind} {self.format} {self._content[0]}"

    def chunks(self, split: str) -> list[tuple[int, int]]:
        """(first record, stride): every part reads from the beginning and encodes only its own
        records."""
        parts = min(_MAX_PARTS, 1 + self._content[1] // _PART_BYTES)
        return [(first, parts) for first in range(parts)]

    def records(
        self, split: str, chunk: tuple[int, int], counts: Counter[str]
    ) -> Iterator[tuple[str, Record]]:
        """Every stride-th record; what was left out of the file is counted with the first part."""
        first, stride = chunk
        reading = self._open()
        for number, record in islice(enumerate(reading, 1), first, None, stride):
            if in_validation(first_question(record)) == (split == VALIDATION):
                yield f"data {self.path}, {self.kind} {number}", record
        if split == TRAIN and first == 0:
            report = reading.report
            for what, tallies in ((DROPPED, report.dropped), (NOTED, report.notes)):
                for why, tally in tallies.items():
                    counts[f"{what}: {why}"] += tally.count


def first_question(record: Record) -> str:
    """The first user text: records that share it belong to one split."""
    return next(m["content"] for m in record.messages if m["role"] == "user").strip()


@dataclass(frozen=True)
class Generated:
    """Records that a function makes from their number and split."""

    name: str
    version: str
    generate: Callable[[int, str], Record]
    num_train: int

    @property
    def identity(self) -> str:
        """Version and number of records."""
        return f"generated {self.version} {self.num_train}"

    def chunks(self, split: str) -> list[range]:
        """Ranges of numbers; one record is held out for every 20 to train on."""
        size = self.num_train if split == TRAIN else -(-self.num_train // VALIDATION_SHARE)
        return sources.ranges(size)

    def records(
        self, split: str, chunk: range, counts: Counter[str]
    ) -> Iterator[tuple[str, Record]]:
        """Generated on the spot."""
        for number in chunk:
            yield f"{self.name} {number} of {split}", self.generate(number, split)


Half = Literal["all", "first", "second"]


def half_of(source: RecordSource, half: Half) -> RecordSource:
    """The records of one half of the conversations of a source, or all."""
    return source if half == "all" else HalfOf(source, half)


@dataclass(frozen=True)
class HalfOf:
    """One half of a source's conversations, by a hash of their first question."""

    source: RecordSource
    half: Half

    @property
    def name(self) -> str:
        """The source's, and which half."""
        return f"{self.source.name}-{self.half}"

    @property
    def identity(self) -> str:
        """The source's, and which half."""
        return f"{self.source.identity} {self.half} half"

    def chunks(self, split: str) -> Sequence[Any]:
        """The source's own."""
        return self.source.chunks(split)

    def records(self, split: str, chunk: Any, counts: Counter[str]) -> Iterator[tuple[str, Record]]:
        """Those of the half."""
        for where, record in self.source.records(split, chunk, counts):
            digest = hashlib.sha256(first_question(record).encode("utf-8", "replace")).digest()
            if (digest[0] % 2 == 1) == (self.half == "second"):
                yield where, record
