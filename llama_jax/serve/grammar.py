"""Constrained decoding to a JSON schema: the tokens allowed next, by llguidance's parser.

One space at most stands between the parts of the JSON, so that a small model cannot go on with
nothing but space; and a schema's keywords are all enforced, or the schema is refused.
"""

import json
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import UInt32

from llama_jax.config import InputError, require
from llama_jax.data.tokenizer import Tokenizer
from llama_jax.infer.engine.request import Finish

MAX_SCHEMA_CHARACTERS = 1 << 15
MAX_GRAMMAR_SYMBOLS = 20_000
"""Compiling takes time that grows faster than this."""
_OPTIONS = {"whitespace_pattern": " ?", "lenient": False}
_ANY_OBJECT = {"type": "object"}


class Grammars:
    """Compiles schemas for one tokenizer."""

    def __init__(self, tokenizer: Tokenizer, end_ids: Sequence[int]):
        self._tokenizer, self._end_ids = tokenizer, list(end_ids)

    def compile(self, schema: dict[str, Any] | bool | None) -> Callable[[], "JsonGrammar"]:
        """Makes a grammar of a schema, None for any object, anew for each answer.

        Raises:
          InputError: the schema is invalid, too large, or has keywords that cannot be enforced; or
            llguidance is not installed.
        """
        text = json.dumps(_ANY_OBJECT if schema is None else schema)
        require(
            len(text) <= MAX_SCHEMA_CHARACTERS,
            f"has {len(text):,} characters; at most {MAX_SCHEMA_CHARACTERS:,} are taken",
        )
        vocabulary = self._vocabulary
        from llguidance import LLMatcher, LLParserLimits

        limits = LLParserLimits(max_grammar_size=MAX_GRAMMAR_SYMBOLS, verbose_errors=False)
        try:
            # The schema's own options would lift the bound on space, or skip keywords.
            source = LLMatcher.grammar_from_json_schema(text, overrides=_OPTIONS)
        except ValueError as error:
            raise InputError(f"cannot be enforced: {error!s:.200}") from error
        matcher = LLMatcher(vocabulary, source, log_level=0, limits=limits)
        if matcher.is_error():
            said = " ".join(matcher.get_error().split())
            raise InputError(f"cannot be enforced: {said:.200}")
        words = -(-self._tokenizer.vocab_size // 32)
        return lambda: JsonGrammar(matcher.deep_copy(), words)

    @cached_property
    def _vocabulary(self) -> Any:
        try:
            from llguidance import LLTokenizer, TokenizerWrapper
        except ModuleNotFoundError as error:
            raise InputError(
                "needs a package that this server lacks: pip install llguidance"
            ) from error
        return LLTokenizer(
            TokenizerWrapper(_Pieces(self._tokenizer)),
            n_vocab=self._tokenizer.vocab_size,
            eos_token=self._end_ids,
            slices=LLTokenizer.json_slices(),
        )


class JsonGrammar:
    """The state of one answer in its grammar: the engine's `Grammar`."""

    def __init__(self, matcher: Any, words: int):
        self._matcher, self._words = matcher, words

    def allowed(self) -> UInt32[np.ndarray, " words"] | None:
        """One bit for each token that may come next; None if the parser gave up."""
        mask = np.zeros(self._words, np.uint32)
        self._matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        return None if self._matcher.is_error() else mask

    def take(self, token: int) -> Finish | None:
        """Go on by a token; how the answer ends if nothing can follow it."""
        self._matcher.consume_token(token)
        if self._matcher.is_error():
            return "stuck"
        return "stop" if self._matcher.is_stopped() else None


class _Pieces:
    """A tokenizer as llguidance reads it: the bytes of each token, and how text becomes tokens."""

    _BEFORE = "\2"  # spelled by its byte's token, which merges with nothing that follows

    def __init__(self, tokenizer: Tokenizer):
        everything = range(tokenizer.vocab_size)
        self.eos_token_id, self.bos_token_id = tokenizer.eos_id, tokenizer.bos_id
        unsaid = [t for t in everything if t == tokenizer.unk_id or not tokenizer.decode_bytes([t])]
        self.special_token_ids = unsaid
        self.tokens = [
            tokenizer.piece(t).encode() if t in unsaid else tokenizer.decode_bytes([t])
            for t in everything
        ]
        self._encode, self._skipped = tokenizer.encode, len(tokenizer.encode(self._BEFORE))

    def __call__(self, text: str) -> list[int]:
        """The tokens of a text that goes on from another: where it is the only one possible, the
        model is given these."""
        return self._encode(self._BEFORE + text)[self._skipped :]
