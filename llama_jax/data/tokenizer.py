"""Sentencepiece tokenizer: text to token ids and back, trained as the Llama paper trained its own.

Byte-pair encoding, digits split, unknown characters spelled in bytes, text kept as it is
(Touvron et al. 2023, LLaMA, section 2.1). Control ids (BOS, EOS) come from flags, never from text:
`</s>` in a document is four ordinary characters.
"""

import codecs
import hashlib
import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import sentencepiece
from jaxtyping import Int

from llama_jax.config import InputError, require
from llama_jax.data import tokenizer_json
from llama_jax.data.sentencepiece_proto import UnusableTokenizer, Vocabulary
from llama_jax.data.vocabulary_repairs import with_added
from llama_jax.runtime.files import PathLike, as_path, read_bytes, write_atomic

MODEL_FILE = "tokenizer.model"
JSON_FILE = "tokenizer.json"
"""Hugging Face's file, read if there is no tokenizer.model."""
MAX_BYTES, MAX_JSON_BYTES = 16 << 20, 24 << 20
"""Limits of a tokenizer's file: Llama's has 0.5 MB, or 3.6 MB as JSON."""
_MAX_ADDED = 1 << 12  # tokens behind the pieces of a tokenizer.json
VERSION = 1
"""Increase it whenever training gives another model: it names trained tokenizers in the cache."""
NUM_RESERVED = 3 + 256
"""unk, BOS, EOS and one piece for each byte: the pieces of every vocabulary."""
_LINE_BYTES = 1 << 16  # longer lines are cut before training: sentencepiece would skip them
_ERRORS_ONLY = 2  # sentencepiece's own log level; its failures come back as exceptions


