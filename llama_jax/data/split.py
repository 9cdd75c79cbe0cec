"""Train/validation split by a hash of the text."""

import hashlib

VALIDATION_SHARE = 20
"""One document in this many, on average, is held out."""


def in_validation(text: str) -> bool:
    """Whether a document is held out.

    A hash of the text decides, so equal documents stay on one side and a corpus that grows keeps
    its split.
    """
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest) % VALIDATION_SHARE == 0
