"""tokenizer.bin of llama2.c <-> a sentencepiece model with the same ids for any text.

The file holds the length of its longest piece, then for each id a float32 score, the length in
bytes and the bytes, with spaces for U+2581. Types are not stored: ids 0, 1, 2 are unk, BOS, EOS
(written as "\\n<s>\\n" and "\\n</s>\\n"), 3 to 258 the bytes <0x00> to <0xFF>, all others text.

llama2.c's `encode` puts a space before the text, takes characters that are no piece as bytes, and
merges the neighbours whose join has the highest score, the first of equals: sentencepiece's
byte-pair encoding with identity normalisation. They differ where `differences` says so, which is
nowhere for the vocabularies of Llama or of our training, and for U+2581 in a text, which
sentencepiece takes for a space, and for a zero byte, which ends a text in C.
"""

import re
import struct
from collections.abc import Iterator
from pathlib import Path

from llama_jax.config import InputError, require
from llama_jax.data.sentencepiece_proto import SPACE, Piece, Vocabulary
from llama_jax.data.tokenizer import MAX_BYTES, NUM_RESERVED, Tokenizer
from llama_jax.runtime.files import read_bytes, shown

TOKENIZER_FILE = "tokenizer.bin"
_RESERVED = ("<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)))
_WRITTEN = {1: "\n<s>\n", 2: "\n</s>\n"}
_LONGEST = struct.Struct("<I")
_RECORD = struct.Struct("<fI")


def read_tokenizer(path: Path) -> tuple[bytes, list[str]]:
    """A serialised sentencepiece model with the pieces of a tokenizer.bin, and notes for the
    report.

    Filler records of `write_tokenizer` are no pieces. Raises InputError if the file is damaged.
    """
    records = list(_records(read_bytes(path, limit=MAX_BYTES), str(path)))
    while records and records[-1] == (_unused(len(records) - 1), 0.0):
        records.pop()
    count = len(records)
    require(count > NUM_RESERVED, f"{path} has {count} pieces, too few to hold all bytes")
    pieces = [_piece(token, text, score, str(path)) for token, (text, score) in enumerate(records)]
    has_space = any(piece.text == SPACE for piece in pieces)
    require(has_space, f"{path} has no piece for a space, which llama2.c puts before a text")
    vocabulary = Vocabulary(pieces=tuple(pieces))
    tokenizer = Tokenizer.from_vocabulary(vocabulary, str(path))
    return tokenizer.model_bytes, differences(vocabulary)


def write_tokenizer(path: Path, model: bytes, vocab_size: int) -> list[str]:
    """Write the pieces of a sentencepiece model as a tokenizer.bin of `vocab_size` records.

    A model may have more rows than pieces: records that no text reaches fill the file up. Returns
    notes for the report. Raises InputError if llama2.c cannot produce the ids of this vocabulary.
    """
    vocabulary = Tokenizer.from_bytes(model).vocabulary
    _require_expressible(vocabulary, vocab_size)
    unused = range(len(vocabulary.pieces), vocab_size)
    pieces = [*vocabulary.pieces, *(Piece(_unused(i), 0.0, "normal") for i in unused)]
    records = []
    for token, piece in enumerate(pieces):
        text = _WRITTEN.get(token, piece.text.replace(SPACE, " ")).encode()
        records.append(_RECORD.pack(piece.score, len(text)) + text)
    longest = max(map(len, records)) - _RECORD.size
    path.write_bytes(_LONGEST.pack(longest) + b"".join(records))
    return differences(vocabulary)


def _unused(token: int) -> str:
    return f"<unused_{token}>"


def differences(vocabulary: Vocabulary) -> list[str]:
    """Sentences for the report on the cases in which llama2.c's ids differ from sentencepiece's."""
    normal = {p.text for p in vocabulary.pieces if p.kind == "normal"}

    def joined(text: str) -> bool:
        return any(text[:i] in normal and text[i:] in normal for i in range(1, len(text)))

    # sentencepiece merges characters that are no piece if their join is one; llama2.c has taken
    # them as bytes by then. And it knows no kinds: text can become a byte piece or a control piece.
    out_of_reach = [t for t in normal if len(t) > 1 and not normal.issuperset(t)]
    by_accident = [t for t in ("<unk>", "\n<s>\n", "\n</s>\n", *_RESERVED[3:]) if joined(t)]
    by_accident += [t for t in normal if re.search("<0x[0-9A-F]{2}>", t)]
    said = []
    if out_of_reach:
        said.append(
            f"{len(out_of_reach)} pieces, such as {min(out_of_reach)!r}, have characters that are "
            "no pieces: llama2.c spells them in bytes where sentencepiece does not"
        )
    if by_accident:
        said.append(
            f"text can become the pieces {', '.join(sorted(by_accident)[:4])} in llama2.c, "
            "which takes their spelling for text"
        )
    return said


def _records(content: bytes, where: str) -> Iterator[tuple[str, float]]:
    """Text and score of each record; nothing is allocated that the file does not hold."""
    require(len(content) >= _LONGEST.size, f"{where} is cut short: it has {len(content)} bytes")
    (longest,) = _LONGEST.unpack_from(content)
    offset, token = _LONGEST.size, 0
    while offset < len(content):
        start = offset + _RECORD.size
        if start > len(content):
            raise InputError(f"{where} is cut short in record {token}")
        score, length = _RECORD.unpack_from(content, offset)
        offset = start + length
        if length > longest or offset > len(content):
            raise InputError(
                f"{where}: record {token} has {length} bytes; the longest has {longest} as stated, "
                f"and {len(content) - start} are left"
            )
        raw = content[start:offset]
        try:
            yield raw.decode(), score
        except UnicodeDecodeError as error:
            raise InputError(f"{where}: record {token} is not valid UTF-8: {shown(raw)}") from error
        token += 1


def _piece(token: int, text: str, score: float, where: str) -> Piece:
    if token < NUM_RESERVED:
        name = _RESERVED[token]
        require(
            text in (name, _WRITTEN.get(token)),
            f"{where}: record {token} is {shown(text)}, not {name}; older files of llama2.c, with "
            "bare bytes there, are written anew by its tokenizer.py",
        )
        return Piece(name, score, "unknown" if token == 0 else "control" if token < 3 else "byte")
    if SPACE in text or "\0" in text:
        raise InputError(f"{where}: record {token} holds U+2581 or a zero byte: {shown(text)}")
    return Piece(text.replace(" ", SPACE), score, "normal")


def _require_expressible(vocabulary: Vocabulary, vocab_size: int) -> None:
    """InputError unless `_piece` would tell every kind again from its id."""
    where = "llama2.c's tokenizer.bin cannot hold this tokenizer (--tokenizer none omits it), which"
    vocabulary.require_llama(where)
    pieces = vocabulary.pieces
    require(len(pieces) <= vocab_size, f"{where} has {len(pieces)} pieces for {vocab_size} rows")
    require(vocabulary.add_dummy_prefix, f"{where} puts no space before a text")
    ids = vocabulary.unk_id, vocabulary.bos_id, vocabulary.eos_id
    require(ids == (0, 1, 2), f"{where} has unk, bos and eos at {ids}, not at 0, 1, 2")
    for token, piece in enumerate(pieces[3:], 3):
        found = piece.text if piece.kind == "byte" else piece.kind
        place = _RESERVED[token] if token < NUM_RESERVED else "normal"
        if found != place:
            raise InputError(f"{where} has {found} at id {token}, not {place}")
    require(any(p.text == SPACE for p in pieces), f"{where} has no piece for a space")
