"""Scores how much a text reads like the tales; penalises repetition, lists and garbage."""

import re
from collections.abc import Iterable
from functools import cache
from itertools import pairwise

from llama_jax.data.corpora.tales.instructions import MIX, instruction, short_story
from llama_jax.data.corpora.tales.prose import closed, word_set, words
from llama_jax.data.corpora.tales.stories import story
from llama_jax.data.corpora.tales.wishes import VALUES

LONGEST = 40
"""Maximum number of words of a sentence that is not a run-on."""
_LITTLE = word_set(
    "a an the and but so or then there that this it its he she they we you i him her his them"
    " their my your me to of in at on with for from by up down out off into under over behind next"
    " around as if is was were are had has have be been did do does not no all one when who because"
    " how what again very too only now just"
)
_NO_NOUN = word_set("a an the and but was were is had he she it they to of in at so then from")
_NO_OBJECT = word_set("and was were is had he she they but so then said did went")
_NO_PREDICATE = word_set("a an the he she it they of his")
_NEVER_AFTER = {
    **dict.fromkeys(("a", "an", "the"), _NO_NOUN),
    **dict.fromkeys(("to", "of", "at", "with", "into", "from", "for"), _NO_OBJECT),
    **dict.fromkeys(("he", "she", "they", "i"), _NO_PREDICATE),
    "and": word_set("and but of"),
}
"""Words that cannot come right after another: `the was`, `of she`, `he the`."""
_TWICE = re.compile(r"\b(\w+) \1\b")
_VERBS = word_set(
    "is are was were am be been do does did done has have had can could will would may might must"
    " shall should go goes went gone come comes came say says said tell tells told ask see sees saw"
    " seen look find found get gets got give gives gave given take takes took make makes made put"
    " puts let lets run runs ran sit sat stand stood lie lay sleep sleeps slept fall fell feel felt"
    " know knows knew think thought hear heard hold held keep kept leave left lose lost begin began"
    " bring brought buy bought catch caught draw drew drink drinks drank eat eats ate fly flies"
    " flew forget forgot grow grew hide hid hit cut read ride rode ring rang rise rose send sent"
    " shake shook shine shone sing sang speak spoke spin spun steal stole stick stuck swim swam"
    " swing throw threw wake woke wear wore win won write wrote build built blow blew break broke"
    " meet met dig dug bite bit crept became hurt hurts set spend spent wait walk wash turn open"
    " close help like likes love loves live lives want wants need needs play try show share talk"
    " call smile learn step wave hope mean means use beat drop stay carry carries climb climbs wag"
    " wags happens slide tap taps clap claps pinch push pull kick lock scare kill shout follow"
    " follows hop hops jump jumps"
)
"""Verbs that do not end with -ed."""


_ALIKE = {
    word.lower(): kind for kind in ("hero", "animal", "toy", "place") for word in VALUES[kind]
}


def plain_english(sentences: list[str], by_sentence: list[list[str]], short: bool) -> float:
    """1 for plain English of any kind, less for text that is hardly English; never below 0.

    `by_sentence` has the lower-case words of each sentence. `short` allows for an answer of a few
    exclamations.
    """
    plain = [word for sentence in by_sentence for word in sentence]
    if not plain:
        return 0.0
    little = sum(map(_LITTLE.__contains__, plain)) / len(plain)
    mixed = _ramp(little, 0.0, 0.12) * _ramp(1 - little, 0.0, 0.1) if len(plain) >= 8 else 1.0
    return mixed * _known(plain) * varied(plain) * _formed(sentences, by_sentence, short)


def varied(plain: list[str]) -> float:
    """1 if hardly any four words in a row are repeated; 0 if every other group is."""
    groups = list(zip(*(plain[k:] for k in range(4)), strict=False))
    return _ramp(len(set(groups)) / len(groups), 0.5, 0.94) if groups else 1.0


def copied(plain: list[str], source: list[str]) -> float:
    """0 if at most 40 % of the words are in runs of five or more from `source`, 1 from 80 %.

    1 as well if the two are the same.
    """
    if plain == source:
        return 1.0
    runs = set(zip(*(source[k:] for k in range(5)), strict=False))
    inside = [False] * len(plain)
    for i, run in enumerate(zip(*(plain[k:] for k in range(5)), strict=False)):
        if run in runs:
            inside[i : i + 5] = [True] * 5
    return _ramp(sum(inside) / max(1, len(inside)), 0.4, 0.8)


def _known(plain: list[str]) -> float:
    """1 if 85 % of the words are words of the tales, and 40 % of the pairs of neighbours pairs.

    A few words have too few pairs to tell.
    """
    vocabulary, pairs = language()
    known = _ramp(sum(map(vocabulary.__contains__, plain)) / len(plain), 0.45, 0.85)
    if len(plain) < 8:
        return known
    share = sum(map(pairs.__contains__, _pairs(plain))) / (len(plain) - 1)
    return known * _ramp(share, 0.1, 0.4)


@cache
def language() -> tuple[frozenset[str], frozenset[tuple[str, str]]]:
    """The words, and the pairs of words, that occur in the tales and in requests and answers about
    them.

    In pairs, one name stands for all names, one animal for all animals, and so on.
    """
    texts = [story(i) for i in range(540)] + [short_story(i) for i in range(540)]
    for kind in MIX:
        for i in range(120):
            texts += [message["content"] for message in instruction(i, kind=kind).messages]
    plain = [words(text.lower()) for text in texts]
    pairs = frozenset(pair for text in plain for pair in _pairs(text))
    return frozenset(word for text in plain for word in text), pairs


def _pairs(plain: list[str]) -> Iterable[tuple[str, str]]:
    return pairwise([_ALIKE.get(word, word) for word in plain])


def _formed(sentences: list[str], by_sentence: list[list[str]], short: bool) -> float:
    """The share of sentences that are well formed; the last one may be cut off.

    A few sentences of up to three words, such as exclamations, do not count.
    """
    long = [
        well_formed(sentence, plain)
        for sentence, plain in zip(sentences, by_sentence, strict=True)
        if len(plain) > 3
    ]
    ignored = 3 if short else 1 + len(sentences) // 4
    counted = len(long) + max(0, len(sentences) - len(long) - ignored)
    return sum(long) / counted if counted else 1.0


def well_formed(sentence: str, plain: list[str]) -> bool:
    """Whether a sentence begins with a capital, has a verb, is not endless, and has no clashing
    words.

    One that is cut off needs no verb.
    """
    if len(plain) > LONGEST or not (sentence[0].isupper() or sentence[0] == '"'):
        return False
    verb = not _VERBS.isdisjoint(plain) or any([word.endswith("ed") for word in plain])
    if (not verb and closed(sentence)) or _TWICE.search(sentence):
        return False
    return not any([b in _NEVER_AFTER[a] for a, b in pairwise(plain) if a in _NEVER_AFTER])


def _ramp(x: float, low: float, high: float) -> float:
    """0 up to `low`, 1 from `high`, a line between."""
    return min(1.0, max(0.0, (x - low) / (high - low)))
