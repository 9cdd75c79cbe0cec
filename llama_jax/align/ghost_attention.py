"""Ghost attention: an instruction of the first turn is kept in every turn (Llama 2, section 3.3).

A model, most simply the one that is trained, answers a conversation in which every user turn
carries the instruction, so the newest turns are enough context. Training is on those answers in the
whole conversation, with the instruction in the first turn only.

The paper trains only the last answer of a conversation. Here one row trains every later answer:
attention is causal, so each of them is the last answer of the conversation up to there.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from llama_jax.align.answering import Answered, Answerer, is_text, kept_dialogues
from llama_jax.align.progress import counted
from llama_jax.align.sft import stage as sft_stage
from llama_jax.config import require
from llama_jax.config_align import GattConfig
from llama_jax.data.chat import encode_prompt
from llama_jax.data.ghosts import Ghost, ghost_conversations
from llama_jax.data.records import Dialogue, Message
from llama_jax.data.tokenizer import Tokenizer
from llama_jax.models import open_model
from llama_jax.train.loop import Summary, run
from llama_jax.train.stage import Stage

logger = logging.getLogger(__name__)


def gatt(config: GattConfig) -> Summary:
    """Make the conversations, then fine-tune on them, or resume; see `train.loop.run`."""
    return run(config, stage)


def stage(config: GattConfig) -> Stage:
    """Describes the stage: fine-tuning on conversations that a model answered."""
    plain = sft_stage(config)

    def prepare(tokenizer: Tokenizer) -> Any:
        models = [_answering(config)]
        path = kept_dialogues(config, tokenizer, models, lambda: synthesise(config, tokenizer))
        mixed = f"{path}=1,{config.replay}" if config.replay else path
        data = replace(config.data, dataset=mixed, format=None)
        return sft_stage(replace(config, data=data)).prepare(tokenizer)

    return replace(plain, name="gatt", prepare=prepare)


def synthesise(config: GattConfig, tokenizer: Tokenizer) -> list[Dialogue]:
    """Conversations answered by `answers_from`, or by the model itself; all answers but the first
    are trained.

    Answers that were truncated, or break the instruction where that can be checked, are not
    trained; a conversation without any other later answer is left out. Raises InputError if none is
    left.
    """
    ghosts = ghost_conversations(config.data, config.dialogues, config.turns)
    name = _answering(config)
    opened = open_model(name)
    require(
        opened.tokenizer is not None and opened.tokenizer.fingerprint == tokenizer.fingerprint,
        f"answers_from {name} has another tokenizer than init_from {config.init_from}: name a "
        "model with the same one",
    )
    longest = min(config.seq_len, opened.config.max_seq_len) - config.max_new_tokens
    require(
        longest > 0,
        f"{'answers_from' if config.answers_from else 'init_from'} {name} has a context of "
        f"{opened.config.max_seq_len} tokens and a row seq_len={config.seq_len}: lower "
        f"max_new_tokens={config.max_new_tokens}, which leaves no room for a question",
    )
    answerer = Answerer.load(
        name,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        wave_rows=config.wave_rows,
        most=len(ghosts),
        prompt_len=_longest_prompt(config, ghosts, tokenizer, longest),
    )
    conversations = converse(
        answerer, ghosts, config.turns, seed=config.seed, every=True, newest=config.context_turns,
        samples=config.samples,
    )  # fmt: skip
    later = [a for answers in conversations for a in answers[1:]]
    whole = sum(a.ended for a in later)
    rows = [training_row(*pair) for pair in zip(ghosts, conversations, strict=True)]
    trained = [sum(m["train"] for m in row.messages[1::2]) for row in rows]
    logger.info(
        "%d conversations have %d answers after their first; %d of them are whole, and %d of those "
        "keep the instruction", len(ghosts), len(later), whole, sum(trained),
    )  # fmt: skip
    require(
        any(trained),
        f"{len(ghosts)} conversations with {name} have {whole} complete answers after their "
        "first, and none keeps its instruction: let a model that follows instructions in a single "
        "turn answer (--answers-from, --init-from), or raise --max-new-tokens",
    )
    return [row for row, count in zip(rows, trained, strict=True) if count]


def _answering(config: GattConfig) -> str:
    """The path of the model that answers."""
    return config.answers_from or config.init_from


def _longest_prompt(
    config: GattConfig, ghosts: Sequence[Ghost], tokenizer: Tokenizer, longest: int
) -> int:
    """Tokens of the longest conversation that is answered, `longest` at most."""
    if not config.context_turns:
        return longest
    asked = (
        messages_of(replace(g, questions=(q,)), (), every=True) for g in ghosts for q in g.questions
    )
    turn = max(len(encode_prompt(tokenizer, messages)) for messages in asked)
    return min(longest, config.context_turns * (turn + config.max_new_tokens))


def converse(
    answerer: Answerer,
    ghosts: Sequence[Ghost],
    turns: int,
    *,
    seed: int,
    every: bool,
    newest: int = 0,
    samples: int = 1,
) -> list[list[Answered]]:
    """The model's answers to the first turns of each conversation.

    The instruction is put before `every` question, or before the first alone. The model sees the
    `newest` turns, including the one that it answers; 0 means all. Of at most `samples` answers to
    a question the first that is complete and keeps the instruction is taken, or else the last. A
    conversation ends early after its last question, after an answer that is empty or contains tags
    of the chat template, or when it no longer fits the model's context.
    """
    answers: list[list[Answered]] = [[] for _ in ghosts]
    begin = 1 - 2 * newest if newest else 0  # two messages a turn, less the answer that is due
    for turn in counted(range(turns), turns, "conversations, turns"):
        asked = {
            number: messages_of(ghost, answers[number], every=every)[begin:]
            for number, ghost in enumerate(ghosts)
            if turn < len(ghost.questions) and len(answers[number]) == turn
        }
        asked = {n: m for n, m in asked.items() if answerer.reads(m)}
        taken: dict[int, Answered] = {}
        for sample in range(samples):
            found = answerer.answer(list(asked.values()), [(seed, n, turn, sample) for n in asked])
            taken |= zip(asked, found, strict=True)
            asked = {n: m for n, m in asked.items() if not _keeps(ghosts[n], taken[n])}
        for number, answer in taken.items():
            if is_text(answer.text):
                answers[number].append(answer)
    return answers


def _keeps(ghost: Ghost, answer: Answered) -> bool:
    """Whether an answer is complete and keeps the instruction."""
    return answer.ended and is_text(answer.text) and ghost.keeps(answer.text)


def messages_of(ghost: Ghost, answers: Sequence[Answered], *, every: bool) -> list[Message]:
    """The conversation up to the question after the answers so far."""
    messages: list[Message] = []
    for turn, question in enumerate(ghost.questions[: len(answers) + 1]):
        asked = f"{ghost.instruction} {question}" if every or turn == 0 else question
        messages.append({"role": "user", "content": asked})
        if turn < len(answers):
            messages.append({"role": "assistant", "content": answers[turn].text})
    return messages


def training_row(ghost: Ghost, answers: Sequence[Answered]) -> Dialogue:
    """The instruction in the first turn, and loss on the later answers that keep it."""
    messages = messages_of(ghost, answers, every=False)[: 2 * len(answers)]
    kept = [turn > 0 and _keeps(ghost, a) for turn, a in enumerate(answers)]
    messages[1::2] = [{**m, "train": t} for m, t in zip(messages[1::2], kept, strict=True)]
    return Dialogue(messages=tuple(messages), source="gatt")


def recall(
    answerer: Answerer, ghosts: Sequence[Ghost], at: Sequence[int], *, seed: int
) -> dict[int, float]:
    """Share of conversations whose answer at each of the turns still follows the first instruction.

    The model converses with itself: its own earlier answers are part of the prompt.
    """
    answers = converse(answerer, ghosts, max(at), seed=seed, every=False)

    def kept(turn: int) -> list[bool]:
        return [
            len(said) >= turn and ghost.keeps(said[turn - 1].text)
            for ghost, said in zip(ghosts, answers, strict=True)
        ]

    return {turn: float(np.mean(kept(turn))) for turn in at}
