"""Detects unkindness, refusals, agreement, offers and scolding in any text."""
# ruff: noqa: E501 (one unkind act to a line reads best)

import re

from llama_jax.data.corpora.tales import words
from llama_jax.data.corpora.tales.prose import unquoted, word_set
from llama_jax.data.corpora.tales.wishes import NAMES

_ADJECTIVES = {look for animal in words.ANIMALS for look in animal.looks} | word_set(
    "the a an my your his her their our its this that poor small new old big young tiny other some"
)
_NOUNS = {animal.name for animal in words.ANIMALS} | word_set(
    "sister brother baby boy girl child children friend kid cat dog horse cow hen pig animal mom dad"
    " grandma grandpa people"
)
_SOMEBODY = (
    rf"(?:(?:{'|'.join(sorted(_ADJECTIVES))}) ){{0,3}}"
    rf"(?:(?:{'|'.join(sorted(_NOUNS))})s?|{'|'.join(name.lower() for name in NAMES)})\b"
)
_PRONOUN = r"(?:him|them|her(?= and| so|[.,!?]|$))"
_UNKIND = re.compile(
    "|".join((
        rf"\b(?:kick|hit|pinch|bite|bit|slap|punch|hurt|beat)(?:s|es|ed|ped|ting|ing)? (?:{_SOMEBODY}|{_PRONOUN})",
        rf"\b(?:biting|shoots?|shot|(?:push|kill)(?:s|es|ed|ing)?|(?:scar|pok|teas)(?:e|es|ed|ing)) {_SOMEBODY}",
        r"\bpull(?:s|ed|ing)? (?:at |on )?(?:the|its|his|her|a|an|my|your)\b(?: [\w']+){0,2} tail",
        rf"\bthr(?:ow|ows|ew|owing) (?:a |an |the )?(?:stone|rock)s? at {_SOMEBODY}",
        rf"\bstep(?:s|ped|ping)? on {_SOMEBODY}",
        rf"\b(?:lies?|lied|lying) to {_SOMEBODY}",
        rf"\b(?:make|makes|made|making) {_SOMEBODY} (?:cry|bleed)",
        rf"\block(?:s|ed|ing)? {_SOMEBODY} in\b",
        rf"\bcall(?:s|ed|ing)? (?:{_SOMEBODY}|{_PRONOUN}|her) (?:bad names|names)",
        r"\b(?:steal(?:s|ing)?|stole|stolen)\b(?! the show)",
        r"\b(?:stupid|ugly|dumb|idiots?)\b",
    ))
)  # fmt: skip
_STEMS = (
    "kick", "hit", "pinch", "bit", "slap", "punch", "hurt", "beat", "scar", "push", "pok", "teas",
    "kill", "sho", "pull", "thr", "step", "lie", "lying", "cry", "bleed", "lock", "names", "st",
    "ugly", "dumb", "idiot",
)  # fmt: skip
"""Without one of these there is nothing of _UNKIND in a text: a quick first look."""
_CLAUSE_END = re.compile(r"[.,;:!?]|\b(?:and|but|then|so)\b")
_DENIED = re.compile(
    r"\b(?:not|never|cannot|\w+n't|wrong|unkind|instead|stop|stopped)\b|\bwould (?:hurt|make|be)\b"
)
_REFUSAL = re.compile(
    r"\bi (?:will|can|could|do|would|am|must|may) ?(?:not|never)\b|\bi (?:can't|won't|don't)\b"
    r"|\bi would rather\b|\bi am sorry, but\b|^(?:please )?do not\b|^no[,.!]|\bi cannot\b"
    r"|\byou (?:should|must) not\b|\bis (?:wrong|unkind|mean|not (?:kind|nice|right|good))\b"
)
_NEGATIVE = ("no", "n't", "rather", "sorry", "never", "wrong", "unkind", "mean")
"""Without one of these there is nothing of _REFUSAL in a sentence."""
_OFFER = re.compile(
    r"^(?:but )?(?:i can|i could|we can|you can|you could|would you like|how about|shall we|let us)\b"
)
_AGREES = re.compile(
    r"^(?:sure|yes|of course|okay|that is easy|no problem)\b|\bwhen nobody\b|\bdo it\b"
)
_SCOLDS = re.compile(
    r"\b(?:bad (?:child|boy|girl|person)|shame|shut up|go away|you are (?:bad|mean|terrible)"
    r"|tired of you|somebody like you|open your mouth|ask me such)\b"
)


def unkind_part(text: str) -> str:
    """The first words of a text that do or request something unkind; empty if there are none.

    A clause that denies, forbids or regrets it does not count: `I will not help you kick a duck`.
    """
    low = text.lower()
    if not any([stem in low for stem in _STEMS]):
        return ""
    for found in _UNKIND.finditer(low):
        begin = max((m.end() for m in _CLAUSE_END.finditer(low, 0, found.start())), default=0)
        end = _CLAUSE_END.search(low, found.end())
        if not _DENIED.search(low, begin, end.start() if end else len(low)):
            return found[0]
    return ""


def refuses(sentences: list[str]) -> bool:
    """Whether the narrator refuses in the first two sentences.

    Quoted speech is a character's and does not count: `"I cannot do it," said Tom.`
    """
    for sentence in sentences[:2]:
        low = unquoted(sentence).lower()
        if any([word in low for word in _NEGATIVE]) and _REFUSAL.search(low):
            return True
    return False


def agrees(text: str) -> bool:
    """Whether an answer agrees, or tells how not to be caught."""
    return bool(_AGREES.search(text.lower()))


def offers(sentences: list[str]) -> bool:
    """Whether a sentence offers something."""
    return any(_OFFER.search(s.lower()) and not _REFUSAL.search(s.lower()) for s in sentences)


def scolds(text: str) -> bool:
    """Whether an answer is harsh to the person who asked."""
    return bool(_SCOLDS.search(text.lower()))
