"""Page table of the KV cache: reference counts, and reuse of shared prefixes.

A page that holds `page` positions of a prompt is known by the hash of all tokens up to its end and
of a scope; a later prompt that begins alike takes it over instead of computing it. Pages that
nobody holds but whose prefix is known stay until the space is needed, the least recently used ones
going first. Plain Python: the device's arrays are elsewhere.
"""

import hashlib
from collections import Counter, OrderedDict, deque
from collections.abc import Sequence

import numpy as np

from llama_jax.config import require


class PagePool:
    """Pages 1 to P-1, each free, held by sequences, or kept for its prefix. Page 0 is nobody's:
    idle rows and padding write to it."""

    def __init__(self, num_pages: int):
        require(num_pages > 1, f"{num_pages=} must be at least 2: one is never given out")
        self.size = num_pages - 1
        """Pages that can be held."""
        self._free = deque(range(1, num_pages))
        self._holders: Counter[int] = Counter()
        self._page_of: dict[bytes, int] = {}
        self._prefix_of: dict[int, bytes] = {}
        self._unheld: OrderedDict[int, None] = OrderedDict()
        """Pages kept for their prefix alone, the least recently used first."""

    @property
    def available(self) -> int:
        """Pages that `take` can give."""
        return len(self._free) + len(self._unheld)

    @property
    def held(self) -> int:
        """Pages that sequences hold."""
        return len(self._holders)

    def known(self, prefixes: Sequence[bytes]) -> list[int]:
        """The pages of the longest beginning of `prefixes` whose pages are all here."""
        pages = []
        for prefix in prefixes:
            if prefix not in self._page_of:
                break
            pages.append(self._page_of[prefix])
        return pages

    def lacking(self, known: Sequence[int], new: int) -> int:
        """How many pages are missing for holding the `known` ones and `new` ones besides."""
        unheld = sum(page in self._unheld for page in known)
        return max(0, new + unheld - self.available)

    def take(self, known: Sequence[int], new: int) -> list[int]:
        """Hold the `known` pages once more, and `new` ones besides, which come after them.

        Raises ValueError if there are not as many; nothing is held then.
        """
        if missing := self.lacking(known, new):
            raise ValueError(f"{missing} pages are missing for {new} more")
        for page in known:
            self._unheld.pop(page, None)
            self._holders[page] += 1
        fresh = [self._free.popleft() if self._free else self._evict() for _ in range(new)]
        self._holders.update(fresh)
        return [*known, *fresh]

    def _evict(self) -> int:
        page, _ = self._unheld.popitem(last=False)
        del self._page_of[self._prefix_of.pop(page)]
        return page

    def publish(self, page: int, prefix: bytes) -> None:
        """From now on the page can be found by its prefix; where another one can, that stays."""
        if prefix not in self._page_of and page not in self._prefix_of:
            self._page_of[prefix], self._prefix_of[page] = page, prefix

    def release(self, pages: Sequence[int]) -> None:
        """Give up one hold of each page. Of a sequence that is kept the end is evicted first.

        Raises ValueError for a page that nobody holds.
        """
        for page in reversed(pages):
            if self._holders[page] <= 0:
                raise ValueError(f"page {page} is not held")
            self._holders[page] -= 1
            if self._holders[page]:
                continue
            del self._holders[page]
            if page in self._prefix_of:
                self._unheld[page] = None
            else:
                self._free.append(page)

    def forget(self) -> None:
        """Let go of all pages that are kept for their prefix: their content is lost."""
        for page in list(self._unheld):
            del self._unheld[page]
            self._free.append(page)
        self._page_of.clear()
        self._prefix_of.clear()


def prefixes(tokens: Sequence[int], page: int, scope: bytes) -> list[bytes]:
    """The name of each whole page of tokens: SHA-256 of the name before it and its tokens.

    Names of different scopes have nothing in common.
    """
    name, names = hashlib.sha256(scope).digest(), []
    for start in range(0, len(tokens) // page * page, page):
        block = np.asarray(tokens[start : start + page], np.int32).tobytes()
        name = hashlib.sha256(name + block).digest()
        names.append(name)
    return names
