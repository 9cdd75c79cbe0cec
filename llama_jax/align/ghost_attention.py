"""Ghost attention: an instruction of the first turn that holds for all (Llama 2, section 3.3).

The model answers a conversation in which every user's turn carries the instruction. It is trained
on its last answer alone, in the same conversation with the instruction in the first turn only; and
so with the first half of the conversation, the first quarter, and on.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from llama_jax.align.answering import Answered, Answerer, is_text, kept_dialogues
from llama_jax.align.sft import stage as sft_stage
from llama_jax.config import require
from llama_jax.config_align import GattConfig
from llama_jax.data.ghosts import Ghost, ghost_conversations
from llama_jax.data.records import Dialogue, Message
from llama_jax.data.tokenizer import Tokenizer
from llama_jax.train.loop import Summary, run
from llama_jax.train.stage import Stage

logger = logging.getLogger(__name__)


def gatt(config: GattConfig) -> Summary:
    """Make the conversations, then fine-tune on them, or resume; see `train.loop.run`."""
    return run(config, stage)


def stage(config: GattConfig) -> Stage:
    """Fine-tuning on conversations that the model made itself."""
    plain = sft_stage(config)

    def prepare(tokenizer: Tokenizer) -> Any:
        models = [config.init_from]
        path = kept_dialogues(config, tokenizer, models, lambda: synthesise(config))
        data = replace(config.data, dataset=path, format=None)
        return sft_stage(replace(config, data=data)).prepare(tokenizer)

    return replace(plain, name="gatt", prepare=prepare)


def synthesise(config: GattConfig) -> list[Dialogue]:
    """Conversations with the model's own answers, and their beginnings; the last answer of each is
    trained.

    Left out are those whose last answer was cut off, or does not keep the instruction where that
    can be checked, and those that were too long for a second turn. Raises InputError if none is
    left.
    """
    ghosts = ghost_conversations(config.data, config.dialogues, config.turns)
    turns = np.random.default_rng(config.seed).integers(2, config.turns + 1, len(ghosts)).tolist()
    answerer = Answerer.load(
        config.init_from,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        wave_rows=config.wave_rows,
        prompt_len=config.seq_len - config.max_new_tokens,
    )
    answers = converse(answerer, ghosts, turns, seed=config.seed, every=True)
    whole = [
        [(ghost, said[:end]) for end in halvings(len(said)) if said[end - 1].ended]
        for ghost, said in zip(ghosts, answers, strict=True)
    ]
    made = [
        training_row(ghost, said)
        for ends in whole
        for ghost, said in ends
        if ghost.keeps(said[-1].text)
    ]
    count = sum(map(bool, whole))
    logger.info(
        "%d of %d conversations end, or one of their beginnings does, with a whole answer; %d of "
        "%d such answers keep the instruction", count, len(ghosts), len(made), sum(map(len, whole)),
    )  # fmt: skip
    require(
        made,
        f"of {len(ghosts)} conversations with {config.init_from}, {count} end with a whole "
        "answer, and none of those keeps its instruction: start from a model that follows "
        "instructions in a single turn, or raise --max-new-tokens",
    )
    return made


def halvings(turns: int) -> list[int]:
    """Where a conversation is taken to end: after all turns, half of them, and on, down to two."""
    ends = []
    while turns > 1:
        ends.append(turns)
        turns //= 2
    return ends


def converse(
    answerer: Answerer, ghosts: Sequence[Ghost], turns: Sequence[int], *, seed: int, every: bool
) -> list[list[Answered]]:
    """The model's answers to the first turns of each conversation.

    The instruction stands before `every` question, or before the first alone. A conversation ends
    early after its last question, after an empty answer or one that cannot stand in a conversation,
    and where it has grown longer than the model can read.
    """
    answers: list[list[Answered]] = [[] for _ in ghosts]
    for turn in range(max(turns)):
        asked = {
            number: messages_of(ghost, answers[number], every=every)
            for number, ghost in enumerate(ghosts)
            if turn < min(turns[number], len(ghost.questions)) and len(answers[number]) == turn
        }
        asked = {n: m for n, m in asked.items() if answerer.reads(m)}
        found = answerer.answer(list(asked.values()), [(seed, n, turn) for n in asked])
        for number, answer in zip(asked, found, strict=True):
            if is_text(answer.text):
                answers[number].append(answer)
    return answers


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
    """The instruction in the first turn, and loss on the last answer alone."""
    messages = messages_of(ghost, answers[:-1], every=False)
    rows = [{**m, "train": False} if m["role"] == "assistant" else m for m in messages]
    final = {"role": "assistant", "content": answers[-1].text}
    return Dialogue(messages=(*rows, final), source="gatt")


def recall(
    answerer: Answerer, ghosts: Sequence[Ghost], at: Sequence[int], *, seed: int
) -> dict[int, float]:
    """Share of conversations whose answer at each of the turns keeps the instruction of the first.

    The model speaks with itself: its own answers stand before.
    """
    answers = converse(answerer, ghosts, [max(at)] * len(ghosts), seed=seed, every=False)

    def kept(turn: int) -> list[bool]:
        return [
            len(said) >= turn and ghost.keeps(said[turn - 1].text)
            for ghost, said in zip(ghosts, answers, strict=True)
        ]

    return {turn: float(np.mean(kept(turn))) for turn in at}
