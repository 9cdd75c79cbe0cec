"""Diversity of sampled texts: detects collapse to one answer, and repetition."""

import itertools
import math
from collections import Counter
from collections.abc import Sequence

MAX_ORDER = 4
"""Longest word sequence that BLEU compares."""
BLEU_TEXTS = 32


def variety(name: str, texts: Sequence[str]) -> dict[str, float]:
    """All measures of this file as metrics under `name`; BLEU, which is slow, on a few texts
    only."""
    return {
        f"{name}/distinct_2": distinct_2(texts),
        f"{name}/repetition": repetition(texts),
        f"{name}/self_bleu": self_bleu(texts[:BLEU_TEXTS]),
    }


def distinct_2(texts: Sequence[str]) -> float:
    """Distinct word pairs divided by all word pairs of the texts (Li et al. 2016); 1 without
    pairs."""
    pairs = [pair for text in texts for pair in itertools.pairwise(text.split())]
    return len(set(pairs)) / len(pairs) if pairs else 1.0


def repetition(texts: Sequence[str], order: int = MAX_ORDER) -> float:
    """Share of texts that repeat a sequence of `order` words."""
    repeats = [max(_sequences(text.split(), order).values(), default=0) > 1 for text in texts]
    return sum(repeats) / max(len(texts), 1)


def self_bleu(texts: Sequence[str]) -> float:
    """Mean BLEU of each text against all others (Zhu et al. 2018): 1 where all are the same.

    Orders up to MAX_ORDER with equal weights. A precision of 0 counts as half a match, so that
    short texts do not all score 0. 0 where nothing can be compared: fewer than two texts.
    """
    words = [text.split() for text in texts]
    if len(words) < 2:
        return 0.0
    counts = [[_sequences(w, order) for order in range(1, MAX_ORDER + 1)] for w in words]
    scores = []
    for i, own in enumerate(counts):
        others = [counts[j] for j in range(len(words)) if j != i]
        lengths = [len(words[j]) for j in range(len(words)) if j != i]
        scores.append(_bleu(own, others, len(words[i]), lengths))
    return sum(scores) / len(scores)


def _bleu(
    own: Sequence[Counter], others: Sequence[Sequence[Counter]], length: int, lengths: Sequence[int]
) -> float:
    """BLEU of one text, its counts by order, against others (Papineni et al. 2002)."""
    logs = []
    for order, said in enumerate(own):
        total = sum(said.values())
        if total:
            matched = sum(min(n, max(o[order][s] for o in others)) for s, n in said.items())
            logs.append(math.log(max(matched, 0.5) / total))
    if not logs:
        return 0.0
    closest = min(lengths, key=lambda n: (abs(n - length), n))
    brevity = min(0.0, 1 - closest / length)
    return math.exp(brevity + sum(logs) / len(logs))


def _sequences(words: Sequence[str], order: int) -> Counter:
    """How often each `order` words in a row occur."""
    return Counter(zip(*(words[i:] for i in range(order)), strict=False))
