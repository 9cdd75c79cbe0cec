"""Splits text into sentences and words for the judge."""

import re

_QUOTED = re.compile(r'"[^"]*"')
_STOP = re.compile(r'(?<!Mr)(?<!Mrs)[.!?]"? (?=["A-Z])')
_WORD = re.compile(r"[A-Za-z]+(?:'[a-z]+)?")
_MARKS = str.maketrans(".!?", ",,,")


def word_set(text: str) -> frozenset[str]:
    """The set of words in a table."""
    return frozenset(text.split())


def words(text: str) -> list[str]:
    """The words of a text as they are written, without punctuation."""
    return _WORD.findall(text)


def sentences(text: str) -> list[str]:
    """The sentences of a text; quoted speech belongs to the sentence around it.

    `"Stay!" said Mia. "I am here."` has two. The last may lack its full stop.
    """
    text = " ".join(text.split())
    if not text:
        return []
    seen = _QUOTED.sub(_hide, text) if '"' in text else text
    parts, start = [], 0
    for stop in _STOP.finditer(seen):
        parts.append(text[start : stop.end() - 1])
        start = stop.end()
    return [*parts, text[start:]]


def _hide(quoted: re.Match[str]) -> str:
    """The quotation with all marks but its last made harmless, equally long."""
    return quoted[0][:-2].translate(_MARKS) + quoted[0][-2:]


def unquoted(text: str) -> str:
    """The text without quoted speech."""
    return _QUOTED.sub('""', text) if '"' in text else text


def closed(sentence: str) -> bool:
    """Whether a sentence ends with a full stop or the like."""
    return sentence.rstrip('"').endswith((".", "!", "?"))
