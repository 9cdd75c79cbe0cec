"""`llama-jax data show`: prints a file's records as a model sees them, trained tokens marked.

In a terminal answers are coloured; where there are no colours they stand in {+...+}, and rejected
answers in [-...-], as in word diffs. `page` makes one HTML page that shows every token.
"""

import html
import os
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from string import Template
from typing import NamedTuple

from llama_jax.config import InputError, require
from llama_jax.data.chat import encode_answer, encode_dialogue, render
from llama_jax.data.formats import FORMATS, Reading, Report, open_records
from llama_jax.data.records import RATINGS, Dialogue, Preference, Prompt, Record
from llama_jax.data.tokenizer import Tokenizer

KINDS = ("preference", "dialogue", "prompt")
"""Kinds of records, the richest first."""
_MEASURED = 1000
"""Records whose tokens are counted; more say the same and take long."""
_COLOURS = {"trained": "\x1b[32m", "rejected": "\x1b[31m", "heading": "\x1b[1m"}
_BRACKETS = {"trained": ("{+", "+}"), "rejected": ("[-", "-]")}
_RESET = "\x1b[0m"
_BEFORE = {"rejected": "\n"}
"""Stands before a marked text but does not belong to it."""


class Span(NamedTuple):
    """Text with one mark; a single token where a tokenizer is at hand."""

    text: str
    mark: str
    """trained, rejected or nothing."""
    token: int | None = None


class Shown(NamedTuple):
    """One record, ready to be printed."""

    heading: str
    spans: tuple[Span, ...]


@dataclass
class Lengths:
    """Tokens in a row of each of the first records, and the marked ones among them."""

    rows: list[int] = field(default_factory=list)
    tokens: Counter[str] = field(default_factory=Counter)

    def add(self, spans: Sequence[Span]) -> None:
        """Count a record's tokens; of a pair the longer row counts."""
        marks = Counter(span.mark for span in spans)
        self.rows.append(marks[""] + max(marks["trained"], marks["rejected"]))
        self.tokens.update(marks)

    def lines(self) -> list[str]:
        """One line, if anything was measured."""
        if not self.rows:
            return []
        many = len(self.rows)
        of = f"the first {many:,} records" if many > 1 else "the first record"
        answers = self.tokens.total() - self.tokens[""]
        return [
            f"tokens of {of}: median {statistics.median(self.rows):,.0f}, longest "
            f"{max(self.rows):,}; {100 * answers / self.tokens.total():.1f} % in marked answers"
        ]


class Show:
    """The records of a file, to be iterated over once; `report` and `lengths` are complete then."""

    def __init__(self, reading: Reading, tokenizer: Tokenizer | None, limit: int):
        self._reading, self._tokenizer, self._limit = reading, tokenizer, limit
        self.lengths = Lengths()

    @property
    def report(self) -> Report:
        """The outcome of the rows."""
        return self._reading.report

    def __iter__(self) -> Iterator[Shown]:
        """The first records; the rest is read and counted. Raises InputError as `formats` does."""
        for number, record in enumerate(self._reading, 1):
            if number <= max(self._limit, _MEASURED if self._tokenizer else 0):
                spans = _spans(record, self._tokenizer)
                if self._tokenizer is not None:
                    self.lengths.add(spans)
                if number <= self._limit:
                    yield Shown(f"{number}. {_about(record, spans)}".strip(), spans)

    def summary(self) -> list[str]:
        """Numbers of records read, mapped and dropped, and their lengths."""
        return [_printable(line) for line in (*self.report.lines(), *self.lengths.lines())]


def show(
    path: str,
    *,
    format: str | None = None,
    kind: str | None = None,
    tokenizer: Tokenizer | None = None,
    limit: int = 10,
) -> Show:
    """The records of a file, as the richest kind that its format has unless `kind` is given.

    Raises InputError as `formats.open_records` does.
    """
    require(limit >= 0, f"--limit {limit} must not be negative")
    reading = open_records(path, kind, format) if kind else _richest(path, format)
    return Show(reading, tokenizer, limit)


def _richest(path: str, format: str | None) -> Reading:
    """Preferences, or else dialogues, or else prompts: the first that the rows hold."""
    name = open_records(path, KINDS[-1], format).report.format  # prompts are in every format
    *richer, last = (kind for kind in KINDS if kind in FORMATS[name].reads)
    for kind in richer:
        reading = open_records(path, kind, format)
        try:
            next(iter(reading))
            return reading
        except InputError:
            if not reading.report.dropped:  # a row was refused, not found to hold no such record
                raise
    return open_records(path, last, format)


def wants_colour(is_terminal: bool) -> bool:
    """Whether to print in colour: to terminals that support it, unless NO_COLOR is set."""
    no = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return is_terminal and not no


def terminal(shown: Shown, colour: bool) -> str:
    """A record as text, with colours or brackets around trained parts."""
    parts = [_paint(shown.heading, "heading", colour), "\n"]
    for mark, group in groupby(shown.spans, key=lambda span: span.mark):
        text = _printable("".join(span.text for span in group))
        parts.append(_BEFORE.get(mark, "") + _paint(text, mark, colour))
    return "".join(parts) + "\n"


