"""Supervised fine-tuning: next-token prediction on the answers of dialogues (Llama 2, section 3.1).

Whole dialogues share a row, told apart by segment ids; prompts are read and answers are learned,
EOS among them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import jax.numpy as jnp

from llama_jax.align.logprobs import batch_logprobs
from llama_jax.config import InputError, TrainConfig
from llama_jax.config_align import SftConfig
from llama_jax.data.chat import JINJA, decode_answer, encode_prompt
from llama_jax.data.conversations import prepare_dialogues
from llama_jax.data.records import Message
from llama_jax.data.tokenizer import Tokenizer
from llama_jax.infer.generate import generate_tokens
from llama_jax.infer.sampling_params import SamplingParams
from llama_jax.model.cache import prepare
from llama_jax.train.loop import Summary, run
from llama_jax.train.next_token import NextToken, batch_targets
from llama_jax.train.objective import Batch, Forward, Mean
from llama_jax.train.stage import Ask, Stage, require_fits

ANSWER_TOKENS = 128
"""Maximum number of tokens of a sample."""


def sft(config: SftConfig, *, ask: Ask | None = None) -> Summary:
    """Fine-tune, or resume; see `train.loop.run`."""
    return run(config, stage, ask)


def stage(config: SftConfig) -> Stage:
    """Describes the stage: dialogues with loss on their answers; sampled answers to the sample
    prompts."""
    return Stage(
        name="sft",
        objective=Answers(config.model, config.z_loss),
        prepare=lambda tokenizer: prepare_dialogues(config.data, tokenizer, seq_len=config.seq_len),
        sample=partial(answer_prompts, config),
        check=partial(check_prompts, config),
        template=JINJA,
    )


@dataclass(frozen=True)
class Answers(NextToken):
    """`NextToken` with more metrics: top-1 accuracy on answers, the model's entropy, and whether it
    knows where answers end."""

    def examine(self, forward: Forward, batch: Batch) -> dict[str, Mean]:
        """Loss, accuracy and entropy over answer tokens; eos_accuracy at their ends."""
        targets, mask = batch_targets(batch)
        found = batch_logprobs(forward, batch, targets, cfg=self.model)
        ends = mask & ~jnp.roll(mask, -1, axis=1)

        return {
            "loss": Mean.over(-found.logp, mask),
            "accuracy": Mean.over(found.logp >= found.best, mask),
            "entropy": Mean.over(found.entropy, mask),
            "eos_accuracy": Mean.over(found.logp >= found.best, ends),
        }


def answer_prompts(config: TrainConfig, params: dict, tokenizer: Tokenizer) -> list[str]:
    """The experiment's sample prompts, each as a user message, with greedy answers to them."""
    conversations = [[{"role": "user", "content": text}] for text in config.sample_prompts]
    answers = greedy_answers(config, params, tokenizer, conversations)
    return [f"> {p}\n\n{a}" for p, a in zip(config.sample_prompts, answers, strict=True)]


def check_prompts(config: TrainConfig, tokenizer: Tokenizer) -> None:
    """Raise InputError for a sample prompt that is no valid user message or exceeds the context."""
    for prompt in config.sample_prompts:
        try:
            ids = encode_prompt(tokenizer, [{"role": "user", "content": prompt}])
        except InputError as error:
            raise InputError(f"sample prompt {prompt!r:.40}: {error}") from error
        require_fits(prompt, len(ids), config)


def greedy_answers(
    config: TrainConfig,
    params: dict,
    tokenizer: Tokenizer,
    conversations: Sequence[Sequence[Message]],
) -> list[str]:
    """The greedy answer to each conversation, of up to ANSWER_TOKENS tokens."""
    if not conversations:
        return []
    greedy = SamplingParams(max_new_tokens=ANSWER_TOKENS, temperature=0.0)
    ids = generate_tokens(
        prepare(params, config.model),
        [encode_prompt(tokenizer, messages) for messages in conversations],
        greedy.for_vocabulary(tokenizer.vocab_size, tokenizer.eos_id),
        config=config.model,
        seeds=[0] * len(conversations),
    )
    return [decode_answer(tokenizer, answer) for answer in ids]
