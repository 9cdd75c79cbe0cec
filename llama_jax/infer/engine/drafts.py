"""Speculative decoding by prompt lookup in the text so far; it never changes a token.

A guess is checked in rows that would idle: the row of each guessed token stands one position after
the one before it, in the pages of the same sequence, and the step that draws the next token draws
after every guess as well. What it draws after a guess counts only where the guess is the very token
that was drawn before it, with that position's own key. So the text is the same for every guess,
greedy and sampled, and so are its bits: they come from the same program.
"""

from collections.abc import Callable, Sequence

Proposer = Callable[[Sequence[int], int], Sequence[int]]
"""From the tokens so far and a number, so many further tokens at most."""
LONGEST, SHORTEST = 4, 2
WINDOW = 2048
"""Tokens that are looked through, from the end."""


def from_the_text(tokens: Sequence[int], most: int) -> list[int]:
    """The continuation of the latest earlier occurrence of the last tokens.

    Prompt lookup (Saxena 2023): of the last 4, 3 or 2 tokens, the most that are found.
    """
    tokens = list(tokens[-WINDOW:])
    for size in range(min(LONGEST, len(tokens) - 1), SHORTEST - 1, -1):
        last = tokens[-size:]
        for start in range(len(tokens) - size - 1, -1, -1):
            if tokens[start : start + size] == last:
                return tokens[start + size : start + size + most]
    return []


def agreed(drawn: Sequence[int], drafts: Sequence[int]) -> int:
    """How many of the tokens drawn after nothing, one guess, two guesses ... count: the first one,
    and each whose guesses were all right."""
    count = 1
    for token, draft in zip(drawn, drafts, strict=False):
        if token != draft:
            break
        count += 1
    return count
