"""A conversation with a model, turn by turn; tokenising messages is left to the caller."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from llama_jax.config import InputError
from llama_jax.infer.api import continue_ids
from llama_jax.infer.sampling_params import SamplingParams
from llama_jax.models import Model

Message = Mapping[str, str]
"""role (system, user or assistant) and content."""
Encode = Callable[[Sequence[Message], int], tuple[Sequence[int], int] | None]
"""(messages ending with the user's, maximum number of tokens) -> ids, and how many of the oldest
turns were dropped to make them fit; None if not even the last one fits."""


@dataclass(frozen=True)
class Conversation:
    """A conversation so far: the system text, and questions with their answers."""

    system: str = ""
    """The system text; empty for no system message."""
    turns: tuple[tuple[str, str], ...] = ()

    def messages(self, question: str | None = None) -> tuple[Message, ...]:
        """All of it as messages, followed by an optional question without an answer."""
        said = [("system", self.system)] if self.system else []
        for asked, answered in self.turns:
            said += [("user", asked), ("assistant", answered)]
        said += [] if question is None else [("user", question)]
        return tuple({"role": role, "content": content} for role, content in said)


class Reply:
    """An answer while it is sampled: iterate over it for pieces of its text, stripped as a
    whole."""

    def __init__(
        self, conversation: Conversation, question: str, dropped: int, pieces: Iterator[str]
    ):
        self.dropped = dropped
        """How many of the oldest turns the model does not see: they did not fit its context."""
        self.text = ""
        """What was said so far."""
        self._before, self._question, self._pieces = conversation, question, pieces

    def __iter__(self) -> Iterator[str]:
        space = ""
        for piece in self._pieces:
            piece = space + piece if self.text else piece.lstrip()
            said = piece.rstrip()
            space = piece[len(said) :]  # until it is known whether more follows
            self.text += said
            if said:
                yield said

    @property
    def conversation(self) -> Conversation:
        """Extended by this question and the answer so far; unchanged if the answer is empty."""
        if not self.text:
            return self._before
        turns = (*self._before.turns, (self._question, self.text))
        return replace(self._before, turns=turns)


def reply(
    model: Model,
    conversation: Conversation,
    question: str,
    params: SamplingParams,
    *,
    encode: Encode,
    seed: int,
    block: int = 8,
) -> Reply:
    """Ask a question; returns an answer that is sampled while it is read, `block` tokens at a time.

    It ends at EOS, after `max_new_tokens` tokens or at the end of the context. If the conversation
    is too long, the model does not see its oldest turns: `max_new_tokens`, but at most half of the
    context, are reserved for the answer. The conversation itself stays complete.

    Raises:
      InputError: the question alone does not fit; `encode` rejects a message; the model has no
        tokenizer; the seed is out of range, once the reply is read.
    """
    context = model.config.max_seq_len
    kept_free = max(1, min(params.max_new_tokens, context // 2))
    messages = conversation.messages(question)
    found = encode(messages, context - kept_free) or encode(messages, context - 1)
    if found is None:
        raise InputError(
            f"the message, with the system text, takes more than the model's context of {context} "
            "tokens: shorten it"
        )
    ids, dropped = found
    pieces = continue_ids(model, ids, params, seed=seed, block=block)
    return Reply(conversation, question, dropped, pieces)
