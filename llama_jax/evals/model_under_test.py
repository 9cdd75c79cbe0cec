"""Adapts a loaded model to benchmarks: text to tokens by the harness's rule, and back.

How a context and a continuation become tokens decides what a likelihood is of. The rule is that of
EleutherAI's lm-evaluation-harness: spaces at the end of the context belong to the continuation,
since sentencepiece writes them with the word behind; both are encoded as one text, and what comes
after as many tokens as the context has is the continuation's. A context begins with BOS, which is
all of an empty one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from llama_jax.config import require
from llama_jax.data.chat import encode_beginning, encode_prompt, render
from llama_jax.data.records import Message
from llama_jax.data.sources import digest
from llama_jax.data.tokenizer import Tokenizer
from llama_jax.evals.language_model import Answer, Likelihood, Request, Writing
from llama_jax.evals.likelihood import Pair, Scored, score_pairs
from llama_jax.infer.api import tokenizer_of
from llama_jax.infer.rollout import stream_answers
from llama_jax.infer.sampling_params import SamplingParams
from llama_jax.model.cache import gather
from llama_jax.models import Model, params_digest

_DECIDES = (
    "num_heads", "num_kv_heads", "norm_eps", "rope_theta", "rope_scaling", "rope_factor",
    "max_seq_len", "dtype",
)  # fmt: skip
"""What of a configuration decides what the same weights say."""


@dataclass(frozen=True)
class ModelUnderTest:
    """A `LanguageModel` made of a model with a tokenizer."""

    model: Model
    rows: int
    """Contexts, continuations or answers that are computed together."""
    seed: int = 0
    conversations: dict[str, list[int]] = field(default_factory=dict)
    """Token ids of the contexts that `written_out` returned."""

    def written_out(self, messages: Sequence[Message]) -> str:
        """A conversation that ends with a user message as text, to be a context of requests.

        As a context it has the ids of `encode_prompt`, with BOS and EOS between its turns, which
        no other text gets. Raises InputError as encode_prompt does.
        """
        ids = encode_prompt(self._tokenizer, messages)
        text = "".join(part for part, _ in render(messages))
        self.conversations[text] = ids
        return text

    @cached_property
    def digest(self) -> str:
        """Digest of weights, settings and tokenizer: equal for models that give the same
        results."""
        config = self.model.config
        shape = [getattr(config, name) for name in _DECIDES]
        tokenizer, bos = self._tokenizer.fingerprint, self.model.usage.add_bos
        return digest(params_digest(self.model.params), shape, tokenizer, bos)

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return tokenizer_of(self.model)

    @cached_property
    def _w(self) -> dict[str, Any]:
        return gather(self.model.prepared, self.model.config)

    @cached_property
    def _begin(self) -> list[int]:
        return [self._tokenizer.bos_id] if self.model.usage.add_bos else []

    @property
    def context(self) -> int:
        """Maximum number of tokens that the model can read."""
        return self.model.config.max_seq_len

    def encode_pair(self, request: Request) -> Pair:
        """The tokens of a context and of its continuation; InputError without a continuation."""
        context, continuation = request
        require(context + continuation, "a continuation without any text has no likelihood")
        if context in self.conversations:  # an answer is encoded apart, as in training
            require(continuation.strip(), "an answer without any text has no likelihood")
            answer = encode_beginning(self._tokenizer, continuation)
            return Pair(self.conversations[context], answer)
        kept = context.rstrip()
        continuation, context = context[len(kept) :] + continuation, kept
        encode = self._tokenizer.encode
        if not context:
            return Pair([self._tokenizer.bos_id], encode(continuation))
        before = self._begin + encode(context)
        whole = self._begin + encode(context + continuation)
        if len(whole) > len(before):
            return Pair(before, whole[len(before) :])
        # The continuation's characters went into the context's last piece.
        return Pair(whole[:-1] or [self._tokenizer.bos_id], whole[-1:])

    def likelihoods(self, requests: Sequence[Request]) -> Iterator[tuple[int, Likelihood | None]]:
        """See `LanguageModel`."""
        pairs = [self.encode_pair(request) for request in requests]
        fits = [n for n, pair in enumerate(pairs) if len(pair[0]) + len(pair[1]) <= self.context]
        yield from ((n, None) for n in sorted(set(range(len(pairs))) - set(fits)))
        for i, likelihood in self.score([pairs[n] for n in fits]):
            yield fits[i], likelihood

    def score(self, pairs: Sequence[Pair]) -> Iterator[tuple[int, Likelihood]]:
        """Scores of each pair of token ids that fits, with its number."""
        for n, scored in self._score(pairs):
            yield n, _likelihood([scored])

    def rolling(self, texts: Sequence[str], stride: int) -> Iterator[tuple[int, Likelihood | None]]:
        """See `LanguageModel`. The first token of a text is predicted from BOS."""
        windows = [
            self._windows(self._tokenizer.encode(text), stride or self.context) for text in texts
        ]
        owner = [n for n, found in enumerate(windows) for _ in found]
        left: dict[int, list[Scored]] = {n: [] for n in range(len(texts))}
        yield from ((n, Likelihood(0.0, True, 0)) for n, found in enumerate(windows) if not found)
        for number, scored in self._score([pair for found in windows for pair in found]):
            n = owner[number]
            left[n].append(scored)
            if len(left[n]) == len(windows[n]):
                yield n, _likelihood(left.pop(n))

    def _windows(self, ids: Sequence[int], stride: int) -> list[Pair]:
        """Pairs that predict each id once: the first from BOS alone, the others as late in a full
        context as `stride` new ids leave room for."""
        ids = [self._tokenizer.bos_id, *ids]
        context, found = self.context, []
        done = 1
        while done < len(ids):
            new = min(context if done == 1 else min(stride, context), len(ids) - done)
            begin = max(0, done + new - 1 - context)
            found.append(Pair(ids[begin:done], ids[done : done + new]))
            done += new
        return found

    def _score(self, pairs: Sequence[Pair]) -> Iterator[tuple[int, Scored]]:
        return score_pairs(self._w, pairs, config=self.model.config, rows=self.rows)

    def answers(
        self, prompts: Sequence[tuple[int, str]], writing: Writing
    ) -> Iterator[tuple[int, list[Answer] | None]]:
        """See `LanguageModel`: InputError for a prompt that the chat template cannot carry."""
        tokenizer = self._tokenizer
        ids = [self._prompt(text, writing.chat) for _, text in prompts]
        fits = [n for n, prompt in enumerate(ids) if len(prompt) < self.context]
        yield from ((n, None) for n in sorted(set(range(len(ids))) - set(fits)))
        if not fits:
            return
        params = SamplingParams(
            max_new_tokens=writing.max_new_tokens,
            temperature=writing.temperature,
            top_p=writing.top_p,
            stop_ids=(*self.model.usage.end_ids, *self._stop_ids(writing.until)),
        ).for_vocabulary(tokenizer.vocab_size, tokenizer.eos_id)
        ends = {tokenizer.eos_id, *self.model.usage.end_ids}
        drawn: dict[int, dict[int, Answer]] = {n: {} for n in fits}
        stream = stream_answers(
            self._w,
            [ids[n] for n in fits],
            params,
            config=self.model.config,
            wanted=[(i, j) for i in range(len(fits)) for j in range(writing.samples)],
            seeds=[(self.seed, prompts[n][0]) for n in fits],
            wave_rows=self.rows,
        )
        for answer in stream:
            n = fits[answer.prompt]
            tokens = answer.tokens.tolist()
            if tokens and tokens[-1] in ends:
                tokens.pop()
            text = tokenizer.decode(tokens, after=ids[n])
            whole = until_first(text, writing.until)
            room = self.context - len(ids[n])
            cut = answer.finish == "length" and whole == text and room < writing.max_new_tokens
            drawn[n][answer.sample] = Answer(whole, cut)
            if len(drawn[n]) == writing.samples:
                found = drawn.pop(n)
                yield n, [found[j] for j in range(writing.samples)]

    def _prompt(self, text: str, chat: bool) -> list[int]:
        if text in self.conversations:
            return self.conversations[text]
        if chat:
            return encode_prompt(self._tokenizer, [{"role": "user", "content": text}])
        # sentencepiece writes a space with the word behind it: one at the end would be a token that
        # no text of the training had there.
        return self._begin + self._tokenizer.encode(text.rstrip(" ")) or [self._tokenizer.bos_id]

    def _stop_ids(self, until: Sequence[str]) -> list[int]:
        """Tokens that hold a whole text that ends an answer: nothing behind them is read."""
        marks = [text.encode() for text in until]
        spelled = (self._tokenizer.decode_bytes([i]) for i in range(self._tokenizer.vocab_size))
        return [i for i, piece in enumerate(spelled) if any(mark in piece for mark in marks)]


def until_first(text: str, ends: Sequence[str]) -> str:
    """The part of a text before the first of some stop texts."""
    return text[: min((text.find(end) for end in ends if end in text), default=len(text))]


def _likelihood(parts: Sequence[Scored]) -> Likelihood:
    """Of one text in several windows; added up in float64."""
    logp = float(sum(part.logp.sum(dtype=np.float64) for part in parts))
    greedy = all(bool(part.best.all()) for part in parts)
    return Likelihood(logp, greedy, sum(len(part.logp) for part in parts))
