"""The contents of a sentencepiece model file: pieces, and the rules that text is split by.

The model file is a protobuf message. Only the fields that are read or written here are declared;
protobuf keeps the others. The message classes that come with sentencepiece demand a newer protobuf
than TFDS allows. Field numbers and defaults: sentencepiece_model.proto of sentencepiece 0.2.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from llama_jax.config import InputError
from llama_jax.runtime.files import shown

SPACE = "\u2581"
"""The space inside a piece, as sentencepiece writes it."""

Kind = Literal["normal", "unknown", "control", "user_defined", "unused", "byte"]
_KINDS: dict[int, Kind] = {
    1: "normal", 2: "unknown", 3: "control", 4: "user_defined", 5: "unused", 6: "byte",
}  # fmt: skip
KIND_NUMBERS = {kind: number for number, kind in _KINDS.items()}
"""Numbers of the kinds in the protobuf; GGUF's tokenizer.ggml.token_type has the same."""
_MODEL_TYPES = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}


class UnusableTokenizer(InputError):
    """A valid tokenizer of an unsupported kind."""


class Piece(NamedTuple):
    """One piece; its id is its index in the list."""

    text: str
    score: float
    kind: Kind


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """The pieces of a model in the order of their ids, and the rules that decide its ids."""

    pieces: tuple[Piece, ...]
    unk_id: int = 0
    bos_id: int = 1
    eos_id: int = 2
    """-1 if there is none, as for all three."""
    model_type: str = "bpe"
    byte_fallback: bool = True
    add_dummy_prefix: bool = True
    """Put a space before the text."""
    remove_extra_whitespaces: bool = False
    escape_whitespaces: bool = True
    """Write a space as U+2581."""
    treat_whitespace_as_suffix: bool = False
    """Words end with their space instead of beginning with it."""
    normalizer: str = "identity"

    @staticmethod
    def from_bytes(model: bytes) -> "Vocabulary":
        """From a serialised model that sentencepiece has loaded."""
        proto = model_message().FromString(model)
        trainer, rules = proto.trainer_spec, proto.normalizer_spec
        pieces = tuple(Piece(p.piece, p.score, _KINDS.get(p.type, "normal")) for p in proto.pieces)
        ids = {piece.text: token for token, piece in enumerate(pieces)}
        return Vocabulary(
            pieces=pieces,
            unk_id=next((i for i, p in enumerate(pieces) if p.kind == "unknown"), -1),
            bos_id=ids.get(trainer.bos_piece, -1),
            eos_id=ids.get(trainer.eos_piece, -1),
            model_type=_MODEL_TYPES.get(trainer.model_type, str(trainer.model_type)),
            byte_fallback=trainer.byte_fallback,
            add_dummy_prefix=rules.add_dummy_prefix,
            remove_extra_whitespaces=rules.remove_extra_whitespaces,
            escape_whitespaces=rules.escape_whitespaces,
            treat_whitespace_as_suffix=trainer.treat_whitespace_as_suffix,
            normalizer=rules.name if rules.precompiled_charsmap else "identity",
        )

    def to_bytes(self) -> bytes:
        """A serialised model for sentencepiece. The rules must be Llama's: `require_llama`."""
        message = model_message()
        proto = message()
        for piece in self.pieces:
            proto.pieces.add(piece=piece.text, score=piece.score, type=KIND_NUMBERS[piece.kind])
        trainer = proto.trainer_spec
        trainer.model_type = 2
        trainer.vocab_size = len(self.pieces)
        trainer.byte_fallback = True
        for name in ("unk", "bos", "eos"):
            token = getattr(self, f"{name}_id")
            setattr(trainer, f"{name}_id", token)
            setattr(trainer, f"{name}_piece", self.pieces[token].text)
        trainer.pad_id = -1
        rules = proto.normalizer_spec
        rules.name = "identity"
        rules.add_dummy_prefix = self.add_dummy_prefix
        rules.remove_extra_whitespaces = False
        rules.escape_whitespaces = True
        return proto.SerializeToString()

    def require_llama(self, where: str) -> None:
        """Raise UnusableTokenizer, naming the first difference, unless text is encoded as in Llama:
        byte-pair merges by score, unknown characters spelled in bytes, text unchanged.

        The formats of other programs (llama2.c, GGUF) can express nothing else.
        """
        for name, value in LLAMA_RULES.items():
            found = getattr(self, name)
            _usable(found == value, f"{where} has {name} {found}, and Llama's is {value}")
        for name in ("unk", "bos", "eos"):
            token = getattr(self, f"{name}_id")
            wanted = "unknown" if name == "unk" else "control"
            kind = self.pieces[token].kind if 0 <= token < len(self.pieces) else "missing"
            _usable(
                kind == wanted, f"{where}: the {name} piece (id {token}) is {kind}, not {wanted}"
            )
        seen: dict[str, int] = {}
        for token, piece in enumerate(self.pieces):
            if not piece.text or not math.isfinite(piece.score):
                raise UnusableTokenizer(
                    f"{where}: id {token} is {shown(piece.text)}, {piece.score}"
                )
            first = seen.setdefault(piece.text, token)
            if first != token:
                raise UnusableTokenizer(
                    f"{where}: ids {first} and {token} are both {piece.text!r:.60}"
                )
        spelled = {p.text for p in self.pieces if p.kind == "byte"}
        missing = [f"<0x{b:02X}>" for b in range(256) if f"<0x{b:02X}>" not in spelled]
        _usable(not missing, f"{where} lacks the byte pieces {', '.join(missing[:4])}")


