"""Prepared conversation data: dialogues to fine-tune on, preferences, prompts to answer.

Dialogues and preferences go through the cache of `prepare` and are read with `Loader`; prompts are
few and stay in memory. A hash of the first question decides what is held out, so no question is
on both sides.
"""

import json
import logging
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from llama_jax.config import DataConfig, require
from llama_jax.data.chat import encode_prompt
from llama_jax.data.conversation_recipes import PackedDialogues, PreferencePairs, summary
from llama_jax.data.prepare import Mixture, prepare_recipes
from llama_jax.data.recipes import READ
from llama_jax.data.record_sources import (
    DROPPED,
    Half,
    RecordSource,
    half_of,
    resolve_records,
)
from llama_jax.data.records import Message, Prompt
from llama_jax.data.sources import SPLITS, TRAIN, VALIDATION, digest
from llama_jax.data.tokenizer import Tokenizer

log = logging.getLogger(__name__)


def prepare_dialogues(
    config: DataConfig,
    tokenizer: Tokenizer,
    *,
    seq_len: int,
    beam_runner: str | None = None,
    beam_options: Sequence[str] = (),
) -> dict[str, Mixture]:
    """Packed rows of T tokens of `config.dataset`: `{"train": Mixture, "validation": Mixture}`.

    See PackedDialogues for the rows, `resolve_records` for possible names, `prepare` for the rest.
    `config.format` names the format of the files; by default their first rows decide. A log line
    reports what was read, shortened and dropped. Raises InputError, with file and row, for bad
    data.
    """
    found = resolve_records(config.dataset, "dialogue", config.format)
    recipes = [(PackedDialogues(source, tokenizer, seq_len), weight) for source, weight in found]
    return prepare_recipes(recipes, config, beam_runner, beam_options)


def prepare_preferences(
    config: DataConfig,
    tokenizer: Tokenizer,
    *,
    seq_len: int,
    half: Half = "all",
    per_row: int = 1,
    beam_runner: str | None = None,
    beam_options: Sequence[str] = (),
) -> dict[str, Mixture]:
    """Pairs of rows of T tokens, as `prepare_dialogues`; see PreferencePairs for the arrays.

    half: which half of the conversations to take, by a hash of their first question.
    per_row: how many pairs may share their two rows.
    """
    found = resolve_records(config.dataset, "preference", config.format)
    recipes = [
        (PreferencePairs(half_of(source, half), tokenizer, seq_len, per_row), weight)
        for source, weight in found
    ]
    return prepare_recipes(recipes, config, beam_runner, beam_options)


@dataclass(frozen=True)
class EncodedPrompt:
    """A conversation that waits for an answer, as text and as tokens."""

    id: str
    """Digest of the messages: equal in every run and data set."""
    messages: tuple[Message, ...]
    tokens: tuple[int, ...]
    """From BOS to the [/INST] that the answer follows."""
    safety: bool
    """Whether its answer is judged by the safety reward model."""
    source: str
    share: float
    """Its share of all draws; the shares of a split sum to 1."""
    answer: str | None = None
    """The reference answer of the record, if any."""


def prepare_prompts(
    config: DataConfig, tokenizer: Tokenizer, *, max_tokens: int
) -> dict[str, tuple[EncodedPrompt, ...]]:
    """Prompts of `config.dataset` of at most `max_tokens` tokens, by split, in order.

    Longer prompts and duplicates are dropped; a log line counts them. All prompts of a data set
    share its weight equally. Raises InputError for bad data and if no prompt is left to train on.
    """
    prompts: dict[str, dict[str, EncodedPrompt]] = {split: {} for split in SPLITS}
    for source, weight in resolve_records(config.dataset, "prompt", config.format):
        kept = _read_prompts(source, tokenizer, max_tokens)
        for split, found in kept.items():
            for prompt in found:
                prompts[split].setdefault(prompt.id, replace(prompt, share=weight / len(found)))
    return {split: _sum_to_one(found.values()) for split, found in prompts.items() if found}


def _read_prompts(
    source: RecordSource, tokenizer: Tokenizer, max_tokens: int
) -> dict[str, list[EncodedPrompt]]:
    """Different prompts that are short enough, by split; all to train on if all are held out."""
    kept, lines, lengths = {}, [], []
    for split in SPLITS:
        counts: Counter[str] = Counter()
        found: dict[str, EncodedPrompt] = {}
        for chunk in source.chunks(split):
            for where, record in source.records(split, chunk, counts):
                assert isinstance(record, Prompt), where
                counts[READ] += 1
                tokens = encode_prompt(tokenizer, record.messages, where=where)
                lengths.append(len(tokens))
                name = prompt_id(record.messages)
                if len(tokens) > max_tokens:
                    counts[f"{DROPPED}: longer than {max_tokens} tokens"] += 1
                elif name in found:
                    counts[f"{DROPPED}: the same prompt was there before"] += 1
                else:
                    found[name] = EncodedPrompt(
                        name, record.messages, tuple(tokens), record.safety, record.source, 0.0,
                        record.answer,
                    )  # fmt: skip
        if told := summary("prompt", f"{len(found):,} kept", counts):
            lines.append(f"{split}: {told}")
        kept[split] = list(found.values())
    told = "; ".join(lines)
    require(
        any(kept.values()),
        f"data {source.name} holds no prompt of at most {max_tokens} tokens; the shortest has "
        f"{min(lengths, default=0)}: {told}",
    )
    log.info("data %s: %s", source.name, told)
    return kept if kept[TRAIN] else {TRAIN: kept[VALIDATION], VALIDATION: []}


def prompt_seed(prompt: EncodedPrompt) -> int:
    """A 32-bit number derived from the prompt, from which the seeds of its answers are made."""
    return int(prompt.id[:8], 16)


def prompt_id(messages: Sequence[Message]) -> str:
    """Digest of the messages: equal for equal roles and texts."""
    texts = [(message["role"], message["content"].strip()) for message in messages]
    return digest("prompt", json.dumps(texts))[:16]


def _sum_to_one(prompts: Collection[EncodedPrompt]) -> tuple[EncodedPrompt, ...]:
    total = sum(prompt.share for prompt in prompts)
    return tuple(replace(prompt, share=prompt.share / total) for prompt in prompts)