@dataclass(frozen=True)
class Tokenizer:
    """A sentencepiece model: V pieces, ids 0 (unk), 1 (BOS), 2 (EOS), bytes, then text pieces."""

    model_bytes: bytes
    """The content of the tokenizer.model file."""

    def __repr__(self) -> str:
        return f"Tokenizer(vocab_size={self.vocab_size}, fingerprint={self.fingerprint[:12]})"

    def __reduce__(self):
        return Tokenizer.from_bytes, (self.model_bytes,)

    @staticmethod
    def load(path: PathLike) -> "Tokenizer":
        """Read a sentencepiece model or a tokenizer.json of byte-pair encoding with byte fallback:
        the file, or the one inside a folder.

        Raises InputError if it is absent, truncated or neither.
        """
        file = as_path(path)
        if file.is_dir():
            inside = [file / name for name in (MODEL_FILE, JSON_FILE)]
            file = next((f for f in inside if f.exists()), inside[0])
        require(file.exists(), f"tokenizer {file} does not exist")
        limit = MAX_JSON_BYTES if file.name.endswith(".json") else MAX_BYTES
        content = read_bytes(file, "tokenizer", limit)
        read = Tokenizer.from_json if content.lstrip()[:1] == b"{" else Tokenizer.from_bytes
        return read(content, str(file))

    @staticmethod
    def from_bytes(model_bytes: bytes, where: str = "tokenizer") -> "Tokenizer":
        """The tokenizer of a serialised sentencepiece model.

        Raises InputError if it is not one, UnusableTokenizer if it is a valid one of another kind.
        """
        tokenizer = Tokenizer(model_bytes)
        try:
            valid = bool(model_bytes) and tokenizer.vocab_size > 0
            tokenizer._processor.id_to_piece(list(range(tokenizer.vocab_size)))  # all are UTF-8
        except (RuntimeError, ValueError):
            valid = False
        if not valid:
            raise _none(model_bytes, where)
        if min(tokenizer.bos_id, tokenizer.eos_id) < 0:
            raise UnusableTokenizer(
                f"{where} has no BOS or no EOS piece; train it with bos_id and eos_id"
            )
        return tokenizer

    @staticmethod
    def from_json(
        content: bytes, where: str, roles: Mapping[str, str] | None = None
    ) -> "Tokenizer":
        """The tokenizer of a tokenizer.json; `roles` and exceptions as `tokenizer_json.read`."""
        vocabulary, added = tokenizer_json.read(content, where, roles)
        model = Tokenizer.from_vocabulary(vocabulary, where).model_bytes
        rows = len(vocabulary.pieces) + _MAX_ADDED
        return Tokenizer.from_bytes(with_added(model, added, rows)[0], where)

    @staticmethod
    def from_vocabulary(vocabulary: Vocabulary, where: str = "tokenizer") -> "Tokenizer":
        """The tokenizer from another program's list of pieces in the order of their ids.

        Raises InputError unless they are a byte-pair vocabulary like Llama's, naming the
        difference.
        """
        vocabulary.require_llama(where)
        return Tokenizer.from_bytes(vocabulary.to_bytes(), where)

    def save(self, path: PathLike) -> None:
        """Write the model to a file, or to tokenizer.model when `path` is a folder."""
        target = as_path(path)
        write_atomic(target / MODEL_FILE if target.is_dir() else target, self.model_bytes)

    @cached_property
    def _processor(self) -> sentencepiece.SentencePieceProcessor:
        sentencepiece.SetMinLogLevel(_ERRORS_ONLY)
        return sentencepiece.SentencePieceProcessor(model_proto=self.model_bytes)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The pieces with scores and kinds, and the rules, for files of other programs."""
        return Vocabulary.from_bytes(self.model_bytes)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the model, in hexadecimal."""
        return hashlib.sha256(self.model_bytes).hexdigest()

    @cached_property
    def vocab_size(self) -> int:
        """V: the number of pieces."""
        return self._processor.vocab_size()

    @cached_property
    def bos_id(self) -> int:
        """Id that begins every document."""
        return self._processor.bos_id()

    @cached_property
    def eos_id(self) -> int:
        """Id that ends every document."""
        return self._processor.eos_id()

    @cached_property
    def unk_id(self) -> int:
        """Id of text that no piece spells; never produced where bytes are pieces."""
        return self._processor.unk_id()

    @cached_property
    def pad_id(self) -> int:
        """-1 in Llama: padding has no piece, masks mark it."""
        return self._processor.pad_id()

    def encode(self, text: str, *, bos: bool = False, eos: bool = False) -> list[int]:
        """Ids of a text, with BOS and EOS if requested.

        Raises InputError if the text holds a lone surrogate, which UTF-8 cannot encode.
        """
        ids = self._encode([text])[0]
        return [self.bos_id] * bos + ids + [self.eos_id] * eos

    def encode_batch(
        self, texts: Sequence[str], *, bos: bool = False, eos: bool = False
    ) -> list[list[int]]:
        """`encode` of each text."""
        before, after = [self.bos_id] * bos, [self.eos_id] * eos
        return [before + ids + after for ids in self._encode(texts)]

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        try:
            # One thread: callers that need more run processes, and must get the same ids.
            return self._processor.encode(list(texts), out_type=int, num_threads=1)
        except (RuntimeError, TypeError, UnicodeEncodeError) as error:
            for text in texts:
                check_unicode(text)
            raise InputError(f"text cannot be tokenised: {error}") from error

    def decode(self, ids: Sequence[int], *, after: Sequence[int] = ()) -> str:
        """The text that `ids` add to the text of the ids `after`.

        Control ids are skipped. Bytes that are not UTF-8 become U+FFFD. The space that
        sentencepiece puts before a text is removed only at its beginning, so that `decode(prompt) +
        decode(ids, after=prompt) == decode(prompt + ids)`.

        Raises InputError if an id is out of range.
        """
        return self.decoder(after=after)(ids, final=True)

    def decoder(self, *, after: Sequence[int] = ()) -> Callable[..., str]:
        """Incremental `decode`: a function of the next ids, called with `final=True` for the last
        of them.

        It holds back the bytes of a character until the character is complete.
        """
        characters = codecs.getincrementaldecoder("utf-8")(errors="replace")
        begins = self.dummy_prefix and not self.decode_bytes(after)

        def decode(ids: Sequence[int], final: bool = False) -> str:
            nonlocal begins
            text = self.decode_bytes(ids)
            if begins and text:
                text, begins = text.removeprefix(b" "), False
            return characters.decode(text, final)

        return decode

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """The bytes that ids spell, including the space before the text; InputError as `decode`.

        The bytes of a concatenation are the concatenation of the bytes.
        """
        surfaces = self._surfaces
        for token in ids:
            require(
                0 <= token < len(surfaces),
                f"token id {token} is out of range: the tokenizer has {len(surfaces)} pieces",
            )
        return b"".join([surfaces[token] for token in ids])

    def piece(self, token: int) -> str:
        """The piece of an id as sentencepiece writes it (U+2581 for a space)."""
        require(0 <= token < self.vocab_size, f"token id {token} is out of range")
        return self._processor.id_to_piece(int(token))

    @cached_property
    def byte_lengths(self) -> Int[np.ndarray, "V"]:
        """int32 [V]: UTF-8 bytes of text that each piece spells; 0 for control pieces.

        Summed over a document's ids they give its UTF-8 bytes plus 1 for the space before it.
        """
        return np.array([len(surface) for surface in self._surfaces], np.int32)

    @cached_property
    def _surfaces(self) -> list[bytes]:
        """The bytes that each piece spells."""
        processor = self._processor
        ids = list(range(self.vocab_size))
        surfaces = []
        for token, piece in zip(ids, processor.id_to_piece(ids), strict=True):
            if processor.is_control(token):
                surfaces.append(b"")
            elif processor.is_byte(token):
                surfaces.append(bytes([int(piece[3:-1], 16)]))  # <0x0A>
            elif processor.is_unknown(token):
                surfaces.append(" \u2047 ".encode())  # as sentencepiece shows it
            else:
                surfaces.append(piece.replace("\u2581", " ").encode())
        return surfaces

    @cached_property
    def dummy_prefix(self) -> bool:
        """Whether encoding puts a space before the text."""
        return bool(self._surfaces_of("a")[:1] == b" ")

    def _surfaces_of(self, text: str) -> bytes:
        return self.decode_bytes(self._encode([text])[0])