LLAMA_RULES = {
    "model_type": "bpe", "byte_fallback": True, "remove_extra_whitespaces": False,
    "escape_whitespaces": True, "treat_whitespace_as_suffix": False, "normalizer": "identity",
}  # fmt: skip
"""Rules of a vocabulary whose ids the formats of other programs can express."""


def _usable(condition: object, message: str) -> None:
    if not condition:
        raise UnusableTokenizer(message)


def with_pieces(model: bytes, pieces: Sequence[Piece]) -> bytes:
    """A serialised model with pieces appended; everything else is unchanged."""
    proto = model_message().FromString(model)
    for piece in pieces:
        proto.pieces.add(piece=piece.text, score=piece.score, type=KIND_NUMBERS[piece.kind])
    proto.trainer_spec.vocab_size = len(proto.pieces)
    return proto.SerializeToString()


@functools.cache
def model_message() -> Any:
    """The message class of a model file: pieces (piece, score, type), trainer_spec,
    normalizer_spec. Made on first use: protobuf takes longer to import than all of this.
    """
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(
        name="llama_jax/tokenizer_model.proto", package="llama_jax", syntax="proto2"
    )
    messages = {
        "Piece": [
            ("piece", 1, "STRING", ""),
            ("score", 2, "FLOAT", "0"),
            ("type", 3, "INT32", "1"),
        ],
        "TrainerSpec": [
            ("model_type", 3, "INT32", "1"),
            ("vocab_size", 4, "INT32", "8000"),
            ("treat_whitespace_as_suffix", 24, "BOOL", "false"),
            ("byte_fallback", 35, "BOOL", "false"),
            ("unk_id", 40, "INT32", "0"),
            ("bos_id", 41, "INT32", "1"),
            ("eos_id", 42, "INT32", "2"),
            ("pad_id", 43, "INT32", "-1"),
            ("unk_piece", 45, "STRING", "<unk>"),
            ("bos_piece", 46, "STRING", "<s>"),
            ("eos_piece", 47, "STRING", "</s>"),
        ],
        "NormalizerSpec": [
            ("name", 1, "STRING", ""),
            ("precompiled_charsmap", 2, "BYTES", ""),
            ("add_dummy_prefix", 3, "BOOL", "true"),
            ("remove_extra_whitespaces", 4, "BOOL", "true"),
            ("escape_whitespaces", 5, "BOOL", "true"),
        ],
    }
    for message, fields in messages.items():
        declared = file.message_type.add(name=message)
        for name, number, kind, default in fields:
            declared.field.add(
                name=name,
                number=number,
                label=field.LABEL_OPTIONAL,
                type=getattr(field, f"TYPE_{kind}"),
                default_value=default,
            )
    model = file.message_type.add(name="Model")
    for name, number, label, message in [
        ("pieces", 1, field.LABEL_REPEATED, "Piece"),
        ("trainer_spec", 2, field.LABEL_OPTIONAL, "TrainerSpec"),
        ("normalizer_spec", 3, field.LABEL_OPTIONAL, "NormalizerSpec"),
    ]:
        model.field.add(
            name=name,
            number=number,
            label=label,
            type=field.TYPE_MESSAGE,
            type_name=f".llama_jax.{message}",
        )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("llama_jax.Model"))
