"""Answers in OpenAI's format: whole or in chunks, with log-probabilities if asked for."""

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from llama_jax.data.tokenizer import Tokenizer
from llama_jax.infer.engine.request import Piece, Score
from llama_jax.serve.job import Job
from llama_jax.serve.text import TextStream, token_bytes, token_text

LEAST_LOGPROB = -9999.0
"""In the place of minus infinity, which JSON has not."""


@dataclass(frozen=True)
class Entry:
    """One token's log-probabilities."""

    token: int
    score: Score | None
    """None for the first token of a prompt."""
    offset: int
    """Characters of the text before it."""


@dataclass
class Delta:
    """New content of a choice."""

    text: str = ""
    entries: list[Entry] = field(default_factory=list)
    finish: str | None = None


@dataclass
class Prompt:
    """What all answers to one prompt have in common."""

    ids: list[int]
    text: str | None
    """None where it came as ids."""
    scores: list[Score] = field(default_factory=list)
    """Of its tokens but the first, where they are wanted: they come with the first answer, before
    any other answer begins, since the others wait until it has computed the prompt."""


class Choice:
    """One answer while it is drawn."""

    def __init__(self, job: Job, tokenizer: Tokenizer, prompt: Prompt, index: int):
        self.job, self.tokenizer, self.prompt, self.index = job, tokenizer, prompt, index
        self.tokens = 0
        """Drawn, the end of text included."""
        self.finish: str | None = None
        self.text = TextStream(tokenizer, prompt.ids, job.stops, trimmed=job.chat)
        self._logp = 0.0
        self._before = 0
        self._begun = False

    @property
    def mean_logp(self) -> float:
        """Log-probability of a drawn token, on average."""
        return self._logp / max(self.tokens, 1)

    def take(self, piece: Piece) -> Delta:
        """The news of a piece. A stop string ends the choice, which the engine does not know."""
        delta = Delta()
        if not self._begun:
            self._begun = True
            self._begin(piece, delta)
        ends = self.job.requests[0][0].sampling.stop_ids
        for n, token in enumerate(piece.tokens):
            offset = self._before + self.text.characters
            self.tokens += 1
            if piece.scores:
                self._logp += piece.scores[n].logp
            last = piece.finish == "stop" and n == len(piece.tokens) - 1 and token in ends
            if not last:
                delta.text += self.text.push([token])
                if piece.scores:
                    delta.entries.append(Entry(token, piece.scores[n], offset))
            if self.text.stopped is not None:
                self.finish = delta.finish = "stop"
                return delta
        if piece.finish is not None:
            delta.text += self.text.push([], final=True)
            self.finish = delta.finish = "stop" if self.text.stopped is not None else piece.finish
        return delta

    def _begin(self, piece: Piece, delta: Delta) -> None:
        """The prompt before its answer, where it is to be echoed."""
        if not self.job.echo:
            return
        prompt = self.prompt
        if self.job.logprobs is not None:
            prompt.scores += piece.prompt_scores
            decode, text = self.tokenizer.decoder(), ""
            for token, score in zip(prompt.ids, [None, *prompt.scores], strict=True):
                delta.entries.append(Entry(token, score, len(text)))
                text += decode([token])
        delta.text = self.tokenizer.decode(prompt.ids) if prompt.text is None else prompt.text
        self._before = len(delta.text)


