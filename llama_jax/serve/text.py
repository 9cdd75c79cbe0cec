"""Incremental detokenisation: whole characters, and nothing of a stop string."""

from collections.abc import Sequence

from llama_jax.data.tokenizer import Tokenizer


class TextStream:
    """The text of a continuation, in pieces whose concatenation is the same for all ways to cut.

    Args:
      after: the prompt's ids.
      stops: texts at which it ends; they are not part of it, whichever tokens they lie in.
      trimmed: whether space at both its ends is left out, as in answers of a conversation.
    """

    def __init__(
        self, tokenizer: Tokenizer, after: Sequence[int], stops: Sequence[str], *, trimmed: bool
    ):
        self._decode = tokenizer.decoder(after=after)
        self._stops, self._trimmed = stops, trimmed
        self._held = ""
        self._begun = not trimmed
        self.characters = 0
        """Decoded so far, what is held back included."""
        self.stopped: str | None = None
        """The stop string that ended it."""

    def push(self, ids: Sequence[int], *, final: bool = False) -> str:
        """The text that becomes known by further tokens, or by the end."""
        if self.stopped is not None:
            return ""
        new = self._decode(ids, final=final)
        self.characters += len(new)
        self._held += new
        at, stop = min(
            ((self._held.find(s), s) for s in self._stops if s in self._held), default=(-1, None)
        )
        if stop is not None:
            self.stopped, final, self._held = stop, True, self._held[:at]
        if not self._begun:
            self._held = self._held.lstrip()
            self._begun = bool(self._held)
        if final:
            said, self._held = self._held, ""
            return said.rstrip() if self._trimmed else said
        kept = max(self._beginning(), self._space())
        cut = len(self._held) - kept
        said, self._held = self._held[:cut], self._held[cut:]
        return said

    def _beginning(self) -> int:
        """Characters at the end that may begin a stop string."""
        longest = max((len(stop) for stop in self._stops), default=0)
        for size in range(min(longest - 1, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-size:]) for stop in self._stops):
                return size
        return 0

    def _space(self) -> int:
        if not self._trimmed:
            return 0
        cut = len(self._held) - self._beginning()
        return len(self._held) - len(self._held[:cut].rstrip())


def token_bytes(tokenizer: Tokenizer, token: int) -> bytes:
    """The bytes that a token spells; for a control token, its name."""
    spelled = tokenizer.decode_bytes([token])
    return spelled or tokenizer.piece(token).encode()


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """A token by itself: its text, or `bytes:\\xe2` where that is no whole character."""
    spelled = token_bytes(tokenizer, token)
    try:
        return spelled.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelled)
