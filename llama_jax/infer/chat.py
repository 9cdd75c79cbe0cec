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
"""From messages, the last of them the user's, and a number of tokens to so many ids at most, and
how many of the oldest turns were left out for that; None if the last one does not fit either."""


@dataclass(frozen=True)
class Conversation:
    """What was said: the system text, and questions with their answers."""

    system: str = ""
    """How the model is to behave; empty for no system message."""
    turns: tuple[tuple[str, str], ...] = ()

    def messages(self, question: str | None = None) -> tuple[Message, ...]:
        """All of it as messages, and a question that waits for its answer."""
        said = [("system", self.system)] if self.system else []
        for asked, answered in self.turns:
            said += [("user", asked), ("assistant", answered)]
        said += [] if question is None else [("user", question)]
        return tuple({"role": role, "content": content} for role, content in said)


class Reply:
    """An answer while it is drawn: iterate over it for its text, in pieces, stripped as a whole."""

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
        """With this question and what was said so far; as it was before if that is nothing."""
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
    """Ask, and get an answer that is drawn while it is read, `block` tokens at a time.

    It ends at EOS, after `max_new_tokens` tokens or at the end of the context. Where the
    conversation is too long, the model does not see its oldest turns: `max_new_tokens`, but not
    more than half of the context, are kept for the answer. The conversation itself stays whole.

    Raises:
      InputError: the question alone does not fit; what `encode` refuses; the model has no
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