class Reply:
    """The objects of one request's answer."""

    def __init__(self, job: Job, model: str, tokenizer: Tokenizer):
        self.job, self.tokenizer = job, tokenizer
        kind = "chat.completion" if job.chat else "text_completion"
        self.id = ("chatcmpl-" if job.chat else "cmpl-") + secrets.token_hex(12)
        self._head = {"id": self.id, "object": kind, "created": int(time.time()), "model": model}
        self._chunk = {**self._head, "object": "chat.completion.chunk"} if job.chat else self._head
        prompts = [Prompt(*given) for given in zip(job.prompts, job.texts, strict=True)]
        drawn = [prompt for prompt in prompts for _ in range(job.best_of)]
        self.choices = [Choice(job, tokenizer, prompt, n) for n, prompt in enumerate(drawn)]
        """`best_of` of each prompt."""
        self.cached = 0
        """Tokens of prompts that were not computed again."""

    @property
    def usage(self) -> dict[str, Any]:
        """Tokens so far; a prompt counts once for all its answers."""
        prompt = sum(map(len, self.job.prompts))
        drawn = sum(choice.tokens for choice in self.choices)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": drawn,
            "total_tokens": prompt + drawn,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        }

    def whole(self, deltas: Sequence[Delta]) -> dict[str, Any]:
        """The answer of a request that does not stream, from the whole of each choice."""
        choices = []
        for index, choice in enumerate(self._given()):
            delta = deltas[choice.index]
            body = {"index": index, "logprobs": self._logprobs(delta)}
            if self.job.chat:
                message = {"role": "assistant", "content": delta.text, "refusal": None}
                choices.append({**body, "message": message, "finish_reason": delta.finish})
            else:
                choices.append({**body, "text": delta.text, "finish_reason": delta.finish})
        return {**self._head, "choices": choices, "usage": self.usage}

    def _given(self) -> list[Choice]:
        """Those that are told: all, or the best n of each prompt, the best first."""
        n, most = self.job.n, self.job.best_of
        if n == most:
            return self.choices
        groups = [self.choices[at : at + most] for at in range(0, len(self.choices), most)]
        ranked = [sorted(group, key=lambda choice: -choice.mean_logp) for group in groups]
        return [choice for group in ranked for choice in group[:n]]

    def first(self, choice: Choice) -> dict[str, Any] | None:
        """The chunk that comes before all others of a choice."""
        if not self.job.chat:
            return None
        delta = {"role": "assistant", "content": "", "refusal": None}
        return self._with_usage(
            {"index": choice.index, "delta": delta, "logprobs": None, "finish_reason": None}
        )

    def chunks(self, choice: Choice, delta: Delta) -> list[dict[str, Any]]:
        """The chunks of a stream that carry the news of a choice."""
        logprobs = self._logprobs(delta) if delta.entries else None
        if not self.job.chat:
            if not (delta.text or delta.entries or delta.finish):
                return []
            body = {"index": choice.index, "text": delta.text, "logprobs": logprobs}
            return [self._with_usage({**body, "finish_reason": delta.finish})]
        chunks, index = [], {"index": choice.index}
        if delta.text or delta.entries:
            body = {**index, "delta": {"content": delta.text}, "logprobs": logprobs}
            chunks.append(self._with_usage({**body, "finish_reason": None}))
        if delta.finish:
            body = {**index, "delta": {}, "logprobs": None, "finish_reason": delta.finish}
            chunks.append(self._with_usage(body))
        return chunks

    def last(self) -> dict[str, Any] | None:
        """The chunk that says what a stream took, where that is asked for."""
        if not self.job.include_usage:
            return None
        return {**self._chunk, "choices": [], "usage": self.usage}

    def _with_usage(self, choice: dict[str, Any]) -> dict[str, Any]:
        usage = {"usage": None} if self.job.include_usage else {}
        return {**self._chunk, "choices": [choice], **usage}

    def _logprobs(self, delta: Delta) -> dict[str, Any] | None:
        if self.job.logprobs is None:
            return None
        return (self._content if self.job.chat else self._lists)(delta.entries)

    def _name(self, token: int) -> str:
        if self.job.tokens_as_ids:
            return f"token_id:{token}"
        return token_text(self.tokenizer, token)

    def _content(self, entries: Sequence[Entry]) -> dict[str, Any]:
        """The format of chat completions."""

        def one(token: int, logp: float) -> dict[str, Any]:
            spelled = list(token_bytes(self.tokenizer, token))
            return {"token": self._name(token), "logprob": _finite(logp), "bytes": spelled}

        content = []
        for entry in entries:
            assert entry.score is not None  # an answer has no first token without one
            top = entry.score.top[: self.job.logprobs]
            content.append(
                {**one(entry.token, entry.score.logp), "top_logprobs": [one(*t) for t in top]}
            )
        return {"content": content, "refusal": None}

    def _lists(self, entries: Sequence[Entry]) -> dict[str, Any]:
        """The format of completions. Of tokens that are spelled alike the more probable counts."""
        tops = []
        for entry in entries:
            if entry.score is None:
                tops.append(None)
                continue
            top = {}
            for token, logp in [
                *entry.score.top[: self.job.logprobs],
                (entry.token, entry.score.logp),
            ]:
                name = self._name(token)
                top[name] = max(top.get(name, LEAST_LOGPROB), _finite(logp))
            tops.append(top)
        return {
            "tokens": [self._name(e.token) for e in entries],
            "token_logprobs": [None if e.score is None else _finite(e.score.logp) for e in entries],
            "top_logprobs": tops,
            "text_offset": [e.offset for e in entries],
        }


def _finite(logp: float) -> float:
    return max(logp, LEAST_LOGPROB)
