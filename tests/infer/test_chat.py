"""Conversations with a random model: what it sees, what it says, what is remembered."""

from dataclasses import replace

import jax
import pytest

import llama_jax
from llama_jax.config import InputError
from llama_jax.data.corpora import tales
from llama_jax.data.tokenizer import train_tokenizer
from llama_jax.infer.chat import Conversation, Reply, reply
from llama_jax.model.llama import init_params
from llama_jax.model.presets import TINY

CONTEXT = 64


@pytest.fixture(scope="module")
def model():
    tokenizer = train_tokenizer([tales.story(i) for i in range(50)], 320)
    config = replace(TINY, vocab_size=320, max_seq_len=CONTEXT)
    return llama_jax.Model(config, init_params(jax.random.key(0), config), tokenizer)


class Encoder:
    """Ten tokens for each turn, the system text in the first; keeps what it was asked."""

    def __init__(self):
        self.asked = []

    def __call__(self, messages, limit):
        self.asked.append(([m["content"] for m in messages], limit))
        turns = sum(m["role"] == "user" for m in messages)
        kept = min(turns, limit // 10)
        return ([1] + [5] * (10 * kept - 1), turns - kept) if kept else None


def ask(model, conversation, question, encode, seed=0, **params):
    params = llama_jax.SamplingParams(**{"max_new_tokens": 12, **params})
    return reply(model, conversation, question, params, encode=encode, seed=seed)


@pytest.mark.parametrize(
    ("pieces", "said"),
    [
        ([" Hello", " ", "there", ".", "  ", "\n", ""], ["Hello", " there", "."]),
        (["  ", "\n", " a \n", "\n b "], ["a", " \n\n b"]),
        (["", " ", "\n"], []),
    ],
)
def test_an_answer_is_stripped_while_it_is_drawn(pieces, said):
    answer = Reply(Conversation(), "?", 0, iter(pieces))
    assert list(answer) == said
    assert answer.text == "".join(pieces).strip()


def test_a_conversation_grows_by_what_was_said(model):
    encode, start = Encoder(), Conversation("Be kind.")
    first = ask(model, start, "Who?", encode)
    pieces = list(first)
    assert "".join(pieces) == first.text != ""
    assert len(pieces) > 1
    after = first.conversation
    assert after == Conversation("Be kind.", (("Who?", first.text),))
    assert start.turns == ()
    ask(model, after, "Why?", encode)
    assert encode.asked == [
        (["Be kind.", "Who?"], CONTEXT - 12),
        (["Be kind.", "Who?", first.text, "Why?"], CONTEXT - 12),
    ]
    assert [m["role"] for m in after.messages("Why?")] == ["system", "user", "assistant", "user"]
    assert [m["role"] for m in Conversation().messages("Why?")] == ["user"]


def test_an_answer_follows_its_prompt_and_seed(model):
    def said(seed, **params):
        return "".join(ask(model, Conversation(), "Who?", Encoder(), seed=seed, **params))

    assert said(1) == said(1) != said(2)
    ids, _ = Encoder()(Conversation().messages("Who?"), CONTEXT)
    text = model.tokenizer.decode(ids)
    whole = "".join(
        llama_jax.infer.api.continue_ids(
            model, ids, llama_jax.SamplingParams(max_new_tokens=12), seed=1, block=3
        )
    )
    assert text == model.tokenizer.decode([5] * 9)
    assert said(1) == whole.strip()


def test_what_was_said_of_an_interrupted_answer_stays(model):
    answer = ask(model, Conversation(), "Who?", Encoder())
    assert answer.conversation == Conversation()
    piece = next(iter(answer))
    assert answer.conversation == Conversation("", (("Who?", piece),))


def test_nothing_said_is_nothing_remembered(model):
    before = Conversation("", (("a", "b"),))
    answer = ask(model, before, "Who?", Encoder(), max_new_tokens=0)
    assert list(answer) == []
    assert answer.conversation == before


@pytest.mark.parametrize(
    ("turns", "max_new_tokens", "dropped"),
    [(2, 12, 0), (4, 12, 0), (5, 12, 1), (9, 12, 5), (2, 500, 0), (3, 500, 1)],
)
def test_the_oldest_turns_leave_room_for_the_answer(model, turns, max_new_tokens, dropped):
    """A turn takes 10 tokens; half of the context at most is kept for the answer."""
    before = Conversation("Be kind.", tuple((str(t), "a") for t in range(turns)))
    answer = ask(model, before, "Who?", Encoder(), max_new_tokens=max_new_tokens)
    assert answer.dropped == dropped
    assert list(answer)
    assert len(answer.conversation.turns) == turns + 1


def test_a_question_that_leaves_little_room_is_answered_still(model):
    def encode(messages, limit):
        return ([1] * 60, 0) if limit >= 60 else None

    assert ask(model, Conversation(), "Who?", encode).dropped == 0
    with pytest.raises(InputError, match="takes more than the model's context of 64 tokens"):
        ask(model, Conversation(), "Who?", lambda messages, limit: None)
