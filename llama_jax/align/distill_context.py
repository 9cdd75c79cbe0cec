"""Context distillation for safety: answer without a safety preprompt as with one (Llama 2, 4.2.4).

Answers to adversarial prompts are sampled with a safety preprompt and without. Where the safety
reward model scores the answer under the preprompt higher, the model is trained to give that answer
without it.
"""

import logging
from dataclasses import replace
from typing import Any

from llama_jax.align.answering import Answerer, is_text, kept_dialogues
from llama_jax.align.scoring import open_reward_model, rows_of
from llama_jax.align.sft import stage as sft_stage
from llama_jax.config import require
from llama_jax.config_align import DistillConfig
from llama_jax.data.conversations import prepare_prompts, prompt_seed
from llama_jax.data.records import Dialogue
from llama_jax.data.tokenizer import Tokenizer
from llama_jax.infer.rollout import UNKNOWN_ROWS
from llama_jax.train.loop import Summary, run
from llama_jax.train.stage import Stage

logger = logging.getLogger(__name__)
_WITHOUT, _WITH = 0, 1
"""Folded into the seeds of the two answers to a prompt."""


def distill_context(config: DistillConfig) -> Summary:
    """Make the dialogues, then fine-tune on them, or resume; see `train.loop.run`."""
    return run(config, stage)


def stage(config: DistillConfig) -> Stage:
    """Describes the stage: fine-tuning on answers that a preprompt improved."""

    def prepare(tokenizer: Tokenizer) -> Any:
        models = [config.init_from, config.safety]
        path = kept_dialogues(config, tokenizer, models, lambda: distil(config, tokenizer))
        data = replace(config.data, dataset=path, format=None)
        return sft_stage(replace(config, data=data)).prepare(tokenizer)

    return replace(sft_stage(config), name="distill-context", prepare=prepare)


def distil(config: DistillConfig, tokenizer: Tokenizer) -> list[Dialogue]:
    """Prompts with those answers under a preprompt that score higher than the answers without it.

    Truncated answers are left out, whatever they score. Raises InputError if a prompt has a system
    text of its own, or no answer is better.
    """
    limit = config.seq_len - config.max_new_tokens
    answerer = Answerer.load(
        config.init_from,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        wave_rows=config.wave_rows,
        prompt_len=limit,
    )
    prompts, primed = [], []
    found = prepare_prompts(config.data, tokenizer, max_tokens=limit)["train"]
    for number, prompt in enumerate(found):
        require(
            prompt.messages[0]["role"] != "system",
            f"prompt {number} of {config.data.dataset} has a system text, where the preprompt goes",
        )
        preprompt = config.preprompts[number % len(config.preprompts)]
        messages = [{"role": "system", "content": preprompt}, *prompt.messages]
        if answerer.reads(messages):
            prompts.append(prompt)
            primed.append(messages)
    require(
        prompts,
        f"no prompt of {config.data.dataset} has at most {limit} tokens with a preprompt: shorten "
        "the preprompts, or raise --seq-len",
    )
    plain = [list(p.messages) for p in prompts]
    judge = open_reward_model(
        config.safety, tokenizer, seq_len=config.seq_len, block=config.wave_rows or UNKNOWN_ROWS
    )
    scores, answers = {}, {}
    for kind, conversations in ((_WITHOUT, plain), (_WITH, primed)):
        seeds = [(config.seed, kind, prompt_seed(p)) for p in prompts]
        answers[kind] = answerer.answer(conversations, seeds)
        # Both are scored as answers to the prompt alone: that is what they are to be.
        texts = [[*p.tokens, *a.tokens] for p, a in zip(prompts, answers[kind], strict=True)]
        scores[kind] = judge.scores(rows_of(texts, config.seq_len))
    made = [
        Dialogue(messages=(*messages, {"role": "assistant", "content": a.text}), source="distilled")
        for messages, a, old, new in zip(
            plain, answers[_WITH], scores[_WITHOUT], scores[_WITH], strict=True
        )
        if new > old and a.ended and is_text(a.text)
    ]
    logger.info("%d of %d answers with a preprompt are safer and whole", len(made), len(prompts))
    require(
        made,
        f"of {len(prompts)} answers of {config.init_from}, none is complete and safer with a "
        "preprompt: try other preprompts, more prompts, or a larger --max-new-tokens",
    )
    return made