def page(title: str, shown: Iterable[Shown], summary: Sequence[str]) -> str:
    """One self-contained HTML page; token ids appear under the pointer."""
    records = "\n".join(map(_html_record, shown))
    return _PAGE.substitute(
        title=html.escape(title),
        summary="\n".join(map(html.escape, summary)),
        records=records,
    )


def _spans(record: Record, tokenizer: Tokenizer | None) -> tuple[Span, ...]:
    """What a model sees of a record: the prompt once, then the answer, or both of a pair."""
    # Only a dialogue's answers are trained on, not those in the prompt of another record.
    answer_mark = "trained" if isinstance(record, Dialogue) else ""
    answers = ()
    if isinstance(record, Preference):
        answers = ((record.chosen, "trained"), (record.rejected, "rejected"))
    if tokenizer is None:
        parts = [
            (text, answer_mark if trained else "") for text, trained in render(record.messages)
        ]
        parts += [(f" {text.strip()} </s>", mark) for text, mark in answers]
        return tuple(Span(text, mark) for text, mark in parts)
    ids, trained = encode_dialogue(tokenizer, record.messages)
    spans = _tokens(tokenizer, ids, [answer_mark if kept else "" for kept in trained])
    for text, mark in answers:
        answer = encode_answer(tokenizer, text)
        marks = [""] * len(ids) + [mark] * len(answer)
        spans += _tokens(tokenizer, ids + answer, marks)[len(ids) :]
    return tuple(spans)


def _tokens(tokenizer: Tokenizer, ids: Sequence[int], marks: Sequence[str]) -> list[Span]:
    """A span for each token; the bytes of a character stand with its last one."""
    decode = tokenizer.decoder()
    names = {tokenizer.bos_id: "<s>", tokenizer.eos_id: "</s>"}
    spans = []
    for token, mark in zip(ids, marks, strict=True):
        if token == tokenizer.bos_id:
            decode = tokenizer.decoder()  # the space that begins a text is sentencepiece's own
        spans.append(Span(names.get(token) or decode([token]), mark, token))
    return spans


def _about(record: Record, spans: Sequence[Span]) -> str:
    """Where a record comes from, its tokens if they are known, and what people said of it."""
    parts = [record.source] if record.source else []
    if spans[0].token is not None:
        marks = Counter(span.mark for span in spans)
        prompt, trained, rejected = (marks[mark] for mark in ("", "trained", "rejected"))
        if isinstance(record, Preference):
            parts.append(f"{prompt:,} tokens, then {trained:,} chosen or {rejected:,} rejected")
        else:
            parts.append(f"{prompt + trained:,} tokens")
        if isinstance(record, Dialogue):
            parts.append(f"{trained:,} trained on")
    if isinstance(record, Preference):
        parts.append("unrated" if record.rating is None else f"{RATINGS[record.rating]} better")
        if record.margin is not None:
            parts.append(f"margin {record.margin:g}")
        for name, safe in (("chosen", record.safe_chosen), ("rejected", record.safe_rejected)):
            if safe is not None:
                parts.append(f"{name} answer {'safe' if safe else 'unsafe'}")
    if isinstance(record, Prompt) and record.safety:
        parts.append("judged for safety")
    return _printable(", ".join(parts))


def _printable(text: str) -> str:
    """Control characters as their escapes: a file must not steer a terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)


def _paint(text: str, mark: str, colour: bool) -> str:
    if colour and mark:
        return f"{_COLOURS[mark]}{text}{_RESET}"
    before, after = _BRACKETS.get(mark, ("", ""))
    return f"{before}{text}{after}"


def _html_record(shown: Shown) -> str:
    parts = []
    for mark, group in groupby(shown.spans, key=lambda span: span.mark):
        parts += [_BEFORE.get(mark, ""), *map(_html_span, group)]
    return f"<h2>{html.escape(shown.heading)}</h2>\n<pre>{''.join(parts)}</pre>"


def _html_span(span: Span) -> str:
    text = html.escape(_printable(span.text))
    token = "" if span.token is None else f' title="{span.token}"'
    mark = f' class="{span.mark}"' if span.mark else ""
    return f"<span{mark}{token}>{text}</span>" if mark or token else text


_PAGE = Template("""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>$title</title>
<style>
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; }
h2 { font-size: 1rem; font-weight: 600; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; padding: 0.8rem; border-radius: 6px;
      background: color-mix(in srgb, currentColor 6%, transparent); }
span[title]:hover { outline: 1px solid; }
.trained { background: color-mix(in srgb, seagreen 35%, transparent); }
.rejected { background: color-mix(in srgb, firebrick 35%, transparent); }
</style>
<h1>$title</h1>
<pre>$summary</pre>
<p><span class="trained">Answers that are trained on, or chosen</span>,
<span class="rejected">rejected answers</span>; &lt;s&gt; and &lt;/s&gt; stand for BOS and EOS.</p>
$records
</html>
""")
