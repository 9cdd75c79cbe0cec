"""Reads data files of any format as records of one kind, and reports what became of their rows."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from llama_jax.config import InputError, require
from llama_jax.data.chat import check_text
from llama_jax.data.formats import chitchat, rows
from llama_jax.data.formats.items import Drop, Note, Row, shown
from llama_jax.data.formats.judge import judge
from llama_jax.data.formats.table import FORMATS, KINDS, Numbered, lacking, lookup, matching
from llama_jax.data.records import Preference, Record
from llama_jax.runtime.files import AnyPath, PathLike, as_path

_UNRATED = Note("nobody rated the pair")
_OWN = ("messages", "preference")  # records keep the source that they were written with, or none


@dataclass
class Tally:
    """Number of occurrences, and the row of the first."""

    row: str
    count: int = 0


@dataclass
class Report:
    """The outcome of the rows read so far."""

    path: str
    kind: str
    format: str
    rows: int = 0
    records: int = 0
    dropped: dict[str, Tally] = field(default_factory=dict)
    """By reason. A row that holds several answers or messages can count more than once."""
    notes: dict[str, Tally] = field(default_factory=dict)
    """Changes of records, or things missing from them."""

    def count(self, item: Drop | Note, row: str) -> None:
        """Add to the dropped or noted items."""
        tallies = self.dropped if isinstance(item, Drop) else self.notes
        tallies.setdefault(item[0], Tally(row)).count += 1

    def lines(self) -> list[str]:
        """For people: one line for the whole, one for each reason."""
        title = FORMATS[self.format].title
        made = "".join((f"{self.records:,} {self.kind}", "s" if self.records != 1 else ""))
        read = "".join((f"{self.rows:,} row", "s" if self.rows != 1 else ""))
        return [
            f"{self.path}: {made} from {read} of {title}",
            *(f"  dropped {t.count:,}: {why} (first: {t.row})" for why, t in self.dropped.items()),
            *(f"  noted {t.count:,}: {what} (first: {t.row})" for what, t in self.notes.items()),
        ]


class Reading:
    """The records of a file or folder: an iterable that reads it anew each time.

    `report` describes the newest iteration and is complete when that is.
    """

    def __init__(self, files: Sequence[AnyPath], report: Report, named: bool):
        self.files, self._named, self.report = files, named, report

    def __iter__(self) -> Iterator[Record]:
        """Records in the order of the files. InputError, with file and row, as in `table`."""
        report = Report(self.report.path, self.report.kind, self.report.format)
        self.report = report
        form = FORMATS[report.format]
        found = self._checked(report)
        for path, number, row in form.assemble(found) if form.assemble else found:
            where = f"{path}, row {number}"
            first = f"row {number}" if len(self.files) == 1 else f"{path.name}, row {number}"
            with _located(where):
                items = list(form.reads[report.kind](row))
            source = _source(row, where) or ("" if report.format in _OWN else report.format)
            for item in items:
                for found in judge(item, report.kind, where, form.lenient):
                    if isinstance(found, (Drop, Note)):
                        report.count(found, first)
                        continue
                    if isinstance(found, Preference) and found.rating is found.margin is None:
                        report.count(_UNRATED, first)
                    report.records += 1
                    yield replace(found, source=found.source or source)
        require(report.records, f"{report.path} holds no {report.kind}: " + _why(report))

    def _checked(self, report: Report) -> Iterator[Numbered]:
        """The rows, which are counted, each of the format."""
        for path, number, row in _rows(self.files):
            report.rows += 1
            self._check_format(row, f"{path}, row {number}")
            yield path, number, row

    def _check_format(self, row: Row, where: str) -> None:
        name = self.report.format
        if self._named:
            missing = lacking(name, row)
            require(not missing, f"{where} is not of format {name}: it lacks {', '.join(missing)}")
        elif (found := matching(row)) != [name]:
            others = " or ".join(found) if found else f"of no known format, {_columns(row)}"
            raise InputError(
                f"{where} is {others}, but the first row is {name}; a file holds one format: split "
                f"it, or name the format with --format"
            )


def open_records(path: PathLike, kind: str, format: str | None = None) -> Reading:
    """Records of a `kind` (dialogue, preference or prompt) from a data file or a folder of them.

    `path` may be gs:// and the like, or `chitchat` for the installed package chitchat-dataset.
    `format` names a row of `table.FORMATS`; without it the keys of the first row decide, and every
    row must agree. Richer records can serve as poorer ones: a preference's chosen answer as a
    dialogue, a dialogue without its last answer as a prompt.

    Raises InputError if there is no such file, kind or format, if the first row fits none or
    several formats, or if no record of the kind can be made of it; reading raises it for rejected
    rows (see `table`) and if no row gives a record.
    """
    require(kind in KINDS, f"kind {kind!r} is unknown; kinds are {', '.join(KINDS)}")
    target = chitchat.package_file() if path == chitchat.NAME else as_path(path)
    files = rows.find(target)
    name = lookup(format) if format else _recognise(files, str(target))
    require(
        kind in FORMATS[name].reads,
        f"{target} is {FORMATS[name].title}: it can be read as {' or '.join(FORMATS[name].reads)}, "
        f"not as {kind}",
    )
    return Reading(files, Report(str(target), kind, name), named=format is not None)


def _rows(files: Sequence[AnyPath]) -> Iterator[Numbered]:
    for path in files:
        for number, row in rows.read(path):
            yield path, number, row


def _recognise(files: Sequence[AnyPath], path: str) -> str:
    first = next(_rows(files), None)
    if first is None:
        raise InputError(f"{path} holds no rows")
    file, number, row = first
    where = f"{file}, row {number}"
    found = matching(row)
    if len(found) > 1:
        raise InputError(f"{where} fits formats {' and '.join(found)}; name one with --format")
    if not found:
        known = ", ".join(FORMATS)
        raise InputError(f"{where} is of no known format: {_columns(row)}; known are {known}")
    return found[0]


def _columns(row: Row) -> str:
    names = sorted(row)
    more = ", ..." if len(names) > 8 else ""
    return f"it has {', '.join(map(shown, names[:8])) or 'no columns'}{more}"


def _source(row: Row, where: str) -> str:
    source = row.get("source")
    if not isinstance(source, str):
        return ""
    check_text(source, f"{where}, source")
    return source


@contextmanager
def _located(where: str) -> Iterator[None]:
    try:
        yield
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def _why(report: Report) -> str:
    if not report.rows:
        return "the file is empty"
    reasons = "; ".join(f"{tally.count:,} times {why}" for why, tally in report.dropped.items())
    return f"all of its {report.rows:,} rows were dropped ({reasons})"
