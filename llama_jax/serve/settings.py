"""Server settings: address, access and limits."""

import hashlib
import hmac
import ipaddress
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from llama_jax.config import require
from llama_jax.infer.sampling_params import count
from llama_jax.runtime.files import read_bytes

MAX_KEY_BYTES = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of `llama-jax serve`; raises InputError for impossible ones."""

    host: str = "127.0.0.1"
    port: int = 8000
    name: str
    """Name of the model in requests."""
    keys: tuple[bytes, ...] = ()
    """SHA-256 of the keys that are let in; none for everybody on this machine."""
    adapters: tuple[tuple[str, str], ...] = ()
    """The model's adapters, each with the name of the pair in requests, and its folder."""
    tensor: int = 1
    """Devices of this machine that the model is split over; -1 for all."""
    rows: int = 8
    """Answers that are drawn together."""
    queue: int = 64
    """Answers that may wait for a row; more are refused with 429."""
    drafts: int = 0
    """Tokens that are guessed for an answer while rows idle."""
    draft: str | None = None
    """The model that guesses them; None for the text itself."""
    context: int | None = None
    """Tokens of a prompt and its answer, where that is less than the model's."""
    cache_gib: float | None = None
    """Memory of keys and values."""
    kv: Literal["model", "int8"] | None = None
    """Type of keys and values; None for what the model was quantised to, or its compute type."""
    body_bytes: int = 1 << 20
    deadline_seconds: float = 600.0
    """Time limit of a whole request, including its time in the queue."""
    drain_seconds: float = 30.0
    """For what runs when the server is told to end."""

    def __post_init__(self):
        count(self.port, "port", 0, "0 picks a free one")
        require(self.port < 65536, f"port={self.port} is out of range: use 0 to 65535")
        names = [self.name, *(name for name, _ in self.adapters)]
        twice = next((name for name in names if names.count(name) > 1), None)
        require(twice is None, f"two of the model and its adapters are called {twice}")
        require(
            self.tensor == -1 or self.tensor >= 1,
            f"tensor={self.tensor} is out of range: use 1 or more devices, or -1 for all of them",
        )
        count(self.rows, "rows", 1, "the answers that are drawn together")
        count(self.queue, "queue", 1, "the answers that may wait")
        count(self.drafts, "speculate", 0, "the tokens that are guessed")
        require(
            self.draft is None or self.drafts,
            "a draft model guesses nothing with --speculate 0: leave one of the two out",
        )
        require(
            self.cache_gib is None or 0 < self.cache_gib < float("inf"),
            f"cache_gib={self.cache_gib} must be a number above 0",
        )
        require(
            self.keys or self.local,
            f"host={self.host} can be reached from other machines: name a file of keys with "
            "--api-key-file, or stay on 127.0.0.1",
        )
        for name in ("deadline_seconds", "drain_seconds"):
            value = getattr(self, name)
            require(0 <= value < float("inf"), f"{name}={value} must be a number from 0 up")

    @property
    def local(self) -> bool:
        """Whether only this machine reaches the server."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def is_called(self, host: str) -> bool:
        """Whether a Host header names this server. A local one has few names: under any other, it
        is a web page that had its own name point here. The port may be a tunnel's."""
        try:
            name = urlsplit(f"//{host}").hostname
        except ValueError:
            return False
        return not self.local or name in {"127.0.0.1", "localhost", "::1", self.host}

    def key_of(self, header: str) -> bytes | None:
        """The digest of the key in an Authorization header, if it is one that is let in."""
        kind, _, key = header.partition(" ")
        if kind.lower() != "bearer":
            return None
        digest = hashlib.sha256(key.strip().encode("utf-8", "surrogateescape")).digest()
        # All are compared, so that the time does not tell which is alike.
        found = [hmac.compare_digest(digest, own) for own in self.keys]
        return digest if any(found) else None


def read_keys(path: str) -> tuple[bytes, ...]:
    """The digests of the keys in a file, one a line; `#` begins a comment.

    Raises InputError if it cannot be read, holds no key, or can be read by other users.
    """
    content = read_bytes(path, "API key file", MAX_KEY_BYTES)
    mode = stat.S_IMODE(os.stat(path).st_mode)
    require(
        os.name != "posix" or not mode & 0o077,
        f"API key file {path} can be read by others (mode {mode:o}): chmod 600 {path}",
    )
    lines = [line.strip() for line in content.splitlines()]
    keys: Sequence[bytes] = [line for line in lines if line and not line.startswith(b"#")]
    require(keys, f"API key file {path} holds no key: write one on a line")
    short = next((len(key) for key in keys if len(key) < 16), None)
    require(
        short is None,
        f"API key file {path} holds a key of {short} characters: use 16 at least, such as the "
        "output of `openssl rand -hex 24`",
    )
    return tuple(hashlib.sha256(key).digest() for key in keys)