def _none(content: bytes, where: str) -> InputError:
    """Why a file is no sentencepiece model."""
    if re.match(rb"[A-Za-z0-9+/]+={0,2} [0-9]+\r?\n", content):
        return UnusableTokenizer(
            f"{where} is a tiktoken vocabulary, as Llama 3 has, which is not supported; Llama 2's "
            "is a sentencepiece model"
        )
    return InputError(
        f"{where} is not a complete sentencepiece model ({len(content)} bytes); "
        "copy it again or train one with `llama-jax tokenizer train`"
    )


def check_unicode(text: str) -> None:
    """Raise InputError naming the first lone surrogate of a text, if it has one."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"text holds the lone surrogate U+{ord(text[error.start]):04X} at character "
            f"{error.start}, which is not valid Unicode; remove it"
        ) from error


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train as in the Llama paper: BPE with byte fallback, in which every digit is a piece.

    Args:
        texts: documents; cut at newlines, which stay a byte piece.
        vocab_size: V, the 259 reserved pieces included.

    Raises:
        InputError: there is no text, it holds lone surrogates, or `vocab_size` is more than
            the text supports, or too few for its characters.
    """
    require(
        vocab_size > NUM_RESERVED,
        f"vocabulary of {vocab_size} is too small: {NUM_RESERVED} pieces are reserved for "
        "unk, bos, eos and the 256 bytes",
    )
    lines = _training_lines(texts)
    first = next(lines, None)
    require(first is not None, "there is no text to train a tokenizer on")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_chain(first, lines),
            model_writer=model,
            vocab_size=vocab_size,
            model_type="bpe",
            byte_fallback=True,
            split_digits=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            add_dummy_prefix=True,
            character_coverage=0.99995,
            max_sentence_length=_LINE_BYTES,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            num_threads=4,  # stored in the model, so never taken from the machine
            minloglevel=_ERRORS_ONLY,
        )
    except RuntimeError as error:
        raise _explain(error, vocab_size) from error
    return Tokenizer.from_bytes(model.getvalue())


def _chain(first: str | None, rest: Iterator[str]) -> Iterator[str]:
    if first is not None:
        yield first
    yield from rest


def _training_lines(texts: Iterable[str]) -> Iterator[str]:
    """Lines that hold more than space, cut so that sentencepiece does not skip long ones."""
    for text in texts:
        check_unicode(text)
        for line in text.split("\n"):
            for start in range(0, len(line), _LINE_BYTES // 4):  # a character has 4 bytes at most
                part = line[start : start + _LINE_BYTES // 4]
                if part.strip():
                    yield part


def _explain(error: RuntimeError, vocab_size: int) -> Exception:
    """The InputError for what sentencepiece says of a vocabulary size; other errors as they are."""
    if limit := re.search(r"too high .* <= (\d+)", str(error)):
        return InputError(
            f"vocabulary of {vocab_size} is more than the text supports; "
            f"the largest that it supports is {limit[1]}"
        )
    if needed := re.search(r"required_chars\. \d+ vs (\d+)", str(error)):
        return InputError(
            f"vocabulary of {vocab_size} is too small for the characters of the text; "
            f"it needs at least {needed[1]}"
        )
    return error
